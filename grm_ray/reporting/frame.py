"""The plot area of a chart: where a value lies, and the axes around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from grm_ray.reporting.numbers import tick_labels, ticks

# Units of the drawing: the page scales it to its column and the text with the column's width.
WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 14, 38
PLOT_W, PLOT_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

# Means of equal numbers differ in their last digits: an axis over those has no ticks to tell apart.
_ROUNDING = 1e-9
# Beyond these, sums and steps of an axis leave what a float holds.
_SMALLEST, _LARGEST = 1e-300, 1e300


@dataclass
class Frame:
    """The plot area: where a value lies, and the axes around it."""

    across: tuple[float, float]
    up: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.across
        return LEFT + PLOT_W * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.up
        return TOP + PLOT_H * (1 - (value - low) / (high - low))

    def axes(
        self, unit: str, x_label: str = "step", x_ticks: bool = True, whole: bool | None = None
    ) -> str:
        parts = []
        marks = ticks(*self.up, about=5)
        for value, label in zip(marks, tick_labels(marks), strict=True):
            y = self.y(value)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text class="end" x="{LEFT - 7}" y="{y + 4:.1f}">{label}</text>')
        bottom = HEIGHT - BOTTOM
        if x_ticks:
            parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
            whole = x_label == "step" if whole is None else whole
            steps = ticks(*self.across, about=7, whole=whole)
            for value, label in zip(steps, tick_labels(steps), strict=True):
                x = self.x(value)
                parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v4"/>')
                parts.append(f'<text class="mid" x="{x:.1f}" y="{bottom + 17}">{label}</text>')
        middle = LEFT + PLOT_W / 2
        parts.append(
            f'<text class="mid name" x="{middle}" y="{HEIGHT - 4}">{escape(x_label)}</text>'
        )
        center = TOP + PLOT_H / 2
        parts.append(
            f'<text class="mid name" transform="rotate(-90 7 {center})" '
            f'x="7" y="{center + 3}">{escape(unit)}</text>'
        )
        return "".join(parts)


def span(values: Sequence[float], margin: float, floor: bool = False) -> tuple[float, float]:
    """Lowest and highest of `values` with room of `margin` (a share) around; never empty.

    `floor` leaves no room below: for axes that begin at zero.
    """
    low, high = max(min(values), -_LARGEST), min(max(values), _LARGEST)
    largest = max(abs(low), abs(high))
    if high - low <= max(_ROUNDING * largest, _SMALLEST):
        room = largest * 0.1 if largest > _SMALLEST else 1.0
        return (low if floor and low == 0 else low - room), high + room
    room = (high - low) * margin
    return (low if floor else low - room), high + room
