"""Secrets do not belong in a config: it is copied into run folders, reports and trackers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_NAMES = (
    "access_key", "access_token", "api_key", "apikey", "auth_token", "authorization", "bearer",
    "credentials", "passwd", "password", "private_key", "secret", "secret_key", "token",
)  # fmt: skip
# `hf_token` and `x-api-key` too; but `eos_token` is a piece of text.
_LAST = re.compile(rf"(^|.*_)({'|'.join(_NAMES)})$")
_OF_TEXT = re.compile(r"(^|.*_)(bos|cls|end|eos|mask|pad|sep|special|start|stop|unk)_token$")
# `https://name:password@host`, and a token alone in the name's place.
_IN_NETLOC = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@]*@", re.IGNORECASE)
_IN_QUERY = re.compile(rf"://\S*[?&;]({'|'.join(_NAMES)}|key|sig|signature)=[^&]", re.IGNORECASE)


def find(raw: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(key, what stands there) of whatever looks like a secret; never the secret itself."""
    if isinstance(raw, dict):
        for key, value in raw.items():
            name = f"{where}.{key}" if where else str(key)
            told = isinstance(value, str | int) and not isinstance(value, bool) and value
            if told and _names_one(str(key)):
                yield name, "looks like a secret by its name"
            else:
                yield from find(value, name)
    elif isinstance(raw, list | tuple):
        for number, value in enumerate(raw):
            yield from find(value, f"{where}[{number}]")
    elif isinstance(raw, str):
        if has_secret(raw):
            yield where, "contains an address with a name, password or token"


def _names_one(key: str) -> bool:
    plain = key.lower().replace("-", "_")
    return bool(_LAST.match(plain)) and not _OF_TEXT.match(plain)


def has_secret(text: str) -> bool:
    """Whether `text` holds an address that lets in whoever reads it."""
    return bool(_IN_NETLOC.search(text) or _IN_QUERY.search(text))
