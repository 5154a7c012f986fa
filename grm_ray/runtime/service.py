"""Rows of many requests, scored together by a pool of scorers that may die.

A thread feeds the pool, because the pool blocks on Ray; whoever asks gets a future. Requests that
wait are put together into batches. What fails in company is tried alone, so that only the request
at fault is refused; a request of which a scorer dies twice, once with nothing beside it, is refused
then and whenever it comes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import queue
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from grm_ray.runtime.pool import Event, Pool, PoolFailed, Work

_LOOK_S = 0.02  # how long new requests may lie while the pool is at work
_REMEMBERED = 1024  # requests that killed scorers


class RequestRefused(ValueError):
    """This request cannot be scored; the message says why."""


class Busy(RuntimeError):
    """Too much waits, or no scorer is left; try again later."""


@dataclass(eq=False)
class _Request:
    rows: pa.Table
    future: Future = field(default_factory=Future)
    begun: bool = False
    deaths: int = 0  # of scorers that were at work on it
    since: float = math.inf  # when it was given to the pool first, by its clock

    @property
    def suspect(self) -> bool:
        """It is tried alone, and no other suspect meanwhile."""
        return self.deaths > 0

    @property
    def digest(self) -> bytes:
        told = repr(self.rows.to_pylist()).encode("utf-8", "surrogatepass")
        return hashlib.sha256(told).digest()


class ScoringService(threading.Thread):
    """Scores whatever it is asked, in the order of asking.

    Args:
        pool: of `workers.scorer.Scorer`, ready.
        rows_per_batch: rows that a scorer gets at once; a larger request goes as it is.
        most_rows, most_bytes: of all requests under way.
        timeout_s: the service is over when no scorer could be started for so long.

    Attributes:
        failed: why the service is over, None while it is not.
        scored_rows: since it began.
    """

    def __init__(
        self, pool: Pool, rows_per_batch: int, most_rows: int, most_bytes: int, timeout_s: float
    ) -> None:
        super().__init__(name="scoring service", daemon=True)
        self.failed: BaseException | None = None
        self.scored_rows = 0
        self._pool, self._batch = pool, rows_per_batch
        self._most_rows, self._most_bytes = most_rows, most_bytes
        self._timeout, self._heard = timeout_s, time.monotonic()
        self._asked: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._waiting: deque[_Request] = deque()
        self._suspects: deque[_Request] = deque()
        self._suspected = False  # whether one of them is being tried
        self._deadly: OrderedDict[bytes, None] = OrderedDict()
        self._lock, self._rows, self._bytes, self._working = threading.Lock(), 0, 0, 0
        self._open: set[_Request] = set()  # not answered yet

    @property
    def waiting_rows(self) -> int:
        """Of all requests under way."""
        return self._rows

    def ask(self, rows: pa.Table) -> Future:
        """A future of the scores `(B, K)` of `ASKED` rows; it may hold `RequestRefused` or `Busy`.

        Raises:
            Busy: too much waits, or the service is over.
        """
        request = _Request(rows)
        with self._lock:
            if self.failed is not None:
                raise Busy("no scorer is left")
            if self._rows + rows.num_rows > self._most_rows:
                raise Busy(f"{self._rows} rows are waiting, at most {self._most_rows} are allowed")
            if self._bytes + rows.nbytes > self._most_bytes:
                raise Busy(
                    f"{self._bytes} bytes are waiting, at most {self._most_bytes} are allowed"
                )
            self._rows += rows.num_rows
            self._bytes += rows.nbytes
            self._open.add(request)
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
            left = list(self._open)
        for request in left:
            self._fail(request, Busy("no scorer is left"))

    # ------------------------------------------------------------------ inside

    def _take(self) -> bool:
        """New requests into the line, waiting for one where there is nothing else to do."""
        idle = not (self._waiting or self._suspects or self._working)
        while idle or not self._asked.empty():
            request = self._asked.get()
            if idle:
                self._heard = time.monotonic()
            if request is None:
                return False
            if self._deadly and request.digest in self._deadly:
                self._fail(request, RequestRefused("a scorer died on these rows before"))
            else:
                self._waiting.append(request)
            idle = False
        return True

    def _give(self) -> None:
        """Batches to the pool, two a scorer: one at work, one at hand."""
        if self._suspects and not self._suspected and not self._working:
            # With nothing beside it: whoever dies now dies of this.
            self._suspected = True
            self._submit([self._suspects.popleft()])
        while (
            self._waiting
            and not (self._suspected or self._suspects)
            and self._working < 2 * len(self._pool.handles)
        ):
            batch: list[_Request] = []
            rows = 0
            while self._waiting:
                request = self._waiting[0]
                if not request.begun and not request.future.set_running_or_notify_cancel():
                    self._done(self._waiting.popleft())  # whoever asked is gone
                    continue
                request.begun = True
                rows += request.rows.num_rows
                if batch and rows > self._batch:
                    break
                batch.append(self._waiting.popleft())
            if batch:
                self._submit(batch)

    def _submit(self, batch: list[_Request]) -> None:
        self._working += 1
        for request in batch:
            request.since = min(request.since, self._pool.now())
        self._pool.submit(_work(batch))

    def _look(self) -> None:
        ready = self._pool.wait(_LOOK_S)
        if ready or self._pool.busy or not self._working:
            self._heard = time.monotonic()
        elif time.monotonic() - self._heard > self._timeout:
            raise PoolFailed(f"no scorer could be started for {self._timeout} s")
        for ref in ready:
            for event in self._pool.handle(ref):
                self._on(event)
        for event in self._pool.look_after():
            self._on(event)

    def _on(self, event: Event) -> None:
        batch: list[_Request] = event.work.payload
        self._working -= 1
        tried = len(batch) == 1 and batch[0].suspect
        self._suspected = self._suspected and not tried
        if event.kind in ("lost", "gone"):
            self._lost(batch, event.may_be_of(max(request.since for request in batch)))
            return
        scores_BK, reason = event.value
        if scores_BK is not None:
            self.scored_rows += len(scores_BK)
            start = 0
            for request in batch:
                end = start + request.rows.num_rows
                self._done(request)
                request.future.set_result(scores_BK[start:end])
                start = end
        elif len(batch) > 1:
            for request in batch:
                self._submit([request])
        else:
            self._fail(batch[0], RequestRefused(reason))

    def _lost(self, batch: list[_Request], at_work: bool) -> None:
        """A scorer died. Who was at work is suspected, and tried alone; who only lay at hand, or
        with a scorer that may have died before, goes back into the line."""
        if not at_work:
            line = self._suspects if batch[0].suspect else self._waiting
            line.extendleft(reversed(batch))
            return
        for request in batch:
            request.deaths += 1
        if len(batch) == 1 and batch[0].deaths > 1:
            self._pool.pardon()
            self._deadly[batch[0].digest] = None
            if len(self._deadly) > _REMEMBERED:
                self._deadly.popitem(last=False)
            self._fail(batch[0], RequestRefused("scorers die on these rows"))
        else:
            self._suspects.extend(batch)

    def _fail(self, request: _Request, error: Exception) -> None:
        self._done(request)
        with contextlib.suppress(InvalidStateError):  # its client may leave at any moment
            request.future.set_exception(error)

    def _done(self, request: _Request) -> None:
        with self._lock:
            self._open.discard(request)
            self._rows -= request.rows.num_rows
            self._bytes -= request.rows.nbytes


def _work(batch: list[_Request]) -> Work:
    rows = pa.concat_tables([request.rows for request in batch])
    # A suspect is tried by one scorer only.
    suspect = len(batch) == 1 and batch[0].suspect
    return Work(lambda worker: worker.answer.remote(rows), batch, hedge=not suspect)


def score_once(pool: Pool, rows: pa.Table, timeout_s: float) -> Any:
    """`(B, K)` scores of `rows`, without a service.

    Raises:
        Busy: no scorer answered in time.
        RequestRefused: as `ScoringService.ask`.
    """
    service = ScoringService(pool, rows.num_rows, rows.num_rows, rows.nbytes, timeout_s)
    service.start()
    try:
        return service.ask(rows).result(timeout_s)
    except TimeoutError:
        raise Busy(f"no scorer answered for {timeout_s} s") from None
    finally:
        service.stop()
