"""A PPO run's evaluations as over-optimisation is read from them: KL, rewards, prompt by prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grm_ray.reporting.run import Run, read_samples
from grm_ray.reporting.tables import finite
from grm_ray.study.intervals import bootstrap_mean

Rewards = dict[str, dict[str, float]]
_KINDS = ("reward", "true_reward")


@dataclass(frozen=True)
class Mean:
    """A mean over held-out answers, with its interval where one is known."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class EvaluationPoint:
    """One evaluation: `kl` in nats an answer, against the start; means of `reward`, `true_reward`.

    `by_prompt` has each kind of reward by the uid of its answer, empty where none were kept.
    """

    step: int
    kl: float | None
    means: Mapping[str, Mean]
    by_prompt: Rewards

    @property
    def d(self) -> float | None:
        """sqrt(KL); an estimate below 0 counts as 0."""
        return None if self.kl is None else math.sqrt(max(0.0, self.kl))


@dataclass
class Trajectory:
    """A run under the name that the page gives it, and its evaluations in the order of training.

    `last` are the newest answers that were kept, of the evaluation at `last_step`.
    """

    run: Run
    label: str
    evaluations: list[EvaluationPoint]
    last: list[dict[str, Any]]
    last_step: int = 0
    notes: list[str] = field(default_factory=list)

    def known(self, kind: str) -> list[EvaluationPoint]:
        """Evaluations that have a mean of `kind`."""
        return [e for e in self.evaluations if kind in e.means]

    def with_distance(self, kind: str) -> list[EvaluationPoint]:
        """Those of `known` that have a KL too."""
        return [e for e in self.known(kind) if e.kl is not None]


def read_trajectory(run: Run, label: str = "") -> Trajectory:
    """Read what `run` kept of its evaluations; `label` is its name where there is none."""
    rows = [
        row
        for row in run.steps
        if any(finite(row.get(f"eval/{kind}")) is not None for kind in _KINDS)
    ]
    made = Trajectory(run, label or run.name, [], [])
    borrowed = []
    for row in rows:
        kl, own = _kl(run, row)
        if not own:
            borrowed.append(row["step"])
        answers = _answers(run, row, row is rows[-1], made.notes)
        by_prompt = {kind: _by_uid(answers, kind) for kind in _KINDS}
        means = {kind: mean for kind in _KINDS if (mean := _mean(row, kind, by_prompt[kind]))}
        made.evaluations.append(EvaluationPoint(int(row["step"]), kl, means, by_prompt))
        if answers:
            made.last, made.last_step = answers, int(row["step"])
    made.notes += _doubts(run, borrowed)
    return made


def paired(
    evaluations: list[EvaluationPoint], kind: str = "true_reward"
) -> tuple[NDArray[np.float64] | None, str]:
    """`(S, P)`: the reward of each prompt at each evaluation, or None and the reason.

    Prompts are those that all evaluations have.
    """
    missing = [e.step for e in evaluations if not e.by_prompt[kind]]
    if missing:
        return None, f"no answers of step {missing[0]} were saved"
    shared = set.intersection(*(set(e.by_prompt[kind]) for e in evaluations))
    if not shared:
        return None, "the evaluations have no prompt in common"
    uids = sorted(shared)
    return np.asarray([[e.by_prompt[kind][uid] for uid in uids] for e in evaluations]), ""


def _kl(run: Run, row: Mapping[str, Any]) -> tuple[float | None, bool]:
    """KL of an evaluation, and whether it is that of its own answers.

    Training answers of the following step are by the same weights; after the last step there are
    none, and that step's own, one update older, must do.
    """
    step = int(row["step"])
    if step == 0:
        return 0.0, True
    if (own := finite(row.get("eval/kl"))) is not None:
        return own, True
    following = next((other for other in run.steps if other["step"] == step + 1), row)
    known = (finite(other.get("objective/kl")) for other in (following, row))
    return next((kl for kl in known if kl is not None), None), False


def _doubts(run: Run, borrowed: list[int]) -> list[str]:
    notes = []
    if borrowed:
        notes.append(
            "Held-out answers have no KL of their own: d is that of the training answers of the "
            "next step, or, at the last step, of its own."
        )
    kl = run.section("ppo").get("kl")
    if isinstance(kl, dict) and (kl.get("reference") or kl.get("ema")):
        notes.append("The KL is to a reference that is not the policy at the start.")
    return notes


def _answers(
    run: Run, row: Mapping[str, Any], last: bool, notes: list[str]
) -> list[dict[str, Any]]:
    """Rows of the file that an evaluation wrote; none where it is not there."""
    step = int(row["step"])
    names = ["before"] if step == 0 else [f"held-out-{step:05d}", *["after"] * last]
    for name in names:
        if name in run.samples:
            return run.samples[name]
        path = run.folder / "samples" / f"{name}.parquet"
        if path.is_file() and name not in ("before", "after"):  # those were read with the run
            return read_samples(path, notes) or []
    return []


def _by_uid(rows: list[dict[str, Any]], kind: str) -> dict[str, float]:
    return {str(row["uid"]): value for row in rows if (value := finite(row[kind])) is not None}


def _mean(row: Mapping[str, Any], kind: str, by_uid: Mapping[str, float]) -> Mean | None:
    value = finite(row.get(f"eval/{kind}"))
    if value is None:
        return None
    low, high = (finite(row.get(f"eval/{kind}_{end}")) for end in ("low", "high"))
    if low is not None and high is not None:
        return Mean(value, low, high)
    if len(by_uid) < 2:
        return Mean(value)
    found = bootstrap_mean([by_uid[uid] for uid in sorted(by_uid)], n=1000)
    return Mean(value, found.low, found.high)
