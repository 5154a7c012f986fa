"""Who was busy and who waited, from a run's timeline (`runtime.timeline`).

A worker is busy while it is inside a span; the driver's own spans are the frames that the others
are measured in. All times in microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

TimeSpan = tuple[float, float]
TraceEvent = dict[str, Any]


def union(intervals: Iterable[TimeSpan]) -> list[TimeSpan]:
    """The same times as disjoint intervals in order."""
    found: list[TimeSpan] = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((begin, end))
    return found


def length(intervals: Iterable[TimeSpan]) -> float:
    """Of disjoint ones, together."""
    return sum(end - begin for begin, end in intervals)


def common(left: list[TimeSpan], right: list[TimeSpan]) -> list[TimeSpan]:
    """The times that are in both of two disjoint lists."""
    pairs = ((max(a, c), min(b, d)) for a, b in left for c, d in right)
    return [(begin, end) for begin, end in pairs if begin < end]


def outside(intervals: list[TimeSpan], frame: list[TimeSpan]) -> list[TimeSpan]:
    """The times of `frame` that are in none of `intervals`."""
    found = []
    for begin, end in frame:
        at = begin
        for start, stop in common(intervals, [(begin, end)]):
            if start > at:
                found.append((at, start))
            at = stop
        if end > at:
            found.append((at, end))
    return found


def spans(
    events: list[TraceEvent], role: str, name: str | None = None
) -> dict[str, list[TraceEvent]]:
    """process -> its spans (called `name`), for the processes of a role."""
    found: dict[str, list[TraceEvent]] = {}
    for event in events:
        if event["ph"] == "X" and event["pid"].rsplit("-", 1)[0] == role:
            if name is None or event["name"] == name:
                found.setdefault(event["pid"], []).append(event)
    return found


def times(events: Iterable[TraceEvent]) -> list[TimeSpan]:
    """The spans' times, disjoint."""
    return union((event["ts"], event["ts"] + event["dur"]) for event in events)


def busy_share(events: list[TraceEvent], role: str, frame: list[TimeSpan]) -> float:
    """Share of `frame` that a worker of `role` is busy, on average over those that are seen."""
    found = spans(events, role)
    shares = [length(common(times(of_one), frame)) for of_one in found.values()]
    return sum(shares) / len(shares) / length(frame) if shares else 0.0


def alone_share(events: list[TraceEvent], frame: list[TimeSpan], driver: str = "driver") -> float:
    """Share of `frame` in which no worker is busy: the driver alone works, or messages travel."""
    workers = times(e for e in events if e["ph"] == "X" and e["pid"] != driver)
    return length(outside(workers, frame)) / length(frame)


def neglected_share(
    events: list[TraceEvent], role: str, ready: str, work: str, frame: list[TimeSpan]
) -> float:
    """Share of `frame` in which a worker of `role` idles though the driver has work for it.

    Args:
        ready: the driver's mark for work that has come, with a detail `key`.
        work: the workers' span for it, with the same detail.
    """
    found = spans(events, role)
    begun = {}
    for event in sorted((e for of_one in found.values() for e in of_one), key=lambda e: e["ts"]):
        if event["name"] == work:
            begun.setdefault(event["args"]["key"], event["ts"])
    marks = [e for e in events if e["name"] == ready and e["ph"] == "i"]
    waits = union(
        (mark["ts"], begun[mark["args"]["key"]])
        for mark in marks
        if begun.get(mark["args"]["key"], 0.0) > mark["ts"]
    )
    idle = union(x for of_one in found.values() for x in outside(times(of_one), frame))
    return length(common(common(waits, idle), frame)) / length(frame)
