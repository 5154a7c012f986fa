"""A cluster on paper: workers that take their time on a made-up clock, and die on it.

Everything above `runtime.transport` is the real thing: pools, health, ledger, gathering, stream,
what runs ahead, the update's plan.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from ray.exceptions import ObjectLostError, RayActorError

from benchmarks.parts.simulated_transport import (
    Death,
    Ref,
    SimulatedTransport,
    StreamRef,
    remote,
)
from grm_ray.data.tables import SCORES
from grm_ray.drivers.groups import InputLost, RankDied
from grm_ray.runtime.pool import Pool
from grm_ray.runtime.weights import Version

_LOST = ObjectLostError("00" * 28, None, "")


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
        machines: share of the deaths of engines that take with them what the engine has written.
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
    machines: float = 0.0
    all_die_s: float = math.inf


class _Actor:
    """Dies when its time has come, and with it all that it had promised."""

    def __init__(self, cluster: SimulatedCluster, ready_after: float) -> None:
        self.cluster, self.alive = cluster, True
        self._promised: list[Ref] = []
        self._streams: list[StreamRef] = []
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
        if self.cluster.rng.random() < self.cluster.speeds.machines:
            for stream in self._streams:
                for ref in stream.given:
                    ref.lost = True
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
        self.generate = remote(cluster.transport, self._generate)

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
        self._streams = [*self._streams[-1:], StreamRef(pairs, pairs[-1][0] + 1e-6)]
        return self.promise(self._streams[-1])


class SimulatedScorer(_Actor):
    """One batch after the other."""

    def __init__(self, cluster: SimulatedCluster, ready_after: float, slow: bool) -> None:
        super().__init__(cluster, ready_after)
        self._free, self._slow = 0.0, slow
        self.score = remote(cluster.transport, self._score)
        self.refuse = remote(cluster.transport, self._refuse)

    def _score(self, batch: Ref, row: int | None = None) -> Ref:
        if batch.lost:
            return self.promise(Ref(self.cluster.transport.now(), error=_LOST))
        uids, tokens = batch.value
        if row is not None:
            uids, tokens = uids[row : row + 1], tokens / len(uids)
        seconds = tokens / self.cluster.speeds.score_tokens * (10 if self._slow else 1)
        self._free = max(self._free, self.cluster.transport.now()) + seconds
        rows = len(uids)
        none = [None] * rows
        columns = [uids, [[0.5]] * rows, [[]] * rows, none, ["f"] * rows, none]
        return self.promise(Ref(self._free, pa.table(columns, schema=SCORES)))

    def _refuse(self, batch: Ref, row: int) -> Ref:
        raise AssertionError(f"nobody dies of {batch.value[0][row]}, but it is refused")


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
        self.ranks = [SimpleNamespace(learn=remote(self.cluster.transport, self._learn))]

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
        except ObjectLostError as error:
            raise InputLost(str(error)) from error
        except RayActorError as error:
            raise RankDied(str(error)) from error


class SimulatedCluster:
    """The cast of a PPO run (`drivers.ppo.workers.PpoCast`), on paper.

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
        self.say = lambda message: None
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
        ref = remote(self.transport, self.learners.work).remote(seconds, info)
        if batch.lost:
            ref.error = _LOST
        return None, ref

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
