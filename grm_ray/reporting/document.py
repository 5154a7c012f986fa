"""One HTML file that needs no network, no script and no other file, and how it is put in place."""

from __future__ import annotations

import os
from pathlib import Path

from grm_ray.config.errors import not_written
from grm_ray.reporting.samples import clean
from grm_ray.reporting.style import CSS

# Belt and braces: should a text ever get past the escaping, a browser still runs nothing of it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def document(title: str, parts: list[str]) -> str:
    """The page as text, from its parts in HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{clean(title)}</title><style>{CSS}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def put(path: Path, text: str) -> None:
    """Write `text` beside `path` and move it there: who reads it never sees half a file.

    Raises:
        NotWritten: it could not be; what was there before is whole.
    """
    beside = path.with_name(f"{path.name}.new")
    try:
        # Half a character, which JSON can hold and UTF-8 cannot, must not cost the page.
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(beside, path)
    except OSError as error:
        raise not_written(path, error) from error
