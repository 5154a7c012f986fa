"""A cluster on paper: workers that take their time on a made-up clock, and die on it.

Everything above `runtime.transport` is the real thing: pools, health, ledger, gathering, stream,
what runs ahead, the update's plan. A reference is an object with a time at which it is ready; to
wait moves the clock on. The driver's own work moves it as well, by the processor time that it
really takes and by what Ray's calls would take, so that a driver that cannot keep up shows. What
the simulation itself takes to make up a worker's answer does not.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from ray.exceptions import RayActorError

from grm_ray.data.tables import SCORES
from grm_ray.drivers.groups import RankDied
from grm_ray.runtime.pool import Pool
from grm_ray.runtime.transport import AT_ONCE
from grm_ray.runtime.weights import Version

# Seconds of the driver's processor, measured with Ray 2.60 on a 2.8 GHz core: a call of an actor's
# method with 16 rows, a small value fetched, and a reference among those that are waited for.
CALL_S, GET_S, WAIT_S = 150e-6, 60e-6, 1e-6


@dataclass
class Speeds:
    """What workers can do. Defaults: a 7B policy and reward model, an accelerator an engine and a
    scorer, a learner of one accelerator to four engines (its speeds are for 16 engines).

    Attributes:
        decode_s: seconds a token and row, whatever is decoded beside it.
        sequences: rows that an engine decodes at once.
        score_tokens, evaluate_tokens, learn_tokens: a second; the last two of the whole learner.
        sync_s: seconds to bring new weights into all engines.
        restart_s: seconds from a death until the replacement is ready.
        deaths_per_hour: of each engine and each scorer.
        slow: share of scorers that are ten times slower.
        all_die_s: when every engine and scorer of that time dies at once.
    """

    decode_s: float = 0.02
    sequences: int = 64
    score_tokens: float = 20_000.0
    evaluate_tokens: float = 22_000.0
    learn_tokens: float = 15_000.0
    sync_s: float = 5.0
    restart_s: float = 90.0
    deaths_per_hour: float = 0.0
    slow: float = 0.0
    mean_length: float = 400.0
    longest: int = 4096
    prompt: int = 200
    all_die_s: float = math.inf


class Ref:
    """A result that is there from `at` on: a value, or an error."""

    def __init__(self, at: float, value: Any = None, error: Exception | None = None) -> None:
        self.at, self.value, self.error = at, value, error
        self.cancelled = False


class StreamRef(Ref):
    """Pairs of results, each from its time on; `at` is when the next pair is there."""

    def __init__(self, pairs: deque[tuple[float, Any, Any]], end: float) -> None:
        super().__init__(pairs[0][0] if pairs else end)
        self._pairs, self._end, self._second = pairs, end, None

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
        return Ref(at, batch)


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


def _remote(transport: SimulatedTransport, call: Callable[..., Any]) -> Any:
    """`method.remote(...)` and `method.options(...).remote(...)`."""

    def remote(*arguments: Any) -> Any:
        began = time.thread_time()
        made = call(*arguments)
        transport.costs(CALL_S - (time.thread_time() - began))
        return made

    made = SimpleNamespace(remote=remote)
    made.options = lambda **_: made
    return made


class _Actor:
    """Dies when its time has come, and with it all that it had promised."""

    def __init__(self, cluster: SimulatedCluster, ready_after: float) -> None:
        self.cluster, self.alive = cluster, True
        self._promised: list[Ref] = []
        cluster.actors.append(self)
        transport = cluster.transport
        self.ready = transport.schedule(Ref(transport.now() + ready_after, "0:0"))
        rate = cluster.speeds.deaths_per_hour / 3600
        if rate > 0:
            dies = transport.now() + ready_after + cluster.rng.exponential(1 / rate)
            transport.schedule(Death(dies, self.die))

    def promise(self, ref: Ref) -> Ref:
        now = self.cluster.transport.now()
        self._promised = [r for r in self._promised if getattr(r, "_end", r.at) > now]
        if not self.alive:
            ref.at, ref.error = now, RayActorError()
            if isinstance(ref, StreamRef):
                ref._pairs.clear()
        else:
            self._promised.append(ref)
        return self.cluster.transport.schedule(ref)

    @property
    def promises(self) -> list[Ref]:
        """What it is still at, and somebody waits for."""
        now = self.cluster.transport.now()
        at = [ref for ref in self._promised if getattr(ref, "_end", ref.at) > now]
        return [ref for ref in at if not ref.cancelled] if self.alive else []

    def die(self) -> None:
        if not self.alive:
            return
        self.alive = False
        self.cluster.deaths += 1
        now = self.cluster.transport.now()
        for ref in self._promised:
            if getattr(ref, "_end", ref.at) > now and not ref.cancelled:
                ref.error, ref.at = RayActorError(), now
                if isinstance(ref, StreamRef):
                    ref._pairs.clear()
                self.cluster.transport.schedule(ref)


class Engine(_Actor):
    """Decodes `sequences` rows at once; the answers to a prompt leave together."""

    def __init__(self, cluster: SimulatedCluster, ready_after: float) -> None:
        super().__init__(cluster, ready_after)
        self.generate = _remote(cluster.transport, self._generate)

    def _generate(self, prompts: Any, wanted: list[tuple[int, str, int]], greedy: bool) -> Ref:
        speeds, now = self.cluster.speeds, self.cluster.transport.now()
        version = self.cluster.version
        rooms = [now] * min(speeds.sequences, len(wanted))
        groups: dict[int, list[tuple[str, float, int]]] = {}
        for row, uid, seed in wanted:
            length = self.cluster.length(seed)
            began = heapq.heappop(rooms)
            ended = began + length * speeds.decode_s
            heapq.heappush(rooms, ended)
            groups.setdefault(row, []).append((uid, ended, length))
        done = sorted((max(end for _, end, _ in rows), rows) for rows in groups.values())
        pairs: deque[tuple[float, Any, Any]] = deque()
        waiting: list[tuple[str, int]] = []
        for number, (at, rows) in enumerate(done):
            waiting += [(uid, length) for uid, _, length in rows]
            if len(waiting) >= self.cluster.rows_per_batch or number == len(done) - 1:
                uids, lengths = (list(x) for x in zip(*waiting, strict=True))
                tokens = [speeds.prompt + n for n in lengths]
                metadata = {
                    "uids": uids,
                    "lengths": lengths,
                    "tokens": tokens,
                    "finished": [True] * len(uids),
                    "versions": [(version.incarnation, version.step)] * len(uids),
                }
                pairs.append((at, (uids, sum(tokens)), metadata))
                waiting = []
        return self.promise(StreamRef(pairs, pairs[-1][0] + 1e-6))


class SimulatedScorer(_Actor):
    """One batch after the other."""

    def __init__(self, cluster: SimulatedCluster, ready_after: float, slow: bool) -> None:
        super().__init__(cluster, ready_after)
        self._free, self._slow = 0.0, slow
        self.score = _remote(cluster.transport, self._score)

    def _score(self, batch: tuple[list[str], int]) -> Ref:
        uids, tokens = batch.value
        seconds = tokens / self.cluster.speeds.score_tokens * (10 if self._slow else 1)
        self._free = max(self._free, self.cluster.transport.now()) + seconds
        rows = len(uids)
        none = [None] * rows
        columns = [uids, [[0.5]] * rows, [[]] * rows, none, ["f"] * rows, none]
        return self.promise(Ref(self._free, pa.table(columns, schema=SCORES)))


@dataclass
class SimulatedLearner:
    """All ranks as one: evaluations and updates in the order in which they were asked for.

    Attributes:
        busy_s: seconds of the clock in which it worked.
    """

    cluster: SimulatedCluster
    busy_s: float = 0.0
    _free: float = 0.0
    ranks: list[Any] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ranks = [SimpleNamespace(learn=_remote(self.cluster.transport, self._learn))]

    def work(self, seconds: float, value: Any) -> Ref:
        now = self.cluster.transport.now()
        self._free = max(self._free, now) + seconds
        self.busy_s += seconds
        return self.cluster.transport.schedule(Ref(self._free, value))

    def _learn(self, rollouts: list[Any], evaluations: Any, rewards: dict, *_: Any) -> Ref:
        tokens = sum(batch.value[1] for batch in rollouts)
        self.updated += list(rewards)
        return self.work(tokens / self.cluster.speeds.learn_tokens, {})

    def gather(self, refs: list[Ref]) -> list[Any]:
        try:
            return [self.cluster.transport.get(ref) for ref in refs]
        except RayActorError as error:
            raise RankDied(str(error)) from error


class SimulatedCluster:
    """The cast of a PPO run (`drivers.ppo_workers.PpoCast`), on paper.

    Attributes:
        deaths: of engines and scorers so far.
    """

    evaluates_together = False

    def __init__(
        self, engines: int, scorers: int, speeds: Speeds, seed: int, rows_per_batch: int = 8
    ) -> None:
        self.speeds, self.rows_per_batch, self.deaths = speeds, rows_per_batch, 0
        self.rng = np.random.default_rng(seed)
        self.transport = SimulatedTransport()
        self.timeline = SimpleNamespace(mark=lambda *_, **__: None)
        self.version = Version(0, 0)
        self.learners = SimulatedLearner(self)
        self.actors: list[_Actor] = []
        if speeds.all_die_s < math.inf:
            self.transport.schedule(Death(speeds.all_die_s, self._all_die))
        slow = set(range(math.ceil(speeds.slow * scorers)) if speeds.slow else ())
        # The first ones are there at once; who is spawned later has to start.
        self._started = False
        self.rollouts = Pool("rollout", self._spawn_engine, engines, transport=self.transport)
        self.scorers = Pool(
            "scorer",
            lambda slot: self._spawn_scorer(slot in slow),
            scorers,
            transport=self.transport,
        )
        self._started = True
        for pool in (self.rollouts, self.scorers):
            pool.wait_ready(1.0)

    def _all_die(self) -> None:
        for actor in list(self.actors):
            actor.die()

    def length(self, seed: int) -> int:
        """Tokens of the answer with that seed: log-normal, cut at the longest."""
        normal = np.random.default_rng(seed).standard_normal()
        spread = 1.0
        return int(
            min(
                self.speeds.longest,
                1 + self.speeds.mean_length * math.exp(spread * normal - spread**2 / 2),
            )
        )

    def evaluate(self, batch: Any, tokens: int) -> tuple[Any, Any]:
        uids, _ = batch.value
        zero = [0.0] * len(uids)
        info = {"uids": uids, "kl": zero, "penalty": zero, "entropy": zero, "gap": zero}
        seconds = tokens / self.speeds.evaluate_tokens
        return None, _remote(self.transport, self.learners.work).remote(seconds, info)

    def begin_export(self, version: Version) -> list[Any]:
        return [self.learners.work(0.0, version)]

    def send_weights(self, exported: list[Any]) -> None:
        self.version = self.learners.gather(exported)[0]
        writing = [a for a in self.actors if isinstance(a, Engine) and a.promises]
        assert not writing, f"{len(writing)} engines got weights while they wrote"
        self.transport.get(Ref(self.transport.now() + self.speeds.sync_s))

    def _spawn_engine(self, slot: int) -> tuple[Any, Any]:
        worker = Engine(self, self.speeds.restart_s if self._started else 0.0)
        return worker, worker.ready

    def _spawn_scorer(self, slow: bool) -> tuple[Any, Any]:
        worker = SimulatedScorer(self, self.speeds.restart_s if self._started else 0.0, slow)
        return worker, worker.ready
