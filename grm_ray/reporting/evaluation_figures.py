"""What the tables of an evaluation are made of: sections, and figures read from its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grm_ray.reporting.samples import clean
from grm_ray.reporting.tables import NOTHING, Figure, Table, fixed

Result = dict[str, Any]
LONGER = "the longer answer wins"


@dataclass(frozen=True)
class ReportSection:
    """Tables under a title, and what their figures mean; `folded` hides them behind the title."""

    title: str
    about: str
    tables: Sequence[Table]
    folded: bool = False

    def html(self) -> str:
        inside = f'<p class="about">{clean(self.about)}</p>' + "".join(
            table.html() for table in self.tables
        )
        if self.folded:
            return f"<details><summary>{clean(self.title)}</summary>{inside}</details>"
        return f"<h2>{clean(self.title)}</h2>{inside}"


def at(result: Any, *keys: str) -> Any:
    """`result[keys[0]][keys[1]]...`, None where a step is missing."""
    for key in keys:
        if not isinstance(result, dict):
            return None
        result = result.get(key)
    return result


def interval(found: Any, digits: int, factor: float = 1, sign: str = "") -> Figure:
    """A mean with its bounds, which are left out where there are none."""
    low, high = (fixed(at(found, key), digits, factor) for key in ("low", "high"))
    dash = " to " if low.startswith("−") else "–"
    more = "" if NOTHING in (low, high) else f"{low}{dash}{high}"
    return Figure(fixed(at(found, "mean"), digits, factor), more, sign)


def share(found: Any, sign: str = "") -> Figure:
    """`interval` of a share, in percent."""
    return interval(found, 1, 100, sign)


def points(found: Any) -> Figure:
    """A difference of two shares with its interval, in percentage points."""
    low, high = (fixed(at(found, key), 1, 100, plus=True) for key in ("low", "high"))
    more = "" if NOTHING in (low, high) else f"{low} to {high}"
    return Figure(fixed(at(found, "mean"), 1, 100, plus=True), more)


def grouped(
    result: Result,
    figures: Callable[[Result], list[str | Figure]],
    wanted: Callable[[Result], bool] = bool,
    only: str | None = None,
) -> list[list[str | Figure]]:
    """Rows of set, model and `figures`; the set is named where its rows begin."""
    rows: list[list[str | Figure]] = []
    for name in result["sets"] if only is None else [only]:
        shown = name
        for model in result["models"]:
            found = at(result, "results", name, model)
            if found is not None and wanted(found):
                rows.append([shown, model, *figures(found)])
                shown = ""
    return rows


def sizes(found: Any) -> str:
    """How many contests, and prompts, a figure rests on."""
    known = [at(found, "contests"), at(found, "prompts")]
    return " / ".join(NOTHING if size is None else f"{size:,}" for size in known)
