"""The plots of an evaluation: accuracies with their intervals, and how far confidence is earned.

A model is told by colour and by the shape of its mark, which is the same in every plot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grm_ray.reporting.evaluation_figures import LONGER, Result, at, share
from grm_ray.reporting.frame import HEIGHT, WIDTH, Frame, span
from grm_ray.reporting.numbers import tick_labels, ticks
from grm_ray.reporting.samples import clean
from grm_ray.reporting.style import LIGHT
from grm_ray.reporting.tables import NOTHING, finite, shortened

# Six colours and seven shapes: it takes 43 models for two to look alike.
COLORS = 6
_SHAPES = (
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",  # disc
    "m0-5.4l5.4 5.4l-5.4 5.4l-5.4-5.4z",  # diamond
    "m-3.7-3.7h7.4v7.4h-7.4z",  # square
    "m0-5.2l5 8.6h-10z",  # triangle
    "m0 5.2l5-8.6h-10z",  # triangle on its tip
    "m-1.6-5h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4z",  # cross
    "m-4.6-4.6h9.2l-9.2 9.2h9.2z",  # hourglass
)
# Units of the drawing, near pixels on a wide screen.
_WIDE, _NAMES, _RIGHT, _PAD = 880, 192, 16, 11
# A bin of fewer pairs says more about chance than about the model.
_FEW = 10
_ALONE = (
    "text{{font:11px system-ui,sans-serif;fill:{soft}}}.end{{text-anchor:end}}"
    ".mid{{text-anchor:middle}}.strong{{fill:{ink};font-size:12.5px}}.band{{fill:{tint}}}"
    ".grid{{stroke:{rule};fill:none}}.axis{{stroke:{soft};stroke-opacity:.55;fill:none}}"
    ".guide{{stroke:{soft};stroke-dasharray:2 4;fill:none}}"
    ".longer{{stroke:{ink};stroke-width:2;fill:none}}"
    ".whisker{{stroke-width:1.6;fill:none}}.mark{{stroke:{card}}}{colors}"
)


def accuracy_plot(result: Result) -> str:
    """A band a set, in it a lane a model: its accuracy and interval over guessing and length.

    Empty where no accuracy is known.
    """
    models, sets = list(result["models"]), result["sets"]
    found = [
        *(at(result, "results", name, model, "accuracy") for name in sets for model in models),
        *(at(of_set, "longer_wins", "accuracy") for of_set in sets.values()),
    ]
    known = [
        100 * min(1.0, max(0.0, value))
        for one in found
        for key in ("mean", "low", "high")
        if (value := finite(at(one, key))) is not None
    ]
    if not known:
        return ""
    low, high = span([50.0, *known], 0.03)
    low, high = max(0.0, low), min(100.0, high)

    def x(value: float) -> float:
        here = min(high, max(low, 100 * value))
        return _NAMES + (_WIDE - _NAMES - _RIGHT) * (here - low) / (high - low)

    lane = 15 if len(models) <= 5 else 12
    tall = max(lane * len(models), 26) + 2 * _PAD
    legend, top = _legend(models)
    bottom = top + tall * len(sets)
    bands = [
        f'<rect class="band" x="0" y="{top + tall * i}" width="{_WIDE}" height="{tall}"/>'
        for i in range(0, len(sets), 2)
    ]
    marks = ticks(low, high, about=8)
    axis = [f'<path class="axis" d="M{_NAMES} {bottom}H{_WIDE - _RIGHT}"/>']
    for value, label in zip(marks, tick_labels(marks), strict=True):
        axis.append(f'<path class="grid" d="M{x(value / 100):.1f} {top}V{bottom}"/>')
        for y in (top - 6, bottom + 16):
            axis.append(f'<text class="mid" x="{x(value / 100):.1f}" y="{y}">{label}</text>')
    axis.append(f'<path class="guide" d="M{x(0.5):.1f} {top}V{bottom}"/>')
    middle = (_NAMES + _WIDE - _RIGHT) / 2
    axis.append(f'<text class="mid" x="{middle}" y="{bottom + 34}">accuracy, %</text>')
    rows = []
    for place, (name, of_set) in enumerate(sets.items()):
        start = top + tall * place
        rows.append(_band_name(name, of_set, start + tall / 2))
        rows.append(_longer(of_set, x, start + 4, tall - 8))
        first = start + tall / 2 - lane * (len(models) - 1) / 2
        for i, model in enumerate(models):
            of_model = at(result, "results", name, model, "accuracy")
            rows.append(_lane(i, model, name, of_model, x, first + lane * i))
    inside = "".join([legend, *bands, *axis, *rows])
    return (
        f'<svg viewBox="{-_PAD} 0 {_WIDE + 2 * _PAD} {bottom + 46}" role="img" '
        f'aria-label="Accuracy of each model on each set">{inside}</svg>'
    )


def standalone(svg: str) -> str:
    """`svg` with colours and ground of its own, as a file that any viewer shows."""
    colors = "".join(
        f".c{i}.whisker{{stroke:{LIGHT[f'c{i}']}}}.c{i}.mark{{fill:{LIGHT[f'c{i}']}}}"
        for i in range(COLORS)
    )
    style = _ALONE.format(
        **{k: LIGHT[k] for k in ("soft", "ink", "tint", "rule", "card")}, colors=colors
    )
    head, inside = svg.split(">", 1)
    left, top, wide, tall = head.split('"')[1].split()
    size = f'width="{wide}" height="{tall}"'
    return (
        f'{head} xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>'
        f'<rect x="{left}" y="{top}" {size} fill="#ffffff"/>{inside}\n'
    )


def reliability_plot(result: Result, name: str) -> str:
    """Share of pairs won over confidence on the set `name`; empty where no bin has enough pairs."""
    frame = Frame((50.0, 100.0), (0.0, 100.0))
    parts = []
    for i, model in enumerate(result["models"]):
        bins = at(result, "results", name, model, "calibration", "bins") or []
        points = [
            (100 * sure, 100 * won, b["pairs"])
            for b in bins
            if b["pairs"] >= _FEW
            and (sure := finite(b["confidence"])) is not None
            and (won := finite(b["accuracy"])) is not None
        ]
        if not points:
            continue
        color = i % COLORS
        path = "L".join(f"{frame.x(sure):.1f} {frame.y(won):.1f}" for sure, won, _ in points)
        parts.append(f'<path class="c{color} line thin" d="M{path}"/>')
        for sure, won, pairs in points:
            told = f"{model}: {sure:.1f} % sure, {won:.1f} % right, {pairs} pairs"
            mark = mark_of(i, frame.x(sure), frame.y(won))
            parts.append(f"<g>{mark}<title>{clean(told)}</title></g>")
    if not parts:
        return ""
    ideal = f"M{frame.x(50):.1f} {frame.y(50):.1f}L{frame.x(100):.1f} {frame.y(100):.1f}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{clean(name)}: share won over confidence">'
        f"{frame.axes('pairs won, %', x_label='confidence, %')}"
        f'<path class="guide" d="{ideal}"/>{"".join(parts)}</svg>'
    )


def keys(models: Sequence[str]) -> str:
    """The marks of the models, as a list beside plots that have no room for them."""
    items = "".join(
        f'<li><svg viewBox="0 0 14 12" aria-hidden="true">{mark_of(i, 7, 6)}</svg>'
        f"{clean(shortened(model))}</li>"
        for i, model in enumerate(models)
    )
    return f'<ul class="legend">{items}</ul>'


def _legend(models: Sequence[str]) -> tuple[str, int]:
    """What the marks stand for, in as many lines as it takes, and where the plot may begin."""
    items = [(mark_of(i, 6, -4), shortened(model)) for i, model in enumerate(models)]
    items.append(('<path class="longer" d="M6-10v12"/>', LONGER))
    items.append(('<path class="guide" d="M6-11v14"/>', "guessing"))
    parts, left, line = [], 0.0, 16
    for mark, text in items:
        width = 34 + 6.3 * len(text)
        if left and left + width > _WIDE:
            left, line = 0.0, line + 20
        parts.append(
            f'<g transform="translate({left:.0f} {line})">{mark}'
            f'<text x="17" y="0">{clean(text)}</text></g>'
        )
        left += width
    return "".join(parts), line + 34


def _band_name(name: str, of_set: Result, y: float) -> str:
    told = shortened(name, 27)
    contests = at(of_set, "contests")
    size = NOTHING if contests is None else f"{contests:,}"
    return (
        f'<g><title>{clean(name)}</title><text class="strong" x="10" y="{y - 2:.1f}">{clean(told)}'
        f'</text><text x="10" y="{y + 13:.1f}">{size} contests</text></g>'
    )


def _longer(of_set: Result, x: Any, top: float, tall: float) -> str:
    found = at(of_set, "longer_wins", "accuracy")
    mean = finite(at(found, "mean"))
    if mean is None:
        return ""
    return (
        f'<g><path class="longer" d="M{x(mean):.1f} {top:.1f}v{tall:.1f}"/>'
        f"<title>{LONGER}: {_words(found)}</title></g>"
    )


def _lane(i: int, model: str, name: str, found: Any, x: Any, y: float) -> str:
    mean, low, high = (finite(at(found, key)) for key in ("mean", "low", "high"))
    if mean is None:
        return ""
    whisker = ""
    if low is not None and high is not None:
        d = f"M{x(low):.1f} {y:.1f}H{x(high):.1f}"
        whisker = f'<path class="c{i % COLORS} whisker" d="{d}"/>'
    told = f"{model}, {name}: {_words(found)}"
    return f"<g>{whisker}{mark_of(i, x(mean), y)}<title>{clean(told)}</title></g>"


def _words(found: Any) -> str:
    figure = share(found)
    return f"{figure.text} %" + (f" ({figure.more})" if figure.more else "")


def mark_of(i: int, x: float, y: float) -> str:
    """The mark of the i-th of several models or runs, the same in every plot."""
    return f'<path class="c{i % COLORS} mark" d="M{x:.1f} {y:.1f}{_SHAPES[i % len(_SHAPES)]}"/>'
