"""Conversations over which the reward and the true reward disagree most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from grm_ray.reporting.samples import clean, side
from grm_ray.reporting.tables import finite
from grm_ray.reporting.trajectory import Trajectory

ABOUT = (
    "Each run's newest held-out answers, ranked by the reward and by the true reward: shown are "
    "those whose two ranks differ most, selected by that rule only. Answers that the reward ranks "
    "high and the true reward low exploit errors of the reward model."
)
_SHOWN = 3


def disputed(trajectories: Sequence[Trajectory]) -> str:
    """The section, a fold a run; empty where no run has answers with both rewards."""
    folds = [fold for one in trajectories if (fold := _fold(one))]
    if not folds:
        return ""
    folds[0] = folds[0].replace("<details>", "<details open>", 1)
    return f'<h2>Where the two disagree</h2><p class="about">{ABOUT}</p>{"".join(folds)}'


def farthest_apart(rows: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], float, float]]:
    """Rows with their places by reward and by true reward, 1 the highest, the farthest first.

    Equals share the mean of their places. Rows whose two places are one are left out.
    """
    known = [row for row in rows if _scored(row)]
    if len(known) < 2:
        return []
    proxy, gold = (_places([row[kind] for row in known]) for kind in ("reward", "true_reward"))
    apart = np.abs(proxy - gold)
    order = np.argsort(-apart, kind="stable")
    return [(known[i], float(proxy[i]), float(gold[i])) for i in order if apart[i] > 0]


def _scored(row: dict[str, Any]) -> bool:
    return finite(row["reward"]) is not None and finite(row["true_reward"]) is not None


def _places(values: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(values, dtype=np.float64)
    above = (values[None, :] > values[:, None]).sum(axis=1)
    equal = (values[None, :] == values[:, None]).sum(axis=1)
    return above + (equal + 1) / 2


def _fold(trajectory: Trajectory) -> str:
    found = farthest_apart(trajectory.last)
    if not found:
        return ""
    count = sum(_scored(row) for row in trajectory.last)
    talks = []
    for row, proxy, gold in found[:_SHOWN]:
        higher = "Ranked high by the reward" if proxy < gold else "Ranked high by the true reward"
        places = f"rank {proxy:g} by reward, {gold:g} by true reward, of {count}"
        talks.append(
            f'<article class="talk"><h3>{higher} <span>{places}</span></h3>'
            f'<div class="prompt" dir="auto">{clean(row["prompt"])}</div>'
            f'<div class="sides one">{side("Answer", row)}</div></article>'
        )
    step = trajectory.last_step
    when = f"step {step}" if step else "before training"
    return (
        f"<details><summary>{clean(trajectory.label)} "
        f'<span class="soft">{when}</span></summary>{"".join(talks)}</details>'
    )
