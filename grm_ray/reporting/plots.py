"""Small charts as inline SVG: lines with intervals, stacked bars, bars of changes.

Colours are CSS classes (`c0`, `c1`, ...) that the page defines for light and dark; series also
differ by their marks, so that none depends on colour alone. Hovering a step shows its values
(SVG titles): the page needs no script.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from grm_ray.reporting.frame import (
    HEIGHT,
    LEFT,
    PLOT_H,
    PLOT_W,
    RIGHT,
    TOP,
    WIDTH,
    Frame,
    span,
)
from grm_ray.reporting.numbers import pretty

# More points than this are averaged over equal numbers of steps: an eye tells no more apart.
MAX_POINTS = 160
MAX_BARS = 48


@dataclass
class Series:
    """Values over steps; None leaves a gap. `low`/`high` draw an interval at each point.

    `marks`: "line" (a line, with dots while they are few) or "points" (diamonds joined by dashes).
    """

    label: str
    x: list[float]
    y: list[float | None]
    color: int = 0
    marks: str = "line"
    low: list[float | None] = field(default_factory=list)
    high: list[float | None] = field(default_factory=list)

    def points(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if y is not None]


def line_chart(
    title: str,
    series: Sequence[Series],
    unit: str,
    zero: bool = False,
    guide: float | None = None,
    across: str = "step",
) -> str:
    """Lines over steps. `zero`: the axis begins at 0; `guide`: a dotted level, such as chance.

    `across`: what x is, if not steps; its ticks are then no whole numbers.
    """
    values = [v for s in series for column in (s.y, s.low, s.high) for v in column if v is not None]
    # All steps of the run, known values or not: charts side by side share their axis.
    steps = [x for s in series for x in s.x]
    if not values:
        return ""
    if guide is not None:
        values.append(guide)
    frame = Frame(span(steps, 0.0), span(values + [0.0] * zero, 0.06, floor=zero))
    parts = [frame.axes(unit, across)]
    if guide is not None:
        y = frame.y(guide)
        parts.append(f'<path class="guide" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
    parts += [_draw(s, frame) for s in series]
    parts.append(_hover(series, frame, across))
    return _svg(title, "".join(parts))


def stacked_bars(
    title: str,
    labels: Sequence[str],
    x: Sequence[float],
    rows: Sequence[Sequence[float]],
    colors: Sequence[int],
) -> str:
    """One bar a step (an average over steps where they are many), one part a label, in seconds.

    Args:
        rows: shape (steps, labels).
        colors: number of the colour class of each label.
    """
    if not rows:
        return ""
    groups = _groups(len(rows), MAX_BARS)
    heights = [[sum(rows[i][k] for i in g) / len(g) for k in range(len(labels))] for g in groups]
    top = max(sum(bar) for bar in heights)
    frame = Frame((x[0] - 0.5, x[-1] + 0.5), span([0.0, top or 1.0], 0.04, floor=True))
    slot = PLOT_W / len(groups)
    wide = min(slot * 0.78, 46)
    many = len(groups) < len(rows)
    unit = f"seconds, means of ~{len(groups[0])} steps" if many else "seconds"
    parts = [frame.axes(unit)]
    for place, (group, bar) in enumerate(zip(groups, heights, strict=True)):
        left, base = LEFT + slot * (place + 0.5) - wide / 2, 0.0
        shapes = []
        for k, value in enumerate(bar):
            y = frame.y(base + value)
            tall = frame.y(base) - y
            if tall > 0.05:
                shapes.append(
                    f'<rect class="c{colors[k]} bar" x="{left:.1f}" y="{y:.2f}" '
                    f'width="{wide:.1f}" height="{tall:.2f}"/>'
                )
            base += value
        told = "\n".join(f"{name}: {pretty(v)} s" for name, v in zip(labels, bar, strict=True))
        steps = _steps_named(x[group[0]], x[group[-1]])
        parts.append(f"<g>{''.join(shapes)}<title>{escape(steps + chr(10) + told)}</title></g>")
    return _svg(title, "".join(parts))


def change_bars(title: str, changes: Sequence[float], marked: Sequence[int], unit: str) -> str:
    """Changes from the largest loss to the largest gain, one bar each; `marked` get a dot."""
    if not changes:
        return ""
    frame = Frame((0, len(changes)), span([0.0, *changes], 0.08))
    slot = PLOT_W / len(changes)
    zero = frame.y(0)
    parts = [frame.axes(unit, x_label="held-out answers, sorted by change", x_ticks=False)]
    for place, index in enumerate(sorted(range(len(changes)), key=lambda i: changes[i])):
        value, middle = changes[index], LEFT + slot * (place + 0.5)
        y, wide = frame.y(value), min(slot * 0.8, 22)
        kind = "gain" if value > 0 else "loss"
        shape = (
            f'<rect class="{kind}" x="{middle - wide / 2:.1f}" y="{min(y, zero):.2f}" '
            f'width="{wide:.1f}" height="{max(abs(y - zero), 0.6):.2f}"/>'
        )
        if index in marked:
            at = y - 7 if value > 0 else y + 7
            shape += f'<circle class="marked" cx="{middle:.1f}" cy="{at:.1f}" r="3"/>'
        parts.append(f"<g>{shape}<title>{escape(pretty(value))}</title></g>")
    parts.append(f'<path class="axis" d="M{LEFT} {zero:.1f}H{WIDTH - RIGHT}"/>')
    return _svg(title, "".join(parts))


def _draw(s: Series, frame: Frame) -> str:
    parts, path, pen = [], [], "M"
    for x, y in zip(s.x, s.y, strict=True):
        if y is None:
            # Held-out results come every few steps: between them lies no gap.
            pen = pen if s.marks == "points" else "M"
            continue
        path.append(f"{pen}{frame.x(x):.1f} {frame.y(y):.1f}")
        pen = "L"
    for x, low, high in zip(s.x, s.low, s.high, strict=False):
        if low is not None and high is not None:
            at, a, b = frame.x(x), frame.y(low), frame.y(high)
            d = f"M{at:.1f} {a:.1f}V{b:.1f}M{at - 4:.1f} {a:.1f}h8M{at - 4:.1f} {b:.1f}h8"
            parts.append(f'<path class="c{s.color} whisker" d="{d}"/>')
    dashed = " dashed" if s.marks == "points" else ""
    parts.append(f'<path class="c{s.color} line{dashed}" d="{"".join(path)}"/>')
    points = s.points()
    if s.marks == "points":
        for x, y in points:
            d = f"M{frame.x(x):.1f} {frame.y(y) - 5:.1f}l5 5l-5 5l-5-5z"
            parts.append(f'<path class="c{s.color} diamond" d="{d}"/>')
    elif len(points) <= 40:
        for x, y in points:
            where = f'cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}"'
            parts.append(f'<circle class="c{s.color} dot" {where} r="2.6"/>')
    return "".join(parts)


def _hover(series: Sequence[Series], frame: Frame, across: str) -> str:
    told: dict[float, list[str]] = {}
    for s in series:
        for i, (x, y) in enumerate(zip(s.x, s.y, strict=True)):
            if y is None:
                continue
            bounds = ""
            if i < len(s.low) and s.low[i] is not None:
                bounds = f" ({pretty(s.low[i])} to {pretty(s.high[i])})"
            told.setdefault(x, []).append(f"{s.label}: {pretty(y)}{bounds}")
    xs = sorted(told)
    strips = []
    for i, x in enumerate(xs):
        at = frame.x(x)
        left = LEFT if i == 0 else (frame.x(xs[i - 1]) + at) / 2
        right = WIDTH - RIGHT if i == len(xs) - 1 else (at + frame.x(xs[i + 1])) / 2
        at_x = _steps_named(x, x) if across == "step" else f"{across}: {pretty(x)}"
        text = escape("\n".join([at_x, *told[x]]))
        strips.append(
            f'<g class="strip"><rect x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" '
            f'height="{PLOT_H}"/><path d="M{at:.1f} {TOP}v{PLOT_H}"/><title>{text}</title></g>'
        )
    return "".join(strips)


def thinned(s: Series) -> Series:
    """`s`, or its averages over runs of steps (named in the label) where points are too many."""
    if len(s.points()) <= MAX_POINTS or s.marks == "points":
        return s
    x, y = [], []
    groups = _groups(len(s.x), MAX_POINTS)
    for group in groups:
        values = [v for i in group if (v := s.y[i]) is not None]
        x.append((s.x[group[0]] + s.x[group[-1]]) / 2)
        y.append(sum(values) / len(values) if values else None)
    return Series(f"{s.label} (means of ~{len(groups[0])} steps)", x, y, s.color)


def _groups(count: int, most: int) -> list[range]:
    """0..count-1 in at most `most` runs whose lengths differ by no more than one."""
    parts = min(count, most)
    return [range(i * count // parts, (i + 1) * count // parts) for i in range(parts)]


def _steps_named(first: float, last: float) -> str:
    return f"step {first:.0f}" if first == last else f"steps {first:.0f} to {last:.0f}"


def _svg(title: str, inside: str) -> str:
    label = escape(title)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{inside}</svg>'
