"""Several PPO runs on one page: rewards over distance and over steps, and what sets them apart."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from grm_ray import __version__
from grm_ray.reporting.disputed import disputed
from grm_ray.reporting.document import document, put
from grm_ray.reporting.evaluation_plots import keys
from grm_ray.reporting.findings import findings, verdict
from grm_ray.reporting.overoptimization import ABOUT, distance_charts
from grm_ray.reporting.overoptimization_tables import fits_table, kept_table
from grm_ray.reporting.page import charts_section, note_list
from grm_ray.reporting.run import Run
from grm_ray.reporting.samples import clean
from grm_ray.reporting.settings import differing
from grm_ray.reporting.side_by_side_curves import (
    guard_table,
    habit_charts,
    reward_charts,
    time_section,
)
from grm_ray.reporting.tables import shortened
from grm_ray.reporting.trajectory import Trajectory, read_trajectory

_FOOTER = (
    "<footer>Made by grm_ray {} from the files of these run folders. Point at a mark to see its "
    "values.</footer>"
)
_STEPS = "The same over updates of the policy. Held-out prompts, with 95 % intervals over prompts."
_HABITS = (
    "Features of answers that a reward model may prefer although the answers are not better, and "
    "the disagreement of the reward models of an ensemble: both tend to rise when a reward is "
    "being over-optimised."
)
_GUARD = "When the guard of a run acted, and its reason."
_SETTINGS = "From each run's config.yaml: settings that are the same in all runs are left out."
_ALIKE = '<p class="about">All settings are the same.</p>'


def write_side_by_side(runs: Sequence[Run], path: Path, notes: Sequence[str] = ()) -> Path:
    """Write the page of `runs` to `path`, and return it.

    Args:
        runs: PPO runs, one or more, finished or not.
        notes: what a reader must know of the choice of runs.
    """
    put(path, render(runs, notes))
    return path


def render(runs: Sequence[Run], notes: Sequence[str] = ()) -> str:
    """The page as text."""
    labels = _labels(runs)
    shown = [read_trajectory(run, label) for run, label in zip(runs, labels, strict=True)]
    found = [(one, findings(one)) for one in shown]
    told = verdict(found)
    count = f"{len(runs)} run{'s'[: len(runs) != 1]}"
    legend = f'<div class="keys">{keys(labels)}</div>'
    fits = fits_table(found)
    tables = [kept_table(found), *([fits] if fits else [])]
    guard, settings = guard_table(shown), differing(labels, [run.config for run in runs])
    parts = [
        f'<p class="eyebrow">PPO against a reward model</p><h1>{count} side by side</h1>',
        f'<p class="soft">{clean(_policies(runs))}</p>',
        f'<p class="verdict">{clean(told)}</p>' if told else "",
        note_list([*notes, *_notes(shown)]),
        legend,
        charts_section("Over-optimisation", ABOUT, distance_charts(found))
        or "<h2>Over-optimisation</h2>",
        f'<div class="runs">{"".join(table.html() for table in tables)}</div>',
        charts_section("Over training", _STEPS, reward_charts(shown)),
        charts_section("Habits of the answers", _HABITS, habit_charts(shown)),
        _table("The guard", _GUARD, guard.html()) if guard else "",
        time_section(shown),
        _table("Settings that differ", _SETTINGS, settings.html() if settings else _ALIKE),
        disputed(shown),
        _FOOTER.format(escape(__version__)),
    ]
    return document(f"{count} side by side · grm_ray", parts)


def _table(title: str, about: str, inside: str) -> str:
    return f'<h2>{title}</h2><p class="about">{about}</p><div class="runs">{inside}</div>'


def _labels(runs: Sequence[Run]) -> list[str]:
    """The names of the runs, with as much of their folders as tells equals apart."""
    labels = [run.name for run in runs]
    for depth in (1, 2, 3):
        if len(set(labels)) == len(labels):
            return labels
        labels = [
            label if labels.count(label) == 1 else "/".join(run.folder.resolve().parts[-depth:])
            for label, run in zip(labels, runs, strict=True)
        ]
    twice = {label for label in labels if labels.count(label) > 1}
    return [f"{label} ({i})" if label in twice else label for i, label in enumerate(labels, 1)]


def _policies(runs: Sequence[Run]) -> str:
    """What all runs train and against what, where that is the same for all."""
    parts = []
    for key, words in (("policy", "policy"), ("reward", "reward model")):
        found = {str(run.section(key).get("path") or "") for run in runs}
        if len(found) == 1 and (path := found.pop()):
            parts.append(f"{words} {path}")
    return " · ".join(parts)


def _notes(shown: Sequence[Trajectory]) -> list[str]:
    """The notes of each run, those that several have in one line."""
    of: dict[str, list[str]] = {}
    for one in shown:
        for note in [*one.run.notes, *one.notes]:
            of.setdefault(note, []).append(shortened(one.label))
    return [f"{', '.join(labels)}: {note}" for note, labels in of.items()]
