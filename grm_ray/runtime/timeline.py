"""Who did what when: every process of a run writes its spans, in Chrome's trace format.

`runs/<name>/timeline.json` opens in https://ui.perfetto.dev or chrome://tracing. Times are the
machines' own clocks: across machines they agree as well as those do.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SUFFIX = ".trace"
MERGED = "timeline.json"


class Timeline:
    """Spans and instants of one process, a line each, written as they end.

    Args:
        log: the process's log file; the lines go beside it, as `<role>-<slot>.trace`. A replacement
            writes on where its predecessor ended.
    """

    def __init__(self, log: Path) -> None:
        self.name = log.stem
        log.parent.mkdir(parents=True, exist_ok=True)
        self._file = log.with_suffix(SUFFIX).open("a", buffering=1, encoding="utf-8")
        self._lanes: set[int] = set()  # of the open spans: what overlaps has a line of its own
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def span(self, name: str, **details: Any) -> Iterator[None]:
        """What happens inside is one bar of the picture; an error is no reason to leave it out."""
        with self._lock:
            lane = next(i for i in itertools.count() if i not in self._lanes)
            self._lanes.add(lane)
        began = time.time_ns()
        try:
            yield
        finally:
            form = {"ph": "X", "dur": (time.time_ns() - began) / 1000, "tid": lane}
            self._write(name, began, form, details)
            with self._lock:
                self._lanes.discard(lane)

    def mark(self, name: str, **details: Any) -> None:
        """Something that happened at once."""
        self._write(name, time.time_ns(), {"ph": "i", "s": "p", "tid": 0}, details)

    def _write(self, name: str, at: int, form: dict[str, Any], details: dict[str, Any]) -> None:
        event = {
            "name": name,
            "ts": at / 1000,
            "pid": self.name,
            **form,
            "args": {"process": os.getpid(), **details},
        }
        with contextlib.suppress(OSError):  # a full disk: the work itself goes on
            self._file.write(json.dumps(event) + "\n")


def traced(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a worker's method: each call is a span of the worker's `timeline`.

    Ray tells methods of an async actor apart by what they are, so each kind gets its own wrapper.
    """
    if inspect.isasyncgenfunction(method):

        @functools.wraps(method)
        async def streamed(self: Any, *args: Any, **kwargs: Any) -> Any:
            with self.timeline.span(method.__name__):
                async with contextlib.aclosing(method(self, *args, **kwargs)) as items:
                    async for item in items:
                        yield item

        return streamed
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def awaited(self: Any, *args: Any, **kwargs: Any) -> Any:
            with self.timeline.span(method.__name__):
                return await method(self, *args, **kwargs)

        return awaited

    @functools.wraps(method)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.timeline.span(method.__name__):
            return method(self, *args, **kwargs)

    return called


def read(logs: Path) -> list[dict[str, Any]]:
    """All events below `logs`, in the order of their times (microseconds, `ts` and `dur`).

    A line that a killed process left unfinished is left out.
    """
    events = []
    for path in sorted(logs.glob(f"*{SUFFIX}")):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                events.append(json.loads(line))
    return sorted(events, key=lambda event: event["ts"])


def merge(folder: Path) -> None:
    """One file of a run's events, in the run's folder. A full disk is no reason to fail."""
    target = folder / MERGED
    part = target.with_suffix(".part")
    with contextlib.suppress(OSError):
        part.write_text(json.dumps({"traceEvents": read(folder / "logs")}), encoding="utf-8")
        part.replace(target)
