"""What a run's timeline says of who was busy."""

import json

import pytest

from benchmarks.parts.utilisation import (
    alone_share,
    busy_share,
    common,
    length,
    neglected_share,
    outside,
    times,
    union,
)
from grm_ray.runtime.timeline import MERGED, Timeline, merge, read


def span(who, name, begin, end, **args):
    return {"ph": "X", "pid": who, "name": name, "ts": begin, "dur": end - begin, "args": args}


def mark(name, at, key):
    return {"ph": "i", "pid": "driver", "name": name, "ts": at, "args": {"key": key}}


def test_interval_arithmetic():
    assert union([(4, 6), (0, 2), (1, 3), (3, 4)]) == [(0, 6)]
    assert common([(0, 2), (4, 6)], [(1, 5)]) == [(1, 2), (4, 5)]
    assert outside([(1, 2), (5, 9)], [(0, 6), (8, 10)]) == [(0, 1), (2, 5), (9, 10)]
    assert outside([], [(0, 1)]) == [(0, 1)]
    assert length([(0, 2), (4, 5)]) == 3


def test_shares_of_a_run_with_two_scorers():
    events = [
        span("driver", "step", 0, 100),
        span("rollout-0", "generate", 0, 60),
        span("scorer-0", "score", 20, 40, key="a"),
        span("scorer-0", "score", 45, 50, key="c"),
        span("scorer-1", "score", 30, 70, key="b"),
        span("learner-0", "learn", 72, 95),
        mark("rows ready", 19, "a"),
        mark("rows ready", 22, "b"),  # scorer-1 idles until 30
        mark("rows ready", 33, "c"),  # both busy until 40; then scorer-0 idles until 45
    ]
    frame = times([events[0]])
    assert busy_share(events, "scorer", frame) == pytest.approx((25 + 40) / 200)
    assert busy_share(events, "trainer", frame) == 0
    assert alone_share(events, frame) == pytest.approx((2 + 5) / 100)
    neglected = neglected_share(events, "scorer", "rows ready", "score", frame)
    assert neglected == pytest.approx((1 + 8 + 5) / 100)


def test_what_processes_write_is_read_in_order_and_merged(tmp_path):
    logs = tmp_path / "logs"
    ours, theirs = Timeline(logs / "driver.log"), Timeline(logs / "scorer-0.log")
    with pytest.raises(RuntimeError), ours.span("step", number=1):
        with theirs.span("score", key="a"):
            ours.mark("rows ready", key="a")
        raise RuntimeError
    Timeline(logs / "scorer-0.log").mark("begun anew")  # a replacement writes on
    with (logs / "scorer-0.trace").open("a") as file:
        file.write('{"name": "cut of')
    events = read(logs)
    assert [event["name"] for event in events] == ["step", "score", "rows ready", "begun anew"]
    assert events[0]["dur"] >= events[1]["dur"] > 0 and events[0]["args"]["number"] == 1
    merge(tmp_path)
    assert json.loads((tmp_path / MERGED).read_text())["traceEvents"] == events
