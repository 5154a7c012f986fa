"""Tables of true rewards that peak and fall: what was kept, and the curves fitted to them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from grm_ray.reporting.findings import FORMS, Findings
from grm_ray.reporting.numbers import pretty, signed
from grm_ray.reporting.tables import NOTHING, Figure, Table, TableCell, fixed, shortened
from grm_ray.reporting.trajectory import EvaluationPoint, Trajectory
from grm_ray.study.intervals import Interval
from grm_ray.study.kept import KeptInterval
from grm_ray.study.overoptimization import Fit


def kept_table(found: Sequence[tuple[Trajectory, Findings]]) -> Table:
    """A row a run: start, highest and last true reward, and how much of the gain was kept."""
    rows: list[list[TableCell]] = []
    for trajectory, one in found:
        rows.append(
            [
                trajectory.label,
                _reward(one.start),
                _reward(one.highest, place=True),
                _reward(one.end, place=True),
                NOTHING if one.kept is None else _share(one.kept),
                NOTHING if one.peak is None else _fall(one.peak.fall),
            ]
        )
    of: dict[str, list[str]] = {}
    for trajectory, one in found:
        if why := one.reason or _note(one):
            of.setdefault(why, []).append(shortened(trajectory.label))
    reasons = [f"{', '.join(labels)}: {why}." for why, labels in of.items()]
    return Table(
        ["run", "start", "highest", "end", "gain kept", "end minus highest"],
        rows,
        title="True reward on held-out prompts",
        note=(
            "Gain kept: gain of the last evaluation over the start, as a share of the highest "
            "gain. The highest of several is partly chance: in the two columns at the right each "
            "half of the prompts is measured where the other half is highest, so that the share "
            "can exceed 100 %. In brackets: 95 % intervals over prompts. " + " ".join(reasons)
        ).strip(),
    )


def fits_table(found: Sequence[tuple[Trajectory, Findings]]) -> Table | None:
    """Two rows a run, one a curve, with the peak that it predicts or why it shows none."""
    rows: list[list[TableCell]] = []
    for trajectory, one in found:
        for i, (fit, place) in enumerate(one.fits):
            name = trajectory.label if i == 0 else ""
            cells = [pretty(v) for v in (fit.a, fit.b, fit.rmse)]
            rows.append([name, FORMS[fit.form], _peak_words(fit, place), *cells])
    if not rows:
        return None
    return Table(
        ["run", "R(d)", "predicted peak", "a", "b", "RMSE"],
        rows,
        title="Curves fitted to the true reward above that of the start",
        names=3,
        prose=True,
        note=(
            "Least squares over evaluations with d above 0, with the natural logarithm. A peak is "
            "identified if there are evaluations on both sides of it; its interval is a bootstrap "
            "over prompts, and a bound at the largest d means that d or a larger one."
        ),
    )


def _peak_words(fit: Fit, place: Interval | None) -> str:
    if not fit.identified:
        return f"not identified: {fit.reason}"
    bounds = ""
    if place is not None and not math.isnan(place.low):
        bounds = f" ({pretty(place.low)} to {pretty(place.high)})"
    return f"d = {pretty(fit.peak)}{bounds}, {signed(fit.peak_value)} above the start"


def _note(one: Findings) -> str:
    return "" if one.kept is None else one.kept.note


def _reward(evaluation: EvaluationPoint | None, place: bool = False) -> TableCell:
    if evaluation is None:
        return NOTHING
    value = pretty(evaluation.means["true_reward"].value)
    if not place:
        return value
    at = "" if evaluation.d is None else f", d {pretty(evaluation.d)}"
    return Figure(value, f"step {evaluation.step}{at}")


def _share(kept: KeptInterval) -> TableCell:
    found = kept.share
    if math.isnan(found.mean):
        return NOTHING
    mean, low, high = (fixed(v, 0, 100) for v in (found.mean, found.low, found.high))
    return Figure(f"{mean}\u00a0%", "" if math.isnan(found.low) else f"{low} to {high}")


def _fall(found: Interval) -> TableCell:
    bounds = "" if math.isnan(found.low) else f"{signed(found.low)} to {signed(found.high)}"
    return Figure(signed(found.mean), bounds)
