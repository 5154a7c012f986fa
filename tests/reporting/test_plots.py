import math
import re
from xml.etree import ElementTree

import pytest

from grm_ray.reporting.curves import Chart
from grm_ray.reporting.numbers import duration, pretty, tick_labels, ticks
from grm_ray.reporting.plots import Series, change_bars, line_chart, stacked_bars, thinned


def shapes(svg, kind):
    return [element for element in ElementTree.fromstring(svg).iter(kind)]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-0.3, 1.7), (1e-6, 2e-5), (0, 24), (990, 12_500), (-5, -4.99)]
)
def test_ticks_are_few_lie_inside_and_have_labels_of_their_own(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)
    assert len(set(tick_labels(found))) == len(found)


def test_steps_get_whole_ticks_even_where_they_are_few():
    assert ticks(0, 2, about=7, whole=True) == [0, 1, 2]


def test_numbers_read_well():
    assert [pretty(v) for v in (0.12345, -2.0, 12345.6, 2e-5, None, float("nan"))] == [
        "0.123",
        "−2.00",
        "12,346",
        "2.00e−5",
        "–",
        "–",
    ]
    assert [duration(s) for s in (4.25, 185, 7620)] == ["4.2 s", "3 min 05 s", "2 h 07 min"]


def test_a_gap_in_the_values_is_a_gap_in_the_line():
    svg = line_chart("t", [Series("a", [0, 1, 2, 3], [1.0, 2.0, None, 3.0])], "score")
    (line,) = [p for p in shapes(svg, "path") if "line" in p.get("class", "")]
    assert line.get("d").count("M") == 2


def test_held_out_results_are_joined_over_steps_without_them_and_carry_their_interval():
    series = Series("a", [0, 1, 2], [1.0, None, 2.0], 0, "points", [0.5, None, 1.5], [1.5, None, 3])
    svg = line_chart("t", [series], "score")
    paths = shapes(svg, "path")
    (line,) = [p for p in paths if "line" in p.get("class", "")]
    assert line.get("d").count("M") == 1
    assert sum("whisker" in p.get("class", "") for p in paths) == 2
    assert "a: 1.00 (0.500 to 1.50)" in svg


def test_one_point_and_a_constant_line_are_drawn_inside_the_frame():
    for y in ([0.0], [5.0, 5.0], [0.0, 0.0]):
        svg = line_chart("t", [Series("a", list(range(len(y))), y)], "score", zero=True)
        numbers = [float(n) for n in re.findall(r'c[xy]="([-\d.]+)"', svg)]
        assert numbers and all(0 <= n <= 480 for n in numbers)


@pytest.mark.parametrize(
    "values",
    [
        [0.1, math.nextafter(0.1, 1)],
        [-1e6, math.nextafter(-1e6, 0)],
        [0.0, 5e-324],
        [-1.7e308, 1.7e308],
        [0.5, 0.5 + 1e-8],
    ],
)
def test_values_at_the_limits_of_a_float_are_drawn(values):
    svg = line_chart("t", [Series("a", [1.0, 2.0], values)], "unit")
    assert svg.count("<path") and "nan" not in svg and "inf" not in svg


def test_nothing_known_draws_nothing():
    assert line_chart("t", [Series("a", [0, 1], [None, None])], "score") == ""
    assert stacked_bars("t", [], [], [], []) == ""
    assert change_bars("t", [], [], "score") == ""


def test_a_thousand_steps_become_few_points_that_say_so_and_keep_the_mean():
    full = Series("a", [float(i) for i in range(1000)], [float(i % 10) for i in range(1000)])
    few = thinned(full)
    assert len(few.x) <= 160 and "means of ~6 steps" in few.label
    assert sum(y for y in few.y if y is not None) / len(few.y) == pytest.approx(4.5, abs=0.1)
    bars = stacked_bars("t", ["learn"], full.x, [[1.0]] * 1000, [2])
    assert len([r for r in shapes(bars, "rect") if "bar" in r.get("class")]) <= 48


def test_parts_of_a_bar_stand_on_each_other_and_fill_the_whole():
    svg = stacked_bars("t", ["generate", "learn"], [1.0], [[3.0, 1.0]], [0, 2])
    low, high = shapes(svg, "rect")
    assert float(low.get("height")) == pytest.approx(3 * float(high.get("height")), rel=0.01)
    assert float(high.get("y")) + float(high.get("height")) == pytest.approx(
        float(low.get("y")), abs=0.02
    )


def test_changes_are_sorted_and_the_picked_ones_have_a_dot():
    svg = change_bars("t", [0.5, -0.5, 0.1], [0, 1], "score")
    assert [r.get("class") for r in shapes(svg, "rect")] == ["loss", "gain", "gain"]
    assert len(shapes(svg, "circle")) == 2


def test_names_are_escaped():
    svg = line_chart("<b>", [Series("<script>", [0.0], [1.0])], "<u>")
    assert "<script>" not in svg and "<b>" not in svg and "<u>" not in svg
    html = Chart("<b>", svg, [Series("<i>", [0.0], [1.0])]).html()
    assert "<i>" not in html and "<b>" not in html
