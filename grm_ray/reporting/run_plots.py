"""Curves of several runs in one chart, with bands for intervals and the curves fitted to them.

A run is told by colour and by the shape of its mark, the same in every chart of a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from grm_ray.reporting.evaluation_plots import COLORS, mark_of
from grm_ray.reporting.frame import HEIGHT, WIDTH, Frame, span
from grm_ray.reporting.numbers import pretty
from grm_ray.reporting.plots import Series, thinned
from grm_ray.reporting.samples import clean

# With more points than this a curve goes without marks.
_MOST_MARKS = 40


@dataclass
class PlotCurve:
    """Points of one run, `place` its number on the page; `low` and `high` are None or a bound each.

    `names` say what a point is when it is pointed at; `fitted` is a dotted curve through the
    plot; `marked` points have a mark each while they are few.
    """

    label: str
    place: int
    x: list[float]
    y: list[float]
    low: list[float | None] = field(default_factory=list)
    high: list[float | None] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    fitted: list[tuple[float, float]] = field(default_factory=list)
    marked: bool = True


def run_chart(
    title: str,
    curves: Sequence[PlotCurve],
    unit: str,
    x_label: str,
    whole: bool = False,
    zero: bool = False,
) -> str:
    """The curves as SVG; `whole`: x is a number of steps; `zero`: y begins at 0."""
    curves = [curve for curve in curves if curve.x]
    if not curves:
        return ""
    values = [v for c in curves for v in [*c.y, *c.low, *c.high] if v is not None]
    values += [y for c in curves for _, y in c.fitted]
    across = [0.0, *(x for c in curves for x in c.x)]
    frame = Frame(span(across, 0.02, floor=True), span(values + [0.0] * zero, 0.06, floor=zero))
    parts = [frame.axes(unit, x_label, whole=whole)]
    parts += [_shade(c, frame) for c in curves]
    parts += [_fitted(c, frame) for c in curves if c.fitted]
    parts += [_line(c, frame) for c in curves]
    parts += [_points(c, frame) for c in curves]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{clean(title)}">'
        f"{''.join(parts)}</svg>"
    )


def over_steps(
    label: str, place: int, steps: list[float], values: list[float | None], marked: bool
) -> PlotCurve:
    """A curve of one number a step, averaged over steps where they are many."""
    known = thinned(Series(label, steps, values)).points()
    x, y = [x for x, _ in known], [y for _, y in known]
    return PlotCurve(label, place, x, y, marked=marked or len(x) == 1)


def _shade(curve: PlotCurve, frame: Frame) -> str:
    """The interval as a band, broken where a point has none."""
    parts, corners = [], []
    bounds = [*zip(curve.x, curve.low, curve.high, strict=False), (0.0, None, None)]
    for x, low, high in bounds:
        if low is not None and high is not None:
            corners.append((frame.x(x), frame.y(low), frame.y(high)))
            continue
        if len(corners) > 1:
            up = "L".join(f"{x:.1f} {y:.1f}" for x, _, y in corners)
            back = "".join(f"L{x:.1f} {y:.1f}" for x, y, _ in reversed(corners))
            parts.append(f'<path class="c{_color(curve)} shade" d="M{up}{back}Z"/>')
        corners = []
    return "".join(parts)


def _line(curve: PlotCurve, frame: Frame) -> str:
    path = "L".join(
        f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in zip(curve.x, curve.y, strict=True)
    )
    return f'<path class="c{_color(curve)} line thin" d="M{path}"/>'


def _fitted(curve: PlotCurve, frame: Frame) -> str:
    parts = [
        f"M{frame.x(x):.1f} {frame.y(y):.1f}L{frame.x(u):.1f} {frame.y(v):.1f}"
        for (x, y), (u, v) in pairwise(curve.fitted)
    ]
    return f'<path class="c{_color(curve)} fitted" d="{"".join(parts)}"/>'


def _points(curve: PlotCurve, frame: Frame) -> str:
    """A mark a point, or one that is not seen where they are many, and what it says."""
    parts = []
    marked = curve.marked and len(curve.x) <= _MOST_MARKS
    for i, (x, y) in enumerate(zip(curve.x, curve.y, strict=True)):
        at, up = frame.x(x), frame.y(y)
        low = curve.low[i] if i < len(curve.low) else None
        high = curve.high[i] if i < len(curve.high) else None
        bounds = "" if low is None or high is None else f" ({pretty(low)} to {pretty(high)})"
        name = curve.names[i] if curve.names else f"step {x:.0f}"
        told = f"{curve.label}, {name}: {pretty(y)}{bounds}"
        shown = mark_of(curve.place, at, up) if marked else ""
        hit = f'<circle class="hit" cx="{at:.1f}" cy="{up:.1f}" r="9"/>'
        parts.append(f'<g class="point">{hit}{shown}<title>{clean(told)}</title></g>')
    return "".join(parts)


def _color(curve: PlotCurve) -> int:
    return curve.place % COLORS
