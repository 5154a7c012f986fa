"""A clock on paper in Ray's place: references that are ready at a time, and what waits cost.

To wait moves the clock on. The driver's own work moves it as well, by the processor time that it
really takes and by what Ray's calls would take, so that a driver that cannot keep up shows. What
the simulation itself takes to make up a worker's answer does not.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from grm_ray.runtime.transport import AT_ONCE

# Seconds of the driver's processor, measured with Ray 2.60 on a 2.8 GHz core: a call of an actor's
# method with 16 rows, a small value fetched, and a reference among those that are waited for.
CALL_S, GET_S, WAIT_S = 150e-6, 60e-6, 1e-6


class Ref:
    """A result that is there from `at` on: a value, or an error.

    `lost`: the machine that held it is gone; who has read it before may go on with it.
    """

    def __init__(self, at: float, value: Any = None, error: Exception | None = None) -> None:
        self.at, self.value, self.error = at, value, error
        self.cancelled = self.lost = False


class StreamRef(Ref):
    """Pairs of results, each from its time on; `at` is when the next pair is there."""

    def __init__(self, pairs: deque[tuple[float, Any, Any]], end: float) -> None:
        super().__init__(pairs[0][0] if pairs else end)
        self._pairs, self._end, self._second = pairs, end, None
        self.given: list[Ref] = []

    def __next__(self) -> Ref:
        if self.error is not None:
            return Ref(self.at, error=self.error)
        if self._second is not None:
            second, self._second = self._second, None
            return second
        if not self._pairs:
            raise StopIteration
        at, batch, metadata = self._pairs.popleft()
        self.at = self._pairs[0][0] if self._pairs else self._end
        self._second = Ref(at, metadata)
        self.given.append(Ref(at, batch))
        return self.given[-1]


class Death(Ref):
    """Nobody waits for it; when its time has come, `happen` is called."""

    def __init__(self, at: float, happen: Callable[[], None]) -> None:
        super().__init__(at)
        self.happen = happen


class SimulatedTransport:
    """The clock, and what is due on it.

    Attributes:
        driver_s: processor seconds that are the driver's work: between waits, and in calls of Ray.
    """

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Ref]] = []
        self._ready: dict[int, Ref] = {}
        self._number = itertools.count()
        self._now = 0.0
        self._back = time.thread_time()
        self.driver_s = 0.0

    def now(self) -> float:
        return self._now

    def schedule(self, ref: Ref) -> Ref:
        """Have `wait` find it when its time has come."""
        heapq.heappush(self._due, (ref.at, next(self._number), ref))
        return ref

    def costs(self, seconds: float) -> None:
        """More work of the driver, or less where it is the simulation's."""
        self._back -= seconds

    def wait(self, refs: list[Any], timeout_s: float) -> list[Any]:
        self.costs(WAIT_S * len(refs))
        spent = time.thread_time() - self._back
        self.driver_s += spent
        self._now += spent
        self._advance(self._now)
        until = self._now + timeout_s
        watched = None
        while True:
            if self._ready:
                watched = watched or {id(ref) for ref in refs}
                found = [r for r in self._ready.values() if id(r) in watched][:AT_ONCE]
                if found:
                    for ref in found:
                        del self._ready[id(ref)]
                        if isinstance(ref, StreamRef):  # its next pair, or its end, comes later
                            self.schedule_next(ref)
                    break
                self._ready = {}  # nobody waits for what was cancelled or is forgotten
            if not self._due or self._due[0][0] > until:
                self._now, found = until, []
                self._advance(until)
                break
            self._advance(max(self._now, self._due[0][0]))
        self._back = time.thread_time()
        return found

    def schedule_next(self, ref: StreamRef) -> None:
        """After the pair that is ready now."""
        pairs = ref._pairs
        if not pairs or ref.error is not None:
            return
        following = pairs[1][0] if len(pairs) > 1 else ref._end
        heapq.heappush(self._due, (following, next(self._number), ref))

    def all_ready(self, refs: list[Any]) -> bool:
        return all(ref.at <= self._now for ref in refs)

    def get(self, ref: Any) -> Any:
        self.costs(GET_S)
        if ref.at > self._now:  # a blocking call
            self._advance(ref.at)
            self._now = max(self._now, ref.at)
        if ref.error is not None:
            raise ref.error
        return ref.value

    def kill(self, handle: Any) -> None:
        handle.alive = False

    def cancel(self, ref: Any) -> None:
        ref.cancelled = True

    def _advance(self, until: float) -> None:
        while self._due and self._due[0][0] <= until:
            at, _, ref = heapq.heappop(self._due)
            self._now = max(self._now, at)
            if isinstance(ref, Death):
                ref.happen()
            elif not ref.cancelled:
                self._ready[id(ref)] = ref


def remote(transport: SimulatedTransport, call: Callable[..., Any]) -> Any:
    """`method.remote(...)` and `method.options(...).remote(...)`."""

    def called(*arguments: Any) -> Any:
        began = time.thread_time()
        made = call(*arguments)
        transport.costs(CALL_S - (time.thread_time() - began))
        return made

    made = SimpleNamespace(remote=called)
    made.options = lambda **_: made
    return made
