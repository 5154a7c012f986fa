"""Where the true reward of PPO runs peaks over d = sqrt(KL), and what is left of it at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from grm_ray.reporting.curves import Chart
from grm_ray.reporting.findings import Findings, findings, verdict
from grm_ray.reporting.numbers import pretty
from grm_ray.reporting.overoptimization_tables import fits_table, kept_table
from grm_ray.reporting.run import Run
from grm_ray.reporting.run_plots import PlotCurve, run_chart
from grm_ray.reporting.samples import clean
from grm_ray.reporting.trajectory import Trajectory, read_trajectory
from grm_ray.study.overoptimization import Fit

D_LABEL = "d = √KL to the policy at the start"
ABOUT = (
    "Reward and true reward over the distance of the policy from its start, on held-out prompts; "
    "bands are 95 % intervals over prompts. The dotted curve is the fit with the logarithm. A "
    "reward that still rises while the true reward falls is being over-optimised."
)
_MOST_POINTS = 48
_FEWEST = 3
_REWARDS = {"reward": "Reward: the reward model's score", "true_reward": "True reward"}


def distance_charts(
    found: Sequence[tuple[Trajectory, Findings]], places: dict[str, int] | None = None
) -> list[Chart]:
    """Reward and true reward over d, one curve a run; `places` give one run a colour a kind."""
    charts = []
    for kind, title in _REWARDS.items():
        curves = [
            _curve(trajectory, one, kind, i if places is None else places[kind])
            for i, (trajectory, one) in enumerate(found)
        ]
        svg = run_chart(f"{title} over d", curves, "score", D_LABEL)
        if svg:
            charts.append(Chart(f"{title} over distance", svg, []))
    return charts


def section(run: Run) -> str:
    """The section of a run's own page; empty with fewer than three evaluations with a KL."""
    if run.job != "ppo":
        return ""
    trajectory = read_trajectory(run)
    if max(len(trajectory.with_distance(kind)) for kind in _REWARDS) < _FEWEST:
        return ""
    found = [(trajectory, findings(trajectory))]
    charts = distance_charts(found, {"reward": 0, "true_reward": 1})
    fits = fits_table(found)
    tables = [kept_table(found), *([fits] if fits else [])]
    told = [verdict(found), *trajectory.notes]
    notes = "".join(f'<p class="about">{clean(note)}</p>' for note in told if note)
    return (
        f'<h2>Over-optimisation</h2><p class="about">{ABOUT}</p>{notes}'
        f'<div class="charts">{"".join(chart.html() for chart in charts)}</div>'
        f'<div class="runs">{"".join(table.html() for table in tables)}</div>'
    )


def _curve(trajectory: Trajectory, one: Findings, kind: str, place: int) -> PlotCurve:
    points = sorted(trajectory.with_distance(kind), key=lambda e: e.d or 0.0)
    means = [e.means[kind] for e in points]
    x = [e.d or 0.0 for e in points]
    names = [f"step {e.step}, d {pretty(d)}" for e, d in zip(points, x, strict=True)]
    curve = PlotCurve(
        trajectory.label,
        place,
        x,
        [m.value for m in means],
        [m.low for m in means],
        [m.high for m in means],
        names,
    )
    fit = next((fit for fit, _ in one.fits if fit.form == "log"), None)
    if kind == "true_reward" and fit is not None and one.start and not math.isnan(fit.a):
        curve.fitted = _drawn(fit, one.start.means[kind].value, max(x))
    return curve


def _drawn(fit: Fit, baseline: float, far: float) -> list[tuple[float, float]]:
    ds = [far * i / _MOST_POINTS for i in range(1, _MOST_POINTS + 1)]
    return [(0.0, baseline), *((d, baseline + d * (fit.a - fit.b * math.log(d))) for d in ds)]
