"""Rows of many requests, scored together by a pool of scorers that may die.

A thread feeds the pool, because the pool blocks on Ray; whoever asks gets a future. Requests that
wait are put together into batches. What fails in company is tried alone, so that only the request
at fault is refused.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from grm_ray.runtime.pool import Event, Pool, Work

_LOOK_S = 0.02  # how long new requests may lie while the pool is at work


class Refused(ValueError):
    """This request cannot be scored; the message says why."""


class Busy(RuntimeError):
    """Too many rows wait, or the scorers are gone; try again later."""


@dataclass
class _Request:
    rows: pa.Table
    future: Future = field(default_factory=Future)
    alone: bool = False
    deaths: int = 0  # of scorers that had it in hand


class ScoringService(threading.Thread):
    """Scores whatever it is asked, in the order of asking.

    Args:
        pool: of `workers.scorer.Scorer`, ready.
        rows_per_batch: rows that a scorer gets at once; a larger request goes as it is.
        most_waiting: rows of all requests under way.

    Attributes:
        failed: why the service is over, None while it is not.
    """

    def __init__(self, pool: Pool, rows_per_batch: int, most_waiting: int) -> None:
        super().__init__(name="scoring service", daemon=True)
        self.failed: BaseException | None = None
        self._pool, self._batch, self._most = pool, rows_per_batch, most_waiting
        self._asked: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._waiting: deque[_Request] = deque()
        self._lock, self._rows, self._working = threading.Lock(), 0, 0

    @property
    def rows_under_way(self) -> int:
        return self._rows

    @property
    def replaced(self) -> int:
        """Scorers that died and were replaced."""
        return self._pool.replaced

    def ask(self, rows: pa.Table) -> Future:
        """A future of the scores `(B, K)` of `ASKED` rows; it may hold `Refused` or `Busy`.

        Raises:
            Busy: too many rows wait, or the service is over.
        """
        request = _Request(rows)
        with self._lock:
            if self.failed is not None:
                raise Busy("the scorers are gone")
            if self._rows + rows.num_rows > self._most:
                raise Busy(f"{self._rows} rows are waiting, {self._most} may")
            self._rows += rows.num_rows
        self._asked.put(request)
        return request.future

    def stop(self) -> None:
        """End the thread; what is not scored by then is answered with `Busy`."""
        self._asked.put(None)
        self.join()

    def run(self) -> None:
        try:
            while self._take():
                self._give()
                self._look()
            cause: BaseException = Busy("the service is being stopped")
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            cause = error
        with self._lock:
            self.failed = cause
        while not self._asked.empty():
            if (request := self._asked.get()) is not None:
                self._waiting.append(request)
        held = [r for member in self._pool.works() for r in member.payload]
        for request in [*self._waiting, *held]:
            self._fail(request, Busy("the scorers are gone"))

    # ------------------------------------------------------------------ inside

    def _take(self) -> bool:
        """New requests into the line, waiting for one where there is nothing else to do."""
        idle = not (self._waiting or self._working)
        while idle or not self._asked.empty():
            request = self._asked.get()
            if request is None:
                return False
            self._waiting.append(request)
            idle = False
        return True

    def _give(self) -> None:
        """Batches to the pool, two a scorer: one at work, one at hand."""
        while self._waiting and self._working < 2 * len(self._pool.handles):
            batch = [self._waiting.popleft()]
            rows = batch[0].rows.num_rows
            while self._waiting and not (batch[0].alone or self._waiting[0].alone):
                rows += self._waiting[0].rows.num_rows
                if rows > self._batch:
                    break
                batch.append(self._waiting.popleft())
            self._working += 1
            self._pool.submit(_work(batch))

    def _look(self) -> None:
        waiting = self._pool.waitables()
        if not waiting:
            return
        ready, _ = ray.wait(waiting, num_returns=1, timeout=_LOOK_S, fetch_local=False)
        for ref in ready:
            for event in self._pool.handle(ref):
                self._on(event)

    def _on(self, event: Event) -> None:
        batch: list[_Request] = event.work.payload
        self._working -= 1
        if event.kind == "lost":
            self._lost(batch)
            return
        scores_BK, reason = event.value
        if scores_BK is not None:
            start = 0
            for request in batch:
                end = start + request.rows.num_rows
                self._answer(request, scores_BK[start:end])
                start = end
        elif len(batch) > 1:
            self._one_by_one(batch)
        else:
            self._fail(batch[0], Refused(reason))

    def _lost(self, batch: list[_Request]) -> None:
        """A scorer died. If one of these requests kills it, it is to be found out before the pool
        gives up (`Pool.max_replacements`)."""
        for request in batch:
            request.deaths += 1
        if len(batch) == 1 and batch[0].deaths > 2:
            self._fail(batch[0], Refused("every scorer that was given these rows died"))
        else:
            self._one_by_one(batch)

    def _one_by_one(self, batch: list[_Request]) -> None:
        for request in batch:
            request.alone = True
        self._waiting.extendleft(reversed(batch))

    def _answer(self, request: _Request, scores_BK: np.ndarray) -> None:
        self._done(request)
        if not request.future.cancelled():
            request.future.set_result(scores_BK)

    def _fail(self, request: _Request, error: Exception) -> None:
        self._done(request)
        if not request.future.done():
            request.future.set_exception(error)

    def _done(self, request: _Request) -> None:
        with self._lock:
            self._rows -= request.rows.num_rows


def _work(batch: list[_Request]) -> Work:
    rows = pa.concat_tables([request.rows for request in batch])
    return Work(lambda worker: worker.answer.remote(rows), batch)


def score_once(pool: Pool, rows: pa.Table, timeout_s: float) -> Any:
    """`(B, K)` scores of `rows`, without a service.

    Raises:
        Busy: no scorer answered in time.
        Refused: as `ScoringService.ask`.
    """
    service = ScoringService(pool, rows.num_rows, rows.num_rows)
    service.start()
    try:
        return service.ask(rows).result(timeout_s)
    except TimeoutError:
        raise Busy(f"no scorer answered for {timeout_s} s") from None
    finally:
        service.stop()
