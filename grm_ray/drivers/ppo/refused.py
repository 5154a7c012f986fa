"""Answers that could not be scored: written down with the reason, and left out of the update."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np

from grm_ray.config.errors import RunStopped
from grm_ray.drivers.ppo.step import Step
from grm_ray.runtime.disk import writing


class RefusedLog:
    """`refused.jsonl`: one line an answer that a reward model, rule or true reward failed on."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "refused.jsonl"

    def cut_after(self, step: int) -> None:
        """Forget what is said of later steps, which are made again, and of a half-written line."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text("utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                if int(json.loads(line)["samples"].removeprefix("step-")) <= step:
                    kept.append(line + "\n")
        with writing(self._path):
            self._path.write_text("".join(kept), encoding="utf-8")

    def note(self, step: Step, where: str) -> str | None:
        """Write down the refused rows of `step`; what to tell the user of them.

        Args:
            where: the sample file that has them.

        Raises:
            RunStopped: nothing of the step could be scored: the rows are not at fault.
            NotWritten: the disk is full.
        """
        reasons = {uid: row["refused"] for uid, row in step.rows.items() if row["refused"]}
        if not reasons:
            return None
        first = next(iter(reasons.values()))
        if len(reasons) == len(step.rows):
            raise RunStopped(f"{where}: none of {len(reasons)} answers could be scored: {first}")
        with writing(self._path), self._path.open("a", encoding="utf-8") as out:
            for uid, reason in reasons.items():
                line = {"samples": where, "uid": uid, "reason": reason}
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
        number = len(reasons)
        return (
            f"{where}: {number} of {len(step.rows)} answers not scored ({self._path.name}): {first}"
        )


def told_of_gaps(step: Step, scores_BK: np.ndarray, answers: str) -> str | None:
    """What to tell of `answers`, as the rows of `step` are called, without a score; None: all have
    one.

    Raises:
        RunStopped: none has.
    """
    gaps = np.flatnonzero(~np.isfinite(scores_BK).all(axis=1))
    if not len(gaps):
        return None
    why = step.rows[step.ledger.uids[gaps[0]]]["refused"]
    if len(gaps) == len(scores_BK):
        raise RunStopped(f"none of the {answers} could be scored: {why}")
    return (
        f"{len(gaps)} of {len(scores_BK)} {answers} not scored, the mean of the others is used "
        f"for them: {why}"
    )


def told_of_untrue(step: Step, answers: str) -> str | None:
    """What to tell of `answers`, as the rows of `step` are called, without a true reward; None: all
    have one."""
    gaps = np.flatnonzero(~np.isfinite(step.column("true_reward")))
    if not len(gaps):
        return None
    why = step.rows[step.ledger.uids[gaps[0]]]["refused"] or "it returned no number"
    if len(gaps) == len(step.ledger.uids):
        return f"none of the {answers} has a true reward: {why}"
    return (
        f"{len(gaps)} of {len(step.ledger.uids)} {answers} have no true reward, the figures are "
        f"those of the others: {why}"
    )


def without_gaps(values_BK: np.ndarray, each: int = 1) -> np.ndarray:
    """Rows with a NaN become the mean of the others.

    Args:
        each: so many rows in turn belong to one prompt: of its others, where it has any.

    Raises:
        ValueError: there are no others.
    """
    whole_B = np.isfinite(values_BK).all(axis=1)
    if whole_B.all():
        return values_BK
    if not whole_B.any():
        raise ValueError("no row has all its scores")
    of_all = values_BK[whole_B].mean(axis=0)
    made_BK = values_BK.copy()
    for row in np.flatnonzero(~whole_B):
        prompt = slice(row // each * each, row // each * each + each)
        others = values_BK[prompt][whole_B[prompt]]
        made_BK[row] = others.mean(axis=0) if len(others) else of_all
    return made_BK
