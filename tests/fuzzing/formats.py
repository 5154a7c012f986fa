"""Rows of each format that a source can name, as they should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def _talk(*said: str) -> list[Row]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


def _sides(n: int) -> Row:
    return {"chosen": f"good {n}", "rejected": f"bad {n}"}


def _spoken(n: int, answer: str) -> str:
    return f"\n\nHuman: question {n}\n\nAssistant: {answer} {n}"


def _contest(n: int) -> Row:
    made = {"prompt": f"question {n}", "id": n, "subset": "Ties", "domain": "chat"}
    return {
        **made,
        **{side: [f"{side} {n} {i}" for i in range(3)] for side in ("chosen", "rejected")},
    }


def _conversations(n: int) -> Row:
    winner = "model_a" if n % 2 else "model_b"
    talks = (_talk(f"question {n}", f"{who} {n}", "more", f"{who} again") for who in "ab")
    return {**dict(zip(("conversation_a", "conversation_b"), talks, strict=True)), "winner": winner}


# Row number n of each format, as it should be.
GOOD: dict[str, Callable[[int], Row]] = {
    "trl": lambda n: (
        {"prompt": f"question {n}", **_sides(n), "margin": n + 0.5, "subset": "a"}
        if n % 2
        else {side: _talk(f"question {n}", f"{side} {n}") for side in ("chosen", "rejected")}
    ),
    "columns": lambda n: {"ask": f"question {n}", "good": f"good {n}", "bad": f"bad {n}", "m": n},
    "unified_feedback": lambda n: {
        "conv_A": _talk(f"question {n}", f"one {n}"),
        "conv_B": _talk(f"question {n}", f"two {n}"),
        "conv_A_rating": n + 1.0,
        "conv_B_rating": 0.5,
        "source": "x",
    },
    "preference_700k": lambda n: {
        **{side: _talk(f"question {n}", f"{side} {n}") for side in ("chosen", "rejected")},
        "chosen_score": n + 1.0,
        "rejected_score": 0.5,
    },
    "helpsteer2": lambda n: {
        "prompt": f"question {n // 2}",
        "response": f"answer {n}",
        "helpfulness": n % 2,
        "correctness": 3,
    },
    "helpsteer2_preference": lambda n: {
        "prompt": f"question {n}",
        "response_1": f"one {n}",
        "response_2": f"two {n}",
        "preference_strength": 2 if n % 2 else -1,
    },
    "hh_rlhf": lambda n: {side: _spoken(n, side) for side in ("chosen", "rejected")},
    "hhh_alignment": lambda n: {
        "input": f"question {n}",
        "targets": {"choices": [f"good {n}", f"bad {n}"], "labels": [1, 0]},
    },
    "mt_bench_human": lambda n: {**_conversations(n), "turn": 1 + n % 2},
    "mt_bench_human_authors": lambda n: {**_conversations(n), "turn": 1},
    "reward_bench": lambda n: {"prompt": f"question {n}", **_sides(n), "subset": "a", "id": n},
    "reward_bench_2": _contest,
    "rm_bench": _contest,
    "reward_math": lambda n: {
        "problem": f"problem {n // 10}",
        "problem_id": n // 10,
        "solution_type": "rejected" if n % 10 else "chosen",
        "eval_solution": [f"step {n}"] if n % 3 else f"step {n}",
    },
}
COLUMNS = {"prompt": "ask", "chosen": "good", "rejected": "bad", "margin": "m"}
