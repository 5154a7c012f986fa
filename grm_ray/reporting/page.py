"""The report of a run: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

import contextlib
import datetime
from html import escape
from pathlib import Path

from grm_ray import __version__
from grm_ray.reporting import overoptimization
from grm_ray.reporting.curves import Chart, charts, more_charts, time_section
from grm_ray.reporting.document import document, put
from grm_ray.reporting.headline import Card, cards, verdict
from grm_ray.reporting.run import Run, read_run
from grm_ray.reporting.samples import clean, conversations, pair

_FOOTER = (
    "<footer>Made by grm_ray {} from the files of this run folder. Point at a chart to see its "
    "values.</footer>"
)
_JOBS = {"ppo": "PPO against a reward model", "rm": "Reward model training"}


def write_report(run_dir: Path, path: Path | None = None) -> Path:
    """Write `run_dir/report.html`, or `path`, from what the run has left so far; returns the path.

    Works at any moment of a run, and after one that was killed: the page says what is missing.

    Raises:
        ValueError: `run_dir` is no folder.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir}: no such folder; a run lives in runs/<name>")
    page = render(read_run(run_dir))
    path = run_dir / "report.html" if path is None else path
    put(path, page)
    return path


def render(run: Run) -> str:
    """The page as text."""
    pairs = pair(run)
    title = f"{run.name} · grm_ray"
    parts = [
        f'<p class="eyebrow">{_JOBS[run.job]}</p><h1>{clean(run.name)}</h1>',
        f'<p class="soft">{_subtitle(run)}</p>',
        _paragraph("verdict", verdict(run, pairs)),
        note_list(run.notes),
        _cards(cards(run, pairs)),
        charts_section("Curves", *charts(run)),
        overoptimization.section(run),
        time_section(run),
        conversations(run, pairs) if run.job == "ppo" else "",
        _more(more_charts(run)),
        _configuration(run),
        _FOOTER.format(escape(__version__)),
    ]
    return document(title, parts)


def _subtitle(run: Run) -> str:
    parts = []
    policy = (run.section("policy") or run.section("model")).get("path")
    rewarded = run.section("reward")
    members = rewarded.get("members")
    several = ", ".join(map(str, members.values())) if isinstance(members, dict) else ""
    reward = rewarded.get("path") or several
    if policy:
        parts.append(f"{'policy' if run.job == 'ppo' else 'backbone'} {clean(policy)}")
    if reward:
        parts.append(f"reward model {clean(reward)}")
    started = run.steps[0].get("time", "") if run.steps else ""
    with contextlib.suppress(OSError, OverflowError, TypeError, ValueError):  # no time at all
        when = datetime.datetime.fromtimestamp(float(started), datetime.UTC)
        parts.append(f"first step {when:%Y-%m-%d %H:%M} UTC")
    return " · ".join(parts)


def _paragraph(kind: str, text: str) -> str:
    return f'<p class="{kind}">{text}</p>' if text else ""


def note_list(notes: list[str]) -> str:
    """What a reader must know, set apart; empty where there is nothing."""
    items = "".join(f"<li>{clean(note)}</li>" for note in notes)
    return f'<ul class="notes" role="note">{items}</ul>' if items else ""


def _cards(found: list[Card]) -> str:
    if not found:
        return ""
    shown = "".join(
        f'<div class="card"><div class="what">{card.what}</div>'
        f'<div class="value">{card.value}</div><div class="more">{card.more}</div></div>'
        for card in found
    )
    return f'<div class="cards">{shown}</div>'


def charts_section(title: str, about: str, found: list[Chart]) -> str:
    """Charts under a title, and what they mean; empty without charts."""
    if not found:
        return ""
    shown = "".join(chart.html() for chart in found)
    return f'<h2>{title}</h2><p class="about">{about}</p><div class="charts">{shown}</div>'


def _more(found: list[Chart]) -> str:
    if not found:
        return ""
    shown = "".join(chart.html() for chart in found)
    return (
        f'<h2>Details</h2><details><summary>More curves</summary><div class="charts">{shown}</div>'
        "</details>"
    )


def _configuration(run: Run) -> str:
    if not run.config_text:
        return ""
    return f"<details><summary>Configuration</summary><pre>{clean(run.config_text)}</pre></details>"
