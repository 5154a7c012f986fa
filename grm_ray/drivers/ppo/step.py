"""One step's rows: generated, scored and evaluated as they come, whatever dies meanwhile."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from grm_ray.config.errors import RunStopped
from grm_ray.data.packing import by_key
from grm_ray.drivers.groups import InputLost, RankDied
from grm_ray.drivers.ppo.workers import PpoCast
from grm_ray.drivers.scored_batches import ScoredBatch, again
from grm_ray.runtime.ledger import StepLedger, seed
from grm_ray.runtime.pool import Event, Work
from grm_ray.runtime.weights import Version

# What an evaluation says of each row beside its table.
SCALARS = ("kl", "penalty", "entropy", "gap")
# What a scorer says of each row: a list a row for the first two.
SCORED_COLUMNS = ("scores", "rules", "true_reward", "refused")
SCORED, EVALUATED, GENERATED = "scored", "evaluated", "generated"

_LOST = "a batch of rows was lost with the machine that held it"
# How often a row may be: then batches do not get from machine to machine at all.
_MOST_REMADE = 2


@dataclass
class Step:
    """What one step has gathered: batches by reference, scalars by uid.

    Attributes:
        at: stage -> when its last row came, on `time.perf_counter`'s clock.
        rollouts: reference to a batch -> uids of its rows.
        evaluations: batch, or what stands for several -> reference to their evaluations.
    """

    ledger: StepLedger
    at: dict[str, float] = field(default_factory=dict)
    rollouts: dict[Any, list[str]] = field(default_factory=dict)
    evaluations: dict[Any, Any] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def note(self, stage: str, uids: list[str]) -> list[str]:
        """Enter `uids` in the ledger; returns those that were not there yet."""
        fresh = self.ledger.record(stage, uids)
        if not self.ledger.left(stage):
            self.at.setdefault(stage, time.perf_counter())
        return fresh

    def forget(self, batch: Any) -> list[str]:
        """As if the rows of `batch` had never come; their uids."""
        uids = self.rollouts.pop(batch)
        self.evaluations.pop(batch, None)
        self.ledger.forget(uids)
        self.at.clear()  # of stages that were complete, and are not any more
        for name in uids:
            del self.rows[name]
        return uids

    def column(self, name: str) -> np.ndarray:
        """A scalar, or a list of them, of every row, in the order of the ledger's uids."""
        return np.array([self.rows[u][name] for u in self.ledger.uids], dtype=float)

    def mean(self, name: str) -> float | None:
        """Over the rows that have a finite one; None where there is none."""
        values = np.array([row[name] for row in self.rows.values()], dtype=float)
        known = values[np.isfinite(values)]
        return float(known.mean()) if len(known) else None

    def texts(self) -> pa.Table:
        """`uid`, `prompt` and `response` of every row, in no order.

        Raises:
            RankDied: a batch went with a machine; the learner lacks it as well.
        """
        try:
            return pa.concat_tables(ray.get(list(self.rollouts))).select(
                ["uid", "prompt", "response"]
            )
        except ray.exceptions.ObjectLostError as error:
            raise RankDied(_LOST) from error

    @property
    def learnable(self) -> np.ndarray:
        """`(B,)`: whether each row has all that its reward is made of."""
        parts = [self.column(name) for name in ("scores", "rules")]
        return np.isfinite(np.hstack(parts)).all(axis=1)

    def phases(self, since: float) -> dict[str, float]:
        """Seconds from `since` until all was generated, and what each later stage took on top."""
        generated = max(since, self.at[GENERATED])
        scored = max(generated, self.at[SCORED])
        evaluated = max(scored, self.at.get(EVALUATED, 0.0))
        return {
            "phase/generate": generated - since,
            "phase/score": scored - generated,
            "phase/evaluate": evaluated - scored,
        }


@dataclass(frozen=True)
class Writing:
    """What a rollout worker is asked for: the payload of its work."""

    owner: Gathering
    uids: list[str]


class Gathering:
    """Gathers one step; `stream.Stream` tells it what has come.

    Args:
        prompts: reference to the run's `PROMPTS` table.
        rows: (row of `prompts`, uid) of each answer wanted.
        version: the weights that the rows are written by; those of a worker that was replaced
            meanwhile may be newer.
        run_seed: each row's own follows from it and the uid.
        evaluate: have the learner evaluate the rows too, to learn from them.
        greedy: the most likely answers instead of sampled ones.
    """

    def __init__(
        self,
        cast: PpoCast,
        prompts: Any,
        rows: list[tuple[int, str]],
        version: Version,
        run_seed: int,
        evaluate: bool,
        greedy: bool = False,
    ) -> None:
        self._cast, self._prompts, self._version, self._seed = cast, prompts, version, run_seed
        self._greedy = greedy
        self._needs = {GENERATED, SCORED} | ({EVALUATED} if evaluate else set())
        self._row_of = {name: row for row, name in rows}
        self.step = Step(StepLedger(list(self._row_of), frozenset(self._needs)))
        # Reference to metadata -> reference to table, and the batch; None: several.
        self.evaluations: dict[Any, tuple[Any, Any]] = {}
        self._released = False
        self._writing: dict[str, Writing] = {}  # uid -> the last work that was to write it
        self._remade: Counter[str] = Counter()
        self._unevaluated: list[tuple[Any, int]] = []  # batches that wait; their tokens

    @property
    def generated(self) -> bool:
        return not self.step.ledger.left(GENERATED)

    @property
    def complete(self) -> bool:
        return self.step.ledger.complete

    @property
    def scored(self) -> int:
        """How many rows are."""
        return len(self._row_of) - self.step.ledger.left(SCORED)

    def lacking(self) -> dict[str, int]:
        """stage -> rows that it has not had."""
        return {need: self.step.ledger.left(need) for need in sorted(self._needs)}

    def begin(self) -> None:
        """Ask the rollout workers for the rows."""
        self._request(list(self._row_of))

    def release(self) -> None:
        """Let the learner evaluate: what is called before the update that comes before these rows
        would make it see them with an older policy than it learns from."""
        self._released = True
        self._evaluate()

    def _request(self, uids: list[str]) -> None:
        """Share `uids` out over the rollout workers, those of one prompt to one worker."""
        groups = by_key(self._row_of[name] for name in uids)
        shares = min(len(self._cast.rollouts.handles), len(groups))
        for share in np.array_split(np.arange(len(groups)), shares):
            names = [uids[i] for group in share for i in groups[group]]
            wanted = [(self._row_of[u], u, seed(u, self._seed)) for u in names]
            writing = Writing(self, names)
            self._writing |= dict.fromkeys(names, writing)
            self._cast.rollouts.submit(
                Work(
                    lambda worker, wanted=wanted: worker.generate.options(
                        num_returns="streaming"
                    ).remote(self._prompts, wanted, self._greedy),
                    writing,
                )
            )

    def on_generated(self, event: Event) -> None:
        """A rollout worker streamed a batch, or died with what it had.

        Raises:
            RunStopped: the table of prompts is lost, from which everything is made.
        """
        step = self.step
        if event.kind == "gone":
            raise RunStopped("the table of prompts was lost with the machine that held it")
        if event.kind in ("lost", "end"):  # at the end too: see below
            asked: Writing = event.work.payload
            mine = [u for u in asked.uids if self._writing[u] is asked]
            lacking = [u for u in mine if not step.ledger.has(GENERATED, u)]
            if lacking:
                self._request(lacking)
        elif event.kind == "item":
            batch, metadata = event.value
            if any(Version(*v) < self._version for v in metadata["versions"]):
                raise RuntimeError(
                    f"rows were written by weights {metadata['versions']}, expected {self._version}"
                )
            uids = metadata["uids"]
            # Two may be at the same rows, and write them differently. A batch counts whole or not
            # at all, so that everything that is known of a row is of one text.
            if any(step.ledger.has(GENERATED, name) for name in uids):
                return
            step.note(GENERATED, uids)
            step.rollouts[batch] = uids
            for i, name in enumerate(uids):
                step.rows[name] = {
                    "length": metadata["lengths"][i],
                    "tokens": metadata["tokens"][i],
                    "finished": metadata["finished"][i],
                    "version": metadata["versions"][i][1],
                }
            self._cast.timeline.mark("rows ready", key=metadata["uids"][0])
            ScoredBatch(self, batch, len(uids)).submit(self._cast.scorers)
            if EVALUATED in self._needs:
                self._unevaluated.append((batch, sum(metadata["tokens"])))
                self._evaluate()

    def _evaluate(self) -> None:
        """Hand the learner what waits for it; under ZeRO-3 all at once, or not yet."""
        together = self._cast.evaluates_together
        if not self._released or not self._unevaluated or (together and not self.generated):
            return
        if together:
            batches, tokens = (list(x) for x in zip(*self._unevaluated, strict=True))
            begun = self._cast.evaluate_together(batches, tokens)
            self.evaluations |= {info: (table, None) for table, info in begun}
        else:
            for batch, tokens in self._unevaluated:
                table, info = self._cast.evaluate(batch, tokens)
                self.evaluations[info] = table, batch
        self._unevaluated.clear()

    def _make_again(self, batch: Any) -> None:
        """The batch was lost with the machine that held it before all had read it.

        Raises:
            RankDied: it happens again and again; or ranks that evaluate all batches together cannot
                take one back.
        """
        uids = self.step.forget(batch)
        self._remade.update(uids)
        together = self._cast.evaluates_together and EVALUATED in self._needs
        if together or max(self._remade[name] for name in uids) > _MOST_REMADE:
            raise RankDied(_LOST)
        self._cast.say(f"{len(uids)} rows were lost with a machine and are generated again")
        self._unevaluated = [each for each in self._unevaluated if each[0] is not batch]
        self._cast.rollouts.retried += 1
        self._request(uids)

    def on_scored(self, event: Event) -> None:
        """A scorer answered, or died with what it had, or found no batch.

        Raises:
            RankDied: as `_make_again`.
        """
        batch = event.work.payload.batch
        if batch not in self.step.rollouts:
            return  # its rows are made again
        if event.kind == "gone":
            self._make_again(batch)
            return
        if event.kind == "lost":
            again(event, self._cast.scorers)
            return
        table: pa.Table = event.value
        columns = [table[name].to_pylist() for name in ("uid", *SCORED_COLUMNS)]
        fresh = set(self.step.note(SCORED, columns[0]))
        for name, *values in zip(*columns, strict=True):
            if name in fresh:
                self.step.rows[name] |= dict(zip(SCORED_COLUMNS, values, strict=True))

    def on_evaluated(self, ref: Any) -> None:
        """A learner rank evaluated a batch.

        Raises:
            RankDied: it died instead; or of what all ranks evaluate together, something is lost.
        """
        table, batch = self.evaluations.pop(ref)
        if batch is not None and batch not in self.step.rollouts:
            return  # its rows are made again
        try:
            info = self._cast.learners.gather([ref])[0]
        except InputLost:
            if batch is None:
                raise
            self._make_again(batch)
            return
        fresh = set(self.step.note(EVALUATED, info["uids"]))
        self.step.evaluations[ref if batch is None else batch] = table
        for i, name in enumerate(info["uids"]):
            if name in fresh:
                self.step.rows[name] |= {key: info[key][i] for key in SCALARS}
