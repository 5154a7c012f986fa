"""Numbers as people read them: ticks of an axis, durations, scores."""

from __future__ import annotations

import math
from itertools import pairwise


def ticks(low: float, high: float, about: int = 5, whole: bool = False) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) that lie within [low, high].

    Args:
        about: how many to aim for.
        whole: whole numbers only, for an axis of steps.
    """
    span = high - low
    if span <= 0:
        return [low]
    raw = span / max(1, about - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.7)
    if whole:
        step = max(1.0, float(round(step)))
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [(first + i) * step for i in range(count)]


def tick_labels(values: list[float]) -> list[str]:
    """One way of writing for all of an axis, with no more digits than its steps need."""
    if not values:
        return []
    largest = max(abs(v) for v in values)
    gap = min((b - a for a, b in pairwise(values)), default=largest or 1.0)
    if largest and (largest < 1e-3 or largest >= 1e7):
        return [_scientific(v, 1).replace(".0e", "e") if v else "0" for v in values]
    if largest >= 10_000:
        digits = max(0, -math.floor(math.log10(gap / 1000) + 1e-9))
        return [minus(f"{v / 1000:.{digits}f}k") if v else "0" for v in values]
    digits = max(0, -math.floor(math.log10(gap) + 1e-9))
    return [minus(f"{v:.{digits}f}") for v in values]


def pretty(value: float | None, digits: int = 3) -> str:
    """About `digits` significant digits, thousands apart, a real minus sign; `–` for None."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3 or size >= 1e7:
        return _scientific(value, digits - 1)
    places = max(0, digits - 1 - math.floor(math.log10(size)))
    return minus(f"{value:,.{min(places, digits)}f}")


def signed(value: float | None, digits: int = 3) -> str:
    """As `pretty`, with a plus where the value is above zero."""
    text = pretty(value, digits)
    return f"+{text}" if value is not None and value > 0 else text


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"


def _scientific(value: float, digits: int) -> str:
    return minus(f"{value:.{digits}e}".replace("e-0", "e-").replace("e+0", "e"))


def minus(text: str) -> str:
    """A hyphen in front of a number as the minus sign it stands for."""
    return text.replace("-", "−")
