"""pip's configuration in uv's words: uv does not read pip's files and variables."""

from __future__ import annotations

import ast
import re


def uv_options(listing: str) -> tuple[list[str], dict[str, str]]:
    """Options and variables that make uv look where pip looks.

    Args:
        listing: what `pip config list` prints: `section.key='value'`, several values of one key
            separated by white space.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for line in listing.splitlines():
        match = re.fullmatch(r"(.+?)\.([\w-]+)=(['\"].*['\"])", line.strip())
        if match:
            section, key, value = match.groups()
            found.setdefault(section, {})[key] = str(ast.literal_eval(value)).split()
    setting: dict[str, list[str]] = {}
    for section in ("global", "install", ":env:"):  # pip's order: the later one wins
        setting.update(found.get(section, {}))
    # pip takes the best version of all sources; uv by default stops at the first that has any.
    options = ["--index-strategy", "unsafe-best-match"]
    for key, option in (
        ("index-url", "--default-index"),
        ("extra-index-url", "--index"),
        ("find-links", "--find-links"),
        ("trusted-host", "--allow-insecure-host"),
    ):
        options += [part for value in setting.get(key, []) for part in (option, value)]
    if setting.get("no-index", ["0"])[0].lower() in {"1", "true", "yes", "on"}:
        options.append("--no-index")
    variables = {
        name: setting[key][0]
        for key, name in (("cert", "SSL_CERT_FILE"), ("proxy", "ALL_PROXY"))
        if setting.get(key)
    }
    return options, variables
