"""Data sets with columns of their own, made into rows that `sources` reads.

An adapter is a set of columns it needs and a function row -> `{"prompt", "chosen", "rejected"}`
and, where the set has them, `margin`, `subset`, `name`; without a prompt the two answers are whole
conversations. `Unusable` says why a row gives no pair. `data.*.format` in a config names one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from grm_ray.config.schema import Source

Row = dict[str, Any]
Hub = dict[str, Any]  # arguments of datasets.load_dataset


class Unusable(ValueError):
    """This row gives no pair; the message says why."""


@dataclass(frozen=True)
class Adapter:
    """How a data set's rows are read.

    Attributes:
        columns: what every row has.
        convert: a row (with `together`: a list of rows) to our columns.
        together: rows in a line that share this column's value are converted as one.
        at_most: so many of them.
        several: `chosen` and `rejected` are lists of answers: each chosen one beats each rejected.
        every_row: equal and contrary rows all count: people's votes, and benchmarks, whose scores
            are over all their rows.
        diverging: two dialogues may differ before their last turn.
        graded: a row to `prompt` and `response`, beside columns of graded attributes.
        hub: how the hub's data set is opened, where it is not by name and split.
    """

    columns: frozenset[str]
    convert: Callable[[Any], Row]
    together: str | None = None
    at_most: int | None = None
    several: bool = False
    every_row: bool = False
    diverging: bool = False
    graded: Callable[[Row], Row] | None = None
    hub: Callable[[Source], Hub] | None = None


def adapter_of(source: Source) -> Adapter:
    """The adapter that `source.format` names, for a source of format `columns` its own one."""
    if source.format != "columns":
        return ADAPTERS[source.format]
    names = source.columns
    return Adapter(
        frozenset(names.values()),
        lambda row: {ours: row.get(theirs) for ours, theirs in names.items()},
    )


# ------------------------------------------------------------------ dialogues in one string

_SPOKEN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_MARKED = re.compile(r"\n*<extra_id_1>(User|Assistant)\n")
_ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}


def dialogue(text: str, mark: re.Pattern[str]) -> list[dict[str, str]]:
    """A string with marked turns as messages; what stands before the first mark is the user's.

    Two turns of one speaker in a line become one, and an assistant's empty last turn (the place
    where an answer is to go) is left out.
    """
    head, *rest = mark.split(text)
    turns = [("user", head.strip())] if head.strip() else []
    turns += [(_ROLES[who], said.strip()) for who, said in zip(rest[::2], rest[1::2], strict=True)]
    messages: list[dict[str, str]] = []
    for role, content in turns:
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n\n{content}"
        else:
            messages.append({"role": role, "content": content})
    if messages and messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()
    return messages


def _helpsteer_prompt(text: str) -> str | list[dict[str, str]]:
    return dialogue(text, _MARKED) if _MARKED.search(text) else text


# ------------------------------------------------------------------ one function a data set


def _unified_feedback(row: Row) -> Row:
    """llm-blender/Unified-Feedback: two conversations with a common prompt, and their ratings."""
    first, second = row["conv_A_rating"], row["conv_B_rating"]
    if first is None or second is None or first == second:
        raise Unusable("tie: equal or missing ratings")
    sides = (row["conv_A"], row["conv_B"])
    chosen, rejected = sides if first > second else sides[::-1]
    return {
        "chosen": chosen,
        "rejected": rejected,
        "margin": abs(_number(first, "conv_A_rating") - _number(second, "conv_B_rating")),
        "subset": row.get("source"),
    }


def _preference_700k(row: Row) -> Row:
    """hendrydong/preference_700K: two conversations; in some rows scores, of many scales."""
    scores = row.get("chosen_score"), row.get("rejected_score")
    lacking = any(score is None or score != score for score in scores)  # NaN: as null
    gap = None if lacking else _number(scores[0], "score") - _number(scores[1], "score")
    margin = gap if gap is not None and gap > 0 else None
    return {"chosen": row["chosen"], "rejected": row["rejected"], "margin": margin}


def _helpsteer2(rows: list[Row]) -> Row:
    """nvidia/HelpSteer2: two graded answers to a prompt, in neighbouring rows."""
    if len(rows) < 2:
        raise Unusable("only one answer to its prompt")
    grades = [_number(row["helpfulness"], "helpfulness") for row in rows]
    if grades[0] == grades[1]:
        raise Unusable("tie: equally helpful")
    better, worse = rows if grades[0] > grades[1] else rows[::-1]
    return {
        "prompt": _helpsteer_prompt(better["prompt"]),
        "chosen": better["response"],
        "rejected": worse["response"],
        "margin": abs(grades[0] - grades[1]),
    }


def _helpsteer2_graded(row: Row) -> Row:
    return {**row, "prompt": _helpsteer_prompt(row["prompt"])}


def _helpsteer2_preference(row: Row) -> Row:
    """HelpSteer2-Preference: strength -3 (response 1 much better) to 3 (response 2 much better)."""
    strength = _number(row["preference_strength"], "preference_strength")
    if strength == 0:
        raise Unusable("tie: preference_strength 0")
    answers = (row["response_1"], row["response_2"])
    rejected, chosen = answers if strength > 0 else answers[::-1]
    return {
        "prompt": _helpsteer_prompt(row["prompt"]),
        "chosen": chosen,
        "rejected": rejected,
        "margin": abs(strength),
    }


def _hh_rlhf(row: Row) -> Row:
    """Anthropic/hh-rlhf: two whole dialogues, each one string."""
    return {side: dialogue(row[side], _SPOKEN) for side in ("chosen", "rejected")}


def _hhh_alignment(row: Row) -> Row:
    """HuggingFaceH4/hhh_alignment: choices with labels 1 (aligned) and 0."""
    choices, labels = row["targets"]["choices"], row["targets"]["labels"]
    sides = {
        label: [choice for choice, own in zip(choices, labels, strict=True) if own == label]
        for label in (1, 0)
    }
    if len(sides[1]) != 1 or len(sides[0]) != 1:
        raise Unusable("tie: not one choice labelled 1 and one labelled 0")
    prompt = dialogue(row["input"], _SPOKEN)
    return {"prompt": prompt, "chosen": sides[1][0], "rejected": sides[0][0]}


def _mt_bench_human(row: Row) -> Row:
    """lmsys/mt_bench_human_judgments: one judgement a row, of the dialogue up to its turn."""
    if str(row["winner"]).startswith("tie"):
        raise Unusable("tie")
    if row["winner"] not in ("model_a", "model_b"):
        raise Unusable(f"no winner: {row['winner']!r}")
    turn = int(_number(row["turn"], "turn"))
    made = _mt_bench_human_authors(row)
    for side in ("chosen", "rejected"):
        if len(made[side]) < 2 * turn:
            raise Unusable(f"the dialogue ends before turn {turn}")
        made[side] = made[side][: 2 * turn]
    return made


def _mt_bench_human_authors(row: Row) -> Row:
    """The same as GRM's authors evaluate it: whole dialogues, and a tie is won by model b."""
    sides = (row["conversation_a"], row["conversation_b"])
    chosen, rejected = sides if row["winner"] == "model_a" else sides[::-1]
    return {"chosen": chosen, "rejected": rejected, "subset": f"turn {row['turn']}"}


def _reward_bench(row: Row) -> Row:
    """allenai/reward-bench (split `filtered`): one pair a row."""
    return {**_copied(row, "prompt", "chosen", "rejected", "subset"), "name": row.get("id")}


def _reward_bench_2(row: Row) -> Row:
    """allenai/reward-bench-2: one chosen and three rejected; in subset Ties several of each.

    The name matters for Ties: `ref:7` and `tied:7` are two forms of one question.
    """
    return _reward_bench(row)


def _rm_bench(row: Row) -> Row:
    """THU-KEG/RM-Bench: three chosen and three rejected, each concise, detailed, with Markdown."""
    if len(row["chosen"]) != 3 or len(row["rejected"]) != 3:
        raise Unusable("not three chosen and three rejected answers")
    made = _copied(row, "prompt", "chosen", "rejected")
    return {**made, "subset": row.get("domain") or row.get("subset"), "name": row.get("id")}


def _reward_math(rows: list[Row]) -> Row:
    """RewardMATH: a problem's solutions in neighbouring rows, one correct and nine wrong."""
    sides: dict[str, list[str]] = {"chosen": [], "rejected": []}
    for row in rows:
        if row["solution_type"] not in sides:
            raise Unusable(f"unknown solution_type {row['solution_type']!r}")
        steps = row["eval_solution"]
        sides[row["solution_type"]].append(steps if isinstance(steps, str) else "\n".join(steps))
    if not sides["chosen"] or not sides["rejected"]:
        raise Unusable("not a correct and a wrong solution")
    first = rows[0]
    return {
        "prompt": first["problem"],
        **sides,
        "subset": first.get("subject"),
        "name": first["problem_id"],
    }


def _copied(row: Row, *names: str) -> Row:
    return {name: row[name] for name in names}


def _number(value: Any, name: str) -> float:
    try:
        plain = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
        if plain and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer that no float can hold
        pass
    raise Unusable(f"'{name}' is not a number: {type(value).__name__}")


def _columns(names: str) -> frozenset[str]:
    return frozenset(names.split())


ADAPTERS: dict[str, Adapter] = {
    "trl": Adapter(_columns("chosen rejected"), lambda row: row, graded=lambda row: row),
    "unified_feedback": Adapter(
        _columns("conv_A conv_B conv_A_rating conv_B_rating"), _unified_feedback
    ),
    "preference_700k": Adapter(_columns("chosen rejected"), _preference_700k),
    "helpsteer2": Adapter(
        _columns("prompt response helpfulness"),
        _helpsteer2,
        together="prompt",
        at_most=2,
        graded=_helpsteer2_graded,
    ),
    "helpsteer2_preference": Adapter(
        _columns("prompt response_1 response_2 preference_strength"),
        _helpsteer2_preference,
        # All rows are in the hub's split `train`; their own column says train or val.
        hub=lambda source: {"data_dir": source.subset or "preference", "split": "train"},
    ),
    "hh_rlhf": Adapter(
        _columns("chosen rejected"),
        _hh_rlhf,
        # Its subsets (helpful-base, harmless-base, ...) are folders.
        hub=lambda source: {"data_dir": source.subset, "split": source.split},
    ),
    "hhh_alignment": Adapter(_columns("input targets"), _hhh_alignment, every_row=True),
    "mt_bench_human": Adapter(
        _columns("conversation_a conversation_b winner turn"),
        _mt_bench_human,
        every_row=True,
        diverging=True,
    ),
    "mt_bench_human_authors": Adapter(
        _columns("conversation_a conversation_b winner turn"),
        _mt_bench_human_authors,
        every_row=True,
        diverging=True,
    ),
    "reward_bench": Adapter(
        _columns("prompt chosen rejected subset"), _reward_bench, every_row=True
    ),
    "reward_bench_2": Adapter(
        _columns("prompt chosen rejected subset"), _reward_bench_2, several=True, every_row=True
    ),
    "rm_bench": Adapter(
        _columns("prompt chosen rejected"), _rm_bench, several=True, every_row=True
    ),
    "reward_math": Adapter(
        _columns("problem eval_solution solution_type problem_id"),
        _reward_math,
        together="problem_id",
        several=True,
        every_row=True,
    ),
}
