"""Answers from before and after training: which to show, and how they look side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from grm_ray.reporting.numbers import pretty, signed
from grm_ray.reporting.plots import change_bars
from grm_ray.reporting.run import Run, number
from grm_ray.study.intervals import Interval, paired_difference

Row = dict[str, Any]
_NAMES = {"true_reward": "true reward", "reward": "reward", "length": "length"}
# Control characters are not allowed in HTML; what a model wrote shows as a sign in their place.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class BeforeAfter:
    """The same held-out rows before and after, joined by uid; `key` is what they are judged by."""

    before: list[Row]
    after: list[Row]
    key: str

    def values(self, key: str) -> tuple[list[float], list[float], list[str]] | None:
        """Before, after and prompts of the rows that have `key` on both sides."""
        found = [
            (one, two, str(row["prompt"]))
            for row, other in zip(self.before, self.after, strict=True)
            if (one := number(row[key])) is not None and (two := number(other[key])) is not None
        ]
        if not found:
            return None
        before, after, prompts = zip(*found, strict=True)
        return list(before), list(after), list(prompts)

    def difference(self, key: str) -> tuple[float, float, Interval] | None:
        """Mean before, mean after, and the paired interval with prompts as clusters."""
        values = self.values(key)
        if values is None:
            return None
        before, after, prompts = values
        gain = paired_difference(before, after, prompts)
        return sum(before) / len(before), sum(after) / len(after), gain


def pair(run: Run) -> BeforeAfter | None:
    """The rows that both `before` and `after` hold, None where there are none."""
    after = {row["uid"]: row for row in run.samples.get("after", [])}
    before = [row for row in run.samples.get("before", []) if row["uid"] in after]
    if not before:
        return None
    pairs = BeforeAfter(before, [after[row["uid"]] for row in before], "true_reward")
    return (
        pairs if pairs.values("true_reward") else BeforeAfter(pairs.before, pairs.after, "reward")
    )


def conversations(run: Run, pairs: BeforeAfter | None) -> str:
    """The section of sample conversations, empty where no samples were kept."""
    if pairs is not None and pairs.values(pairs.key):
        return _compared(pairs)
    for name, words in (
        ("after", "after training"),
        ("before", "before training"),
        *((k, k.replace("-", " ")) for k in run.samples if k.startswith("step-")),
    ):
        if run.samples.get(name):
            return _alone(run.samples[name], words)
    return ""


def clean(text: Any) -> str:
    """`text` from a model or a data set, safe inside HTML."""
    return escape(_CONTROL.sub("�", "" if text is None else str(text)))


def _compared(pairs: BeforeAfter) -> str:
    scored = [
        (number(b[pairs.key]), number(a[pairs.key]), b, a)
        for b, a in zip(pairs.before, pairs.after, strict=True)
    ]
    rows = [(two - one, b, a) for one, two, b, a in scored if one is not None and two is not None]
    changes = [change for change, _, _ in rows]
    order = sorted(range(len(rows)), key=lambda i: changes[i])
    # Two rows have no median of their own: the first title that fits a row is the one it keeps.
    picks: dict[int, str] = {}
    picks.setdefault(order[-1], "Largest gain" if changes[order[-1]] > 0 else "Smallest loss")
    picks.setdefault(order[len(order) // 2], "The median change")
    picks.setdefault(order[0], "Largest loss" if changes[order[0]] < 0 else "Smallest gain")
    if len(set(changes)) == 1:
        picks = {order[0]: "The first (all changed equally)"}
    name = _NAMES[pairs.key]
    better, worse = sum(c > 0 for c in changes), sum(c < 0 for c in changes)
    about = (
        f"The same held-out prompts, answered before and after training. Of {len(changes)} "
        f"answers {better} gained in {name}, {worse} lost, {len(changes) - better - worse} stayed "
        "the same. Shown are the largest gain, the median change and the largest loss (the "
        "dots): selected by that rule only, not by hand."
    )
    parts = [f'<h2>Conversations, before and after</h2><p class="about">{about}</p>']
    parts.append(f'<div class="charts">{_changes(rows, changes, list(picks), name)}</div>')
    for index, title in picks.items():
        change, before, after = rows[index]
        parts.append(
            f'<article class="talk"><h3>{title} <span>{signed(change)} {name}</span></h3>'
            f'<div class="prompt" dir="auto">{clean(before["prompt"])}</div><div class="sides">'
            f"{side('Before', before)}{side('After', after)}</div></article>"
        )
    return "".join(parts)


def _changes(
    rows: Sequence[tuple[float, Row, Row]], changes: list[float], marked: list[int], name: str
) -> str:
    """Bars of the changes by which rows are judged and, where they differ, of the reward."""
    charts = [(name, changes)]
    if name == _NAMES["true_reward"]:
        scores = [(number(before["reward"]), number(after["reward"])) for _, before, after in rows]
        proxy = [two - one for one, two in scores if one is not None and two is not None]
        if len(proxy) == len(rows):
            charts.append(("reward", proxy))
    return "".join(
        f"<figure><figcaption><h3>Change of {what}, answer by answer</h3></figcaption>"
        f"{change_bars(f'Change of {what} per answer', values, marked, f'change of {what}')}"
        "</figure>"
        for what, values in charts
    )


def _alone(rows: Sequence[Row], words: str) -> str:
    key = "true_reward" if any(number(r["true_reward"]) is not None for r in rows) else "reward"
    scored = sorted(rows, key=lambda r: number(r[key]) or 0.0)
    picks = {len(rows) - 1: "Highest", len(rows) // 2: "Median", 0: "Lowest"}
    about = (
        f"Of {len(rows)} kept answers: those of highest, median and lowest {_NAMES[key]}, "
        "selected by that rule only."
    )
    parts = [f'<h2>Conversations, {escape(words)}</h2><p class="about">{about}</p>']
    for index, title in picks.items():
        row = scored[index]
        parts.append(
            f'<article class="talk"><h3>{title} <span>{_NAMES[key]}</span></h3>'
            f'<div class="prompt" dir="auto">{clean(row["prompt"])}</div>'
            f'<div class="sides one">{side(words.capitalize(), row)}</div></article>'
        )
    return "".join(parts)


def side(who: str, row: Mapping[str, Any]) -> str:
    """An answer under the name of `who`, with its scores."""
    scores = [
        f"<span>{_NAMES[key]} {f'{value:.0f} tokens' if key == 'length' else pretty(value)}</span>"
        for key in ("true_reward", "reward", "length")
        if (value := number(row[key])) is not None
    ]
    return (
        f'<section><div class="who"><b>{escape(who)}</b>{"".join(scores)}</div>'
        f'<div class="said" dir="auto">{clean(row["response"])}</div></section>'
    )
