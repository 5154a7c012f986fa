"""Values that nobody expects, and changes of a tree, a text and a file."""

from __future__ import annotations

import copy
import datetime
import json
import random
from typing import Any

TEXTS = [
    "",
    " ",
    "\t",
    "\n",
    "\0",
    "a\0b",
    "\x1b[31mred",
    "\x7f",
    "\ud800",
    "\udfff\ud800",
    "\ufeff",
    "\u202egnp.",
    "\u2028",
    "é",
    "雨が降る",
    "🐈‍⬛",
    "e\u0301" * 50,
    "A" * 300,
    "b" * 5000,
    "x" * 100_000,
    "../../outside",
    "/absolute/nowhere",
    "~nobody_is_here/x",
    "~",
    "~/",
    "..",
    ".",
    "a/b/c",
    "a//b",
    "no/such",
    "C:\\x",
    "file:///etc/passwd",
    "{{ 7 * 7 }}",
    "%s%n",
    "$(id)",
    "null",
    "true",
    "1",
    "1e5",
    "-0",
    "nan",
    "[",
    "[]",
    "{}",
    "*",
    "**",
    "data/[",
    "data/*.jsonl",
    "os:system",
    "json:loads",
    "no_module:f",
    "a:b:c",
    ":",
    "x:",
    ":x",
    "#",
    "|",
    "/dev/null",
    "data",
    "models/tiny",
    "runs/rm_demo/model",
    "train",
    "demo",
]
NUMBERS = [
    0,
    -1,
    1,
    2,
    3,
    0.5,
    -0.0,
    1e-320,
    1e308,
    -1e308,
    1e39,
    2**31,
    2**32,
    2**53,
    2**63,
    2**64,
    10**18,
    -(10**18),
    10**30,
    10**400,
    10**5000,
    float("nan"),
    float("inf"),
    float("-inf"),
]


def odd(rng: random.Random, depth: int = 0) -> Any:
    """Any value at all."""
    kind = rng.randrange(12 if depth < 3 else 8)
    if kind < 3:
        return rng.choice(TEXTS)
    if kind < 6:
        return rng.choice(NUMBERS)
    if kind < 8:
        return rng.choice([None, True, False, "", 7, "x"])
    if kind == 8:
        return [odd(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 9:
        return {word(rng): odd(rng, depth + 1) for _ in range(rng.randrange(4))}
    if kind == 10:
        return nested(rng.choice([10, 90, 400]), rng.random() < 0.5)
    return rng.choice([[1] * 5000, [[]], [{}], {"": ""}, {"a": None}, [None], list("abc" * 300)])


def near(rng: random.Random, value: Any) -> Any:
    """Another value of the kind that `value` is: what a typing error makes of it."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float) and abs(value) < 1e100:
        likely = [value + 1, value * 2, value / 2, str(value), max(1, round(value / 2))]
        return rng.choice(likely if rng.random() < 0.6 else [*NUMBERS, -value, value * 1000])
    if isinstance(value, str):
        likely = [value, value + "x", value + " ", f"{value}/../x", misspelt(rng, value)]
        return rng.choice(likely if rng.random() < 0.6 else TEXTS)
    return odd(rng)


def yaml_only(rng: random.Random) -> Any:
    """What YAML has and JSON has not."""
    return rng.choice([datetime.date(2020, 2, 29), b"\x00\xff", {1, 2}, (1, 2), {1: 2}, {None: 1}])


def nested(depth: int, lists: bool) -> Any:
    made: Any = "bottom"
    for _ in range(depth):
        made = [made] if lists else {"a": made}
    return made


def word(rng: random.Random) -> str:
    return rng.choice(
        ["a", "b", "path", "name", "prompt", "", "x.y", "ключ", "\0", "k" * 300, "role"]
    )


def misspelt(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text)) if text else 0
    return rng.choice(
        [text[:at] + text[at + 1 :], text[:at] + "x" + text[at:], text.upper(), text[::-1]]
    )


def places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value in `tree`."""
    found: list[tuple[Any, Any]] = []
    open_ = [tree]
    while open_:
        node = open_.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in list(items):
            found.append((node, key))
            if isinstance(value, dict | list):
                open_.append(value)
    return found


def change(rng: random.Random, tree: Any) -> None:
    """Damage one place of `tree`."""
    found = places(tree)
    if not found:
        return
    node, key = rng.choice(found)
    kind = rng.randrange(8)
    if kind < 4:
        node[key] = near(rng, node[key]) if rng.random() < 0.6 else odd(rng)
    elif kind == 4:
        del node[key]
    elif kind == 5 and isinstance(node, dict):
        node[misspelt(rng, str(key))] = node.pop(key)
    elif kind == 6:
        other, there = rng.choice(found)
        node[key] = copy.deepcopy(other[there])
    else:
        try:
            said = str(node[key])
        except ValueError:  # it holds a number of thousands of digits
            said = "9" * 5000
        node[key] = rng.choice([[node[key]], {"x": node[key]}, said, None])


def damaged(rng: random.Random, raw: bytes) -> bytes:
    """A file as a broken disk, a wrong program or a killed one leaves it."""
    at = rng.randrange(len(raw) + 1)
    kind = rng.randrange(10)
    if kind == 0:
        return raw[:at]
    if kind == 1:
        return b"\xef\xbb\xbf" + raw
    if kind == 2:
        return raw[:at] + rng.randbytes(rng.choice([1, 4, 100])) + raw[at:]
    if kind == 3:
        changed = bytearray(raw)
        for _ in range(rng.choice([1, 3, 20]) if raw else 0):
            changed[rng.randrange(len(raw))] = rng.randrange(256)
        return bytes(changed)
    if kind == 4:
        end = min(len(raw), at + rng.choice([1, 10, 200]))
        return raw[:at] + raw[end:]
    if kind == 5:
        return raw + raw[at:]
    if kind == 6:
        return rng.choice(
            [b"", b"\n", b"\0" * 512, b"null", b"[]", b"{}", b'"x"', b"3", b"\xff\xfe"]
        )
    if kind == 7:
        return rng.randbytes(rng.choice([1, 16, 3000]))
    if kind == 8:
        return raw.decode("utf-8", "replace").encode("utf-16")
    return raw.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n", b"\t\n", b"", b"\x0b\n"]))


def written(value: Any) -> str:
    """JSON as a careless program writes it: NaN and half characters included."""
    try:
        return json.dumps(value, default=str)
    except ValueError:  # an integer of thousands of digits
        return "1" * 5000
