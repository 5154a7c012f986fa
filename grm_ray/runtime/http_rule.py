"""A rule that an HTTP service decides."""

from __future__ import annotations

import json
import math
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from grm_ray.config.secrets import has_secret

TRIES = 4
PAUSE_S = 0.5  # before the second try; twice as long before each further one


def http(
    texts: Sequence[str],
    prompts: Sequence[str],
    url: str,
    timeout_s: float = 60.0,
    token_file: str | None = None,
) -> list[float]:
    """POST `{"prompts": [...], "responses": [...]}`, get `{"rewards": [number, ...]}`.

    Args:
        timeout_s: seconds without a byte that end a try; there are four.
        token_file: holds what goes along as `Authorization: Bearer`, read anew at every call, on
            every machine that scores.

    Raises:
        RuntimeError: no such answer from the service.
        ValueError: `url` is no http(s) address or holds a password, `timeout_s` is not above 0,
            or there is no token in `token_file`.
    """
    address = urllib.parse.urlsplit(str(url))
    if has_secret(str(url)):
        raise ValueError("url: contains a name, password or token; put it in a token_file")
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError(f"url: {url} is not an http or https address")
    if not isinstance(timeout_s, int | float) or not timeout_s > 0:
        raise ValueError(f"timeout_s: must be seconds above 0, not {timeout_s}")
    token = None if token_file is None else _token(token_file)
    if not texts:
        return []
    body = json.dumps({"prompts": list(prompts), "responses": list(texts)}).encode()
    where = address._replace(query="", fragment="").geturl()
    for left in reversed(range(TRIES)):
        try:
            return _ask(str(url), body, len(texts), timeout_s, token)
        except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
            if not left:
                raise RuntimeError(f"rule http: {where}: {error!r}, {TRIES} times") from None
            time.sleep(PAUSE_S * 2 ** (TRIES - 1 - left))
    raise AssertionError("unreachable")


def _token(file: str) -> str:
    try:
        token = Path(file).expanduser().read_text(encoding="ascii").strip()
    except OSError as error:
        raise ValueError(f"token_file: {file}: {error.strerror}") from None
    except UnicodeError:
        token = ""
    if not token or not token.isprintable() or " " in token:
        raise ValueError(f"token_file: {file}: expected one line of printable ASCII")
    return token


def _ask(
    url: str, body: bytes, count: int, timeout_s: float, token: str | None = None
) -> list[float]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    if token is not None:  # not sent on to where a redirection leads
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=timeout_s) as reply:
        rewards = [float(value) for value in json.load(reply)["rewards"]]
    if len(rewards) != count or not all(map(math.isfinite, rewards)):
        raise ValueError(f"expected {count} numbers, got {rewards[:5]}")
    return rewards
