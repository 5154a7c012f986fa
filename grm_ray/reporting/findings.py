"""What the true rewards of a PPO run come to: the peak, what is left of it, and fitted curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from grm_ray.reporting.tables import shortened
from grm_ray.reporting.trajectory import EvaluationPoint, Trajectory, paired
from grm_ray.study.intervals import Interval
from grm_ray.study.kept import KeptInterval, bootstrap_kept
from grm_ray.study.overoptimization import (
    Fit,
    Form,
    Peak,
    bootstrap_fitted_peak,
    bootstrap_peak,
    fit_curve,
    kept_share,
)

FORMS: dict[Form, str] = {"log": "d (a − b log d)", "quadratic": "d (a − b d)"}
# Draws of prompts for the place of a fitted peak: each draw is a fit.
_DRAWS = 500


@dataclass(frozen=True)
class Findings:
    """What a run's true rewards come to; `reason` says why there is nothing more.

    `fits` have the place of the peak with its interval where prompts were kept.
    """

    start: EvaluationPoint | None
    highest: EvaluationPoint | None
    end: EvaluationPoint | None
    kept: KeptInterval | None
    peak: Peak | None
    fits: Sequence[tuple[Fit, Interval | None]]
    reason: str = ""


def findings(trajectory: Trajectory) -> Findings:
    """Highest and last evaluation, the share kept, and the two curves."""
    known = trajectory.known("true_reward")
    none = Findings(None, None, None, None, None, [])
    if not trajectory.evaluations:
        return replace(none, reason="no evaluation yet")
    if not known:
        return replace(none, reason="no true reward was watched")
    start = known[0] if known[0].step == 0 else None
    after = known if start is None else known[1:]
    if start is None or not after:
        reason = "no evaluation before training" if start is None else "no evaluation since"
        return Findings(start, None, known[-1], None, None, [], reason)
    baseline = start.means["true_reward"].value
    means = [e.means["true_reward"].value for e in after]
    highest = after[int(np.argmax(means))]
    rewards_SP, reason = paired(known)
    peak = None
    if rewards_SP is None:
        kept = kept_share(means, baseline)
        nothing = Interval(kept.share, math.nan, math.nan, 0, 0)
        share = KeptInterval(nothing, kept.note or reason)
    else:
        share = bootstrap_kept(rewards_SP[1:], rewards_SP[0])
        peak = bootstrap_peak([e.step for e in known], rewards_SP)
    fits = [_fitted(trajectory, form) for form in FORMS]
    return Findings(start, highest, after[-1], share, peak, fits)


def verdict(found: Sequence[tuple[Trajectory, Findings]]) -> str:
    """One sentence on the runs that show over-optimisation; empty without any."""
    fooled = [shortened(one.label) for one, made in found if _is_fooled(one, made)]
    if not fooled:
        return ""
    names = fooled[0] if len(fooled) == 1 else f"{', '.join(fooled[:-1])} and {fooled[-1]}"
    return (
        f"In {names} the true reward fell after its peak (the interval excludes 0) while the "
        "reward rose: a sign of over-optimisation."
    )


def _is_fooled(trajectory: Trajectory, one: Findings) -> bool:
    if one.peak is None or not one.peak.fall.high < 0:
        return False
    known = trajectory.known("true_reward")
    peak, end = (e.means.get("reward") for e in (known[one.peak.evaluation], known[-1]))
    return peak is not None and end is not None and end.value > peak.value


def _fitted(trajectory: Trajectory, form: Form) -> tuple[Fit, Interval | None]:
    points = trajectory.with_distance("true_reward")
    start, after = points[0], points[1:]
    kl = [max(0.0, e.kl or 0.0) for e in after]
    means = [e.means["true_reward"].value for e in after]
    fit = fit_curve(kl, means, start.means["true_reward"].value, form)
    rewards_SP, _ = paired(points)
    if rewards_SP is None or not fit.identified:
        return fit, None
    return fit, bootstrap_fitted_peak(kl, rewards_SP[1:], rewards_SP[0], form, _DRAWS)
