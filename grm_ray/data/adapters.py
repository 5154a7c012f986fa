"""Data sets with columns of their own, made into rows that `sources` reads.

An adapter is a set of columns it needs and a function row -> `{"prompt", "chosen", "rejected"}`;
`Unusable` says why a row gives no pair. `data.*.format` in a config names one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


class Unusable(ValueError):
    """This row gives no pair; the message says why."""


@dataclass(frozen=True)
class Adapter:
    columns: frozenset[str]
    convert: Callable[[Row], Row]


def _unified_feedback(row: Row) -> Row:
    """llm-blender/Unified-Feedback: two conversations with a common prompt, and their ratings."""
    first, second = row["conv_A_rating"], row["conv_B_rating"]
    if first is None or second is None or first == second:
        raise Unusable("tie: equal or missing ratings")
    sides = (row["conv_A"], row["conv_B"])
    chosen, rejected = sides if first > second else sides[::-1]
    return {"chosen": chosen, "rejected": rejected}


ADAPTERS: dict[str, Adapter] = {
    "trl": Adapter(frozenset({"chosen", "rejected"}), lambda row: row),
    "unified_feedback": Adapter(
        frozenset({"conv_A", "conv_B", "conv_A_rating", "conv_B_rating"}), _unified_feedback
    ),
}


def prompt_of(row: Row) -> Row:
    """The prompt of a pair row, for sets that PPO takes its prompts from."""
    chosen = row["chosen"]
    return row if row.get("prompt") is not None else {"prompt": chosen[:-1]}
