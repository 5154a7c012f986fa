"""A rule that an HTTP service decides."""

from __future__ import annotations

import json
import math
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException

TRIES = 4
PAUSE_S = 0.5  # before the second try; twice as long before each further one


def http(
    texts: Sequence[str], prompts: Sequence[str], url: str, timeout_s: float = 60.0
) -> list[float]:
    """POST `{"prompts": [...], "responses": [...]}`, get `{"rewards": [number, ...]}`.

    Args:
        timeout_s: seconds without a byte that end a try; there are four.

    Raises:
        RuntimeError: no such answer from the service.
        ValueError: `url` is no http(s) address, or `timeout_s` is not above 0.
    """
    address = urllib.parse.urlsplit(str(url))
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError(f"url: {url} is no http or https address")
    if not isinstance(timeout_s, int | float) or not timeout_s > 0:
        raise ValueError(f"timeout_s: seconds above 0, not {timeout_s}")
    if not texts:
        return []
    body = json.dumps({"prompts": list(prompts), "responses": list(texts)}).encode()
    where = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()  # no password
    for left in reversed(range(TRIES)):
        try:
            return _ask(str(url), body, len(texts), timeout_s)
        except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
            if not left:
                raise RuntimeError(f"rule http: {where}: {error!r}, {TRIES} times") from None
            time.sleep(PAUSE_S * 2 ** (TRIES - 1 - left))
    raise AssertionError("unreachable")


def _ask(url: str, body: bytes, count: int, timeout_s: float) -> list[float]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout_s) as reply:
        rewards = [float(value) for value in json.load(reply)["rewards"]]
    if len(rewards) != count or not all(map(math.isfinite, rewards)):
        raise ValueError(f"{count} numbers were asked for, not {rewards[:5]}")
    return rewards
