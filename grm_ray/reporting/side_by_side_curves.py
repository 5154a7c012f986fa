"""Charts over training of several runs, where their time went, and what their guards did."""

from __future__ import annotations

from collections.abc import Sequence

from grm_ray.reporting.curves import Chart, phases
from grm_ray.reporting.numbers import duration, pretty
from grm_ray.reporting.run import Run
from grm_ray.reporting.run_plots import PlotCurve, over_steps, run_chart
from grm_ray.reporting.samples import clean
from grm_ray.reporting.tables import NOTHING, Table, TableCell
from grm_ray.reporting.trajectory import Trajectory

_REWARDS = (
    ("reward", "Reward: the reward model's score"),
    ("true_reward", "True reward: the judge's score"),
)
# Key, title, unit, and whether the axis begins at zero.
_HABITS = (
    ("eval/length", "Length of held-out answers", "tokens", True),
    ("eval/finished", "Held-out answers that end", "share of answers", False),
    ("eval/list_rate", "Held-out answers with a list", "share of answers", True),
    ("eval/repetition", "Repetition in held-out answers", "share of 4-grams", True),
    ("eval/canary", "Canaries answered right", "share of canaries", True),
    ("eval/disagreement", "Disagreement of members, held-out", "standard deviation", True),
    ("reward/disagreement", "Disagreement of members, training", "standard deviation", True),
)
_MOST_ACTIONS = 20
_TIME = (
    "Seconds by the phase that a run was waiting for; all bars have the same scale. The table "
    "gives seconds per step, means over the steps that were timed."
)


def reward_charts(shown: Sequence[Trajectory]) -> list[Chart]:
    """Reward and true reward with their intervals, and the KL of the evaluations, over steps."""
    found = []
    for kind, title in _REWARDS:
        curves = []
        for place, one in enumerate(shown):
            known = one.known(kind)
            means = [e.means[kind] for e in known]
            curves.append(
                PlotCurve(
                    one.label,
                    place,
                    [float(e.step) for e in known],
                    [m.value for m in means],
                    [m.low for m in means],
                    [m.high for m in means],
                )
            )
        found.append((title, run_chart(title, curves, "score", "step", whole=True)))
    curves = [
        over_steps(one.label, i, [float(e.step) for e in one.evaluations], _kls(one), True)
        for i, one in enumerate(shown)
    ]
    title = "KL to the policy at the start"
    svg = run_chart(title, curves, "nats per answer", "step", whole=True, zero=True)
    return [Chart(title, svg, []) for title, svg in [*found, (title, svg)] if svg]


def habit_charts(shown: Sequence[Trajectory]) -> list[Chart]:
    """Length, lists, repetition, disagreement, STARC distance: those that any run has."""
    starc = dict.fromkeys(key for one in shown for key in one.run.keys("") if "starc" in key)
    wanted = [
        *_HABITS,
        *((key, f"STARC distance: {key}", "0 same, 1 opposite", True) for key in starc),
    ]
    charts = []
    for key, title, unit, zero in wanted:
        curves = [_column(one, place, key) for place, one in enumerate(shown)]
        svg = run_chart(title, curves, unit, "step", whole=True, zero=zero)
        if svg:
            charts.append(Chart(clean(title), svg, []))
    return charts


def guard_table(shown: Sequence[Trajectory]) -> Table | None:
    """What guards did and why, the first of each run; None where none did anything."""
    rows: list[list[TableCell]] = []
    for one in shown:
        acted = [row for row in one.run.steps if _action(row.get("guard/action"))]
        for row in acted[:_MOST_ACTIONS]:
            why = str(row.get("guard/reason") or NOTHING)
            rows.append([one.label, _action(row["guard/action"]), why, str(row["step"])])
        if len(acted) > _MOST_ACTIONS:
            rows.append([one.label, f"and {len(acted) - _MOST_ACTIONS} more", "", ""])
    head = ["run", "action", "reason", "step"]
    return Table(head, rows, names=3, prose=True) if rows else None


def time_section(shown: Sequence[Trajectory]) -> str:
    """A bar a run of all its seconds by phase, and a table of seconds per step."""
    names, colors = phases(dict.fromkeys(k for one in shown for k in one.run.keys("phase/")))
    if not names:
        return ""
    totals = [[_spent(one.run, name) for name in names] for one in shown]
    longest = max(sum(row) for row in totals) or 1.0
    bars, rows = [], []
    for one, row in zip(shown, totals, strict=True):
        parts = "".join(
            f'<i class="c{color}" style="width:{100 * seconds / longest:.2f}%" '
            f'title="{clean(name)}: {duration(seconds)}"></i>'
            for name, color, seconds in zip(names, colors, row, strict=True)
            if seconds
        )
        took = duration(sum(row)) if sum(row) else NOTHING
        bars.append(
            f'<div class="soft">{clean(one.label)}: {took}</div><div class="stack">{parts}</div>'
        )
        timed = _timed(one.run, names) or 1
        rows.append([one.label, pretty(sum(row) / timed), *(pretty(s / timed) for s in row)])
    legend = "".join(
        f'<li class="c{color}"><i class="key"></i>{clean(name)}</li>'
        for name, color in zip(names, colors, strict=True)
    )
    return (
        f'<h2>Where the time went</h2><p class="about">{_TIME}</p><figure>'
        f'<figcaption><ul class="legend">{legend}</ul></figcaption>{"".join(bars)}</figure>'
        f'<div class="runs">{Table(["run", "per step", *names], rows).html()}</div>'
    )


def _column(one: Trajectory, place: int, key: str) -> PlotCurve:
    steps = [float(row["step"]) for row in one.run.steps]
    return over_steps(one.label, place, steps, one.run.column(key), key.startswith("eval/"))


def _kls(one: Trajectory) -> list[float | None]:
    return [e.kl for e in one.evaluations]


def _action(value: object) -> str:
    """What a guard did; empty where it let training go on."""
    text = value if isinstance(value, str) else ""
    return "" if text in ("none", "continue") else text


def _spent(run: Run, name: str) -> float:
    return sum(value or 0.0 for value in run.column(f"phase/{name}"))


def _timed(run: Run, names: Sequence[str]) -> int:
    """Steps with any phase: the evaluation before the first step has none."""
    return sum(any(row.get(f"phase/{name}") for name in names) for row in run.steps)
