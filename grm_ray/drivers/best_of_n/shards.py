"""Shards: which prompts are sampled together, which are done, and what becomes of a shard's rows.

A shard is some prompts and all answers to them, in one Parquet file that is there when it is whole.
Which prompts are whose follows from the source alone, and an answer's seed from its name: a shard
that was not finished is made again as it would have been.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from grm_ray.config.best_of_n import BestOfNJob
from grm_ray.config.schema import Source
from grm_ray.data import sources
from grm_ray.data.records import Prompt
from grm_ray.data.sources import Quarantine
from grm_ray.data.tables import flat, select
from grm_ray.drivers import scoring
from grm_ray.runtime.disk import writing
from grm_ray.runtime.ledger import StepLedger, seed, uid

GENERATED, SCORED = "generated", "scored"
TRUE_REWARD, REFUSED = "true_reward", "refused"
# Of a file's metadata: (id, reason) of the shard's prompts that were not answered.
_LEFT_OUT = b"left_out"


def column(proxy: str) -> str:
    """Where a proxy's scores stand in a shard."""
    return f"score_{proxy}"


def by_proxy(scores: pa.Table, proxies: list[str]) -> pa.Table:
    """A scorer's `SCORES` with a column a proxy, in the models' own units, fp32.

    Where there is no score it is NaN, and the last column says why.
    """
    values_BK = flat(scores, "scores")[0].reshape(-1, len(proxies))
    named = dict(zip(map(column, proxies), map(pa.array, values_BK.T), strict=True))
    said = {name: scores[name] for name in (TRUE_REWARD, REFUSED)}
    return pa.table({"uid": scores["uid"], **named, **said})


class LeftOut:
    """`quarantine.jsonl`, written as the source is read: only counts stay in memory.

    Attributes:
        now: what is being read adds its rows here; `flush` writes them down.
    """

    def __init__(self, path: Path) -> None:
        self.now, self._path, self._counts = Quarantine(), path, Counter[str]()
        self.now.write(path)

    @property
    def counts(self) -> dict[str, int]:
        """How many rows were left out, by reason."""
        return dict(self._counts)

    def flush(self) -> None:
        self._counts.update(self.now.counts())
        with (
            writing(self._path),
            self._path.open("a", encoding="utf-8", errors="backslashreplace") as out,
        ):
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.now.rows)
        self.now.rows.clear()


def numbered(config: BestOfNJob, left_out: LeftOut) -> Iterator[tuple[int, list[Prompt]]]:
    """(number, prompts) of every shard, read as they are asked for.

    Raises:
        ConfigError: the source cannot be used, or has no prompt.
    """
    prompts = _chosen(config.data.prompts, config.seed, left_out.now)
    for number, shard in enumerate(_lists(prompts, config.prompts_per_shard)):
        left_out.flush()
        yield number, shard
    left_out.flush()


def path(folder: Path, number: int) -> Path:
    """Of a shard's file in the run folder."""
    return folder / "samples" / f"shard-{number:06d}.parquet"


def finished(folder: Path) -> list[Path]:
    """The files of the finished shards, in the order of their numbers."""
    return sorted(
        (folder / "samples").glob("shard-*.parquet"), key=lambda file: int(file.stem.split("-")[1])
    )


def not_answered(file: Path) -> list[tuple[str, str]]:
    """(id, reason) of the shard's prompts that were not answered."""
    return json.loads(pq.read_schema(file).metadata[_LEFT_OUT])


class Shard:
    """One shard's rows while they are generated and scored.

    Args:
        prompts: reference to the shard's `PROMPTS` table.
        prompt_ids: of its rows.
        left_out: (id, reason) of the shard's other prompts.
        samples: answers to each prompt.
        run_seed: each answer's own follows from it and the answer's uid.
    """

    def __init__(
        self,
        number: int,
        prompts: Any,
        prompt_ids: list[str],
        left_out: list[tuple[str, str]],
        samples: int,
        run_seed: int,
    ) -> None:
        self.number, self.prompts = number, prompts
        self._left_out, self._seed = left_out, run_seed
        self._row_of = {
            uid(name, 0, sample): row
            for row, name in enumerate(prompt_ids)
            for sample in range(samples)
        }
        self._ledger = StepLedger(self._row_of, frozenset({GENERATED, SCORED}))
        self.batches: list[Any] = []  # references to `ROLLOUTS`
        self._scores: list[pa.Table] = []

    @property
    def complete(self) -> bool:
        return self._ledger.complete

    @property
    def answers(self) -> int:
        return len(self._row_of)

    def wanted(self) -> list[tuple[int, str, int]]:
        """(row of `prompts`, uid, seed) of each answer that is not there yet."""
        lacking = self._ledger.lacking(GENERATED)
        return [(self._row_of[name], name, seed(name, self._seed)) for name in lacking]

    def generated(self, batch: Any, uids: list[str]) -> bool:
        """Note a batch; whether it is news. It counts whole or not at all: two who are at the same
        rows may write them differently."""
        if any(self._ledger.has(GENERATED, name) for name in uids):
            return False
        self._ledger.record(GENERATED, uids)
        self.batches.append(batch)
        return True

    def scored(self, scores: pa.Table) -> None:
        """Note the scores of a batch; those that came before count once."""
        if self._ledger.record(SCORED, scores["uid"].to_pylist()):
            self._scores.append(scores)

    def table(self, batches: list[pa.Table]) -> pa.Table:
        """The shard's file: an answer a row, those of one prompt in a line, prompts in order.

        Args:
            batches: what `self.batches` refers to.
        """
        names = list(self._row_of)
        said = select(pa.concat_tables(batches), names)
        columns = {
            "uid": said["uid"],
            "prompt_id": pa.array([name.split(":")[0] for name in names]),
            "prompt": said["prompt"],
            "response": said["response"],
            "tokens": pc.list_value_length(said["response_tokens"]),
            "finished": said["finished"],
        }
        scores = select(pa.concat_tables(self._scores), names)
        columns |= {name: scores[name] for name in scores.column_names if name != "uid"}
        return pa.table(columns)

    def write(self, folder: Path, batches: list[pa.Table]) -> None:
        """Put the file in its place, whole."""
        table = self.table(batches) if self.answers else pa.table({})
        about = {_LEFT_OUT: json.dumps(self._left_out).encode()}
        scoring.write(table.replace_schema_metadata(about), path(folder, self.number))


def _chosen(source: Source, run_seed: int, quarantine: Quarantine) -> Iterator[Prompt]:
    """The prompts of `source` in file order, cut to `limit`: drawn by the seed, or the first."""
    if source.limit is None or not source.shuffle:
        yield from islice(sources.iterate_prompts(source, quarantine), source.limit)
        return
    # Two readings: how many prompts there are, then the ones that were drawn.
    count, unread = 0, Quarantine()
    for _ in sources.iterate_prompts(source, unread):
        count += 1
        unread.rows.clear()
    order = np.random.default_rng([run_seed, 1]).permutation(count)
    drawn = set(order[: source.limit].tolist())
    for number, prompt in enumerate(sources.iterate_prompts(source, quarantine)):
        if number in drawn:
            yield prompt


def _lists(prompts: Iterator[Prompt], size: int) -> Iterator[list[Prompt]]:
    while some := list(islice(prompts, size)):
        yield some
