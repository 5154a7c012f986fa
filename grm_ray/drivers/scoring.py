"""Scores of whole preference sets: texts go through a pool of scorers, scores go to a file.

A file of scores is named by what it was made from (reward model, rows, precision), so that an
evaluation that goes on (`--resume`) scores nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import ray

from grm_ray.config.judging import JudgeScoring
from grm_ray.config.schema import Source, Workers
from grm_ray.data.records import Contest, as_messages, as_turns
from grm_ray.data.tables import SCORED, TEXTS
from grm_ray.runtime import cluster
from grm_ray.runtime.disk import writing
from grm_ray.runtime.placement import Bundle
from grm_ray.runtime.pool import Pool, PoolFailed, Work
from grm_ray.workers.scorer import Scorer

ROWS_PER_BATCH = 64
# Why a contest is left out (`without_refused`).
NO_SCORE = "no score: refused by a chat template, or not a finite number"


def key(identity: str, source: Source, digest: str, seed: int, dtype: str) -> str:
    """Name of a file of scores: changes with anything that changes a score or the rows.

    Args:
        identity: `models.checkpoint.model_identity` of the reward model.
        digest: `data.files.digest` of the source.
        dtype: what the scorers compute in, see `job_key.precision`.
    """
    parts = [identity, source.model_dump(mode="json", exclude_defaults=True), digest, seed, dtype]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def without_refused(tables: Mapping[str, pa.Table]) -> tuple[dict[str, pa.Table], int]:
    """model -> its `SCORED`, without the contests that any model gave no finite score; how many."""
    refused = np.zeros(next(iter(tables.values())).num_rows, dtype=bool)
    for table in tables.values():
        refused |= ~np.isfinite(table["score"].to_numpy())
    contests = next(iter(tables.values()))["contest"].to_numpy()
    gone = np.unique(contests[refused])
    kept = pa.array(~np.isin(contests, gone))
    return {model: table.filter(kept) for model, table in tables.items()}, len(gone)


def start_scorers(
    model: str,
    scoring: JudgeScoring,
    workers: Workers,
    placed: Any,
    wanted: list[Bundle],
    logs: Path,
    say: Callable[[str], None],
    timeout_s: float,
) -> Pool:
    """A pool of scorers of one reward model, in every bundle of `wanted`."""

    def spawn(slot: int) -> tuple[Any, Any]:
        options = cluster.worker_options(placed, wanted, wanted[slot], workers.threads)
        worker = Scorer.options(**options).remote(
            [model],
            scoring.dtype,
            None,
            None,
            scoring.tokens_per_micro_batch,
            workers.threads,
            str(logs / f"scorer-{slot}.log"),
            scoring.trust_remote_code,
        )
        return worker, worker.start.remote()

    return Pool("scorer", spawn, workers.count, say=say, dead_s=timeout_s)


def stop_scorers(pool: Pool) -> None:
    """End the workers of a pool that nothing is asked of any more."""
    for handle in pool.handles:
        ray.kill(handle)


def score(pool: Pool, contests: Iterable[Contest], timeout_s: float) -> pa.Table:
    """`SCORED` of all `contests`, NaN where a chat template refuses one.

    At most a few batches of texts are in memory at a time.

    Raises:
        PoolFailed: scorers die again and again, or none answers for `timeout_s`.
    """
    batches = _batches(contests)
    parts: dict[int, pa.Table] = {}
    under_way, number, left, heard = 0, 0, True, time.monotonic()
    while left or under_way:
        while left and under_way < 2 * len(pool.handles):
            rows = next(batches, None)
            left = rows is not None
            if rows is not None:
                pool.submit(_work(number, *rows))
                number, under_way = number + 1, under_way + 1
        if not under_way:
            break
        ready = pool.wait(1.0)
        if ready or pool.busy:
            heard = time.monotonic()
        elif time.monotonic() - heard > timeout_s:
            raise PoolFailed(f"no scorer could be started for {timeout_s} s")
        events = [event for ref in ready for event in pool.handle(ref)]
        for event in [*events, *pool.look_after()]:
            if event.kind in ("lost", "gone"):
                pool.submit(event.work)
            else:
                batch, rows = event.work.payload
                parts[batch] = rows.set_column(
                    SCORED.get_field_index("score"), SCORED.field("score"), pa.array(event.value)
                )
                under_way -= 1
    return pa.concat_tables([SCORED.empty_table(), *(parts[i] for i in sorted(parts))])


def read(path: Path) -> pa.Table:
    """The `SCORED` that `write` left."""
    return pa.parquet.read_table(path)


def write(table: pa.Table, path: Path) -> None:
    """Beside, then renamed: a file that is there is whole.

    Raises:
        NotWritten: the disk is full, or the folder not this user's.
    """
    part = path.with_suffix(".part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        pa.parquet.write_table(table, part)
        part.replace(path)


def _work(batch: int, texts: pa.Table, rows: pa.Table) -> Work:
    return Work(lambda worker: worker.judge.remote(texts), (batch, rows))


def _batches(contests: Iterable[Contest]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """`TEXTS` and the `SCORED` rows that wait for their scores; answers to one prompt together."""
    texts: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for number, contest in enumerate(contests):
        sides = [(answer, True) for answer in contest.chosen]
        sides += [(answer, False) for answer in contest.rejected]
        for answer, chosen in sides:
            # Of two dialogues that part early, all turns but the last are context.
            turns = as_turns(answer)
            messages = as_messages((*contest.prompt, *turns[:-1]))
            texts.append(
                {
                    "group": number,
                    "messages": json.dumps(messages),
                    "response": turns[-1][1],
                }
            )
            rows.append(
                {
                    "contest": number,
                    "chosen": chosen,
                    "score": 0.0,
                    "characters": sum(len(text) for role, text in turns if role == "assistant"),
                    "subset": contest.subset,
                    "prompt_id": _cluster(contest),
                }
            )
        if len(rows) >= ROWS_PER_BATCH:
            yield pa.Table.from_pylist(texts, TEXTS), pa.Table.from_pylist(rows, SCORED)
            texts, rows = [], []
    if rows:
        yield pa.Table.from_pylist(texts, TEXTS), pa.Table.from_pylist(rows, SCORED)


def _cluster(contest: Contest) -> str:
    """The prompt, for whatever treats contests of one prompt together.

    RewardBench 2 asks each question of its Ties subset twice, as `ref:3` and as `tied:3`.
    """
    if contest.subset == "Ties" and contest.name:
        return f"ties:{contest.name.rpartition(':')[2]}"
    return contest.prompt_id
