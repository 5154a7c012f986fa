"""Who votes on what: the pairs of a curation in folds by prompt, and the voters of each fold.

A voter is trained on the other folds, so that it has not seen a prompt that it votes on. Its job is
named by all that its votes depend on: what has been voted is found again, and nothing else is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grm_ray.config.errors import ConfigError
from grm_ray.config.judging import CurateJob
from grm_ray.config.load import validate
from grm_ray.config.reward_model import PairData, RewardModelJob
from grm_ray.config.schema import Source
from grm_ray.data import curate, survey
from grm_ray.data.records import Pair, as_messages
from grm_ray.data.sources import Quarantine
from grm_ray.drivers.job_key import Keys, precision
from grm_ray.runtime.disk import writing


class PairReader:
    """The pairs that `data` chooses (`limit`, `pairs_per_prompt`, `shuffle`, `flip`), read anew
    each time; those with an answer of several turns are left out."""

    def __init__(self, config: CurateJob, quarantine: Quarantine) -> None:
        self._data = PairData(train=[config.data], holdout=0)
        self._plan = survey.plan(self._data, config.seed, quarantine)
        chosen = sum(self._plan.counts)
        # Voters may have seen a prompt that is another one in case or spacing only.
        self.prompts = [pair.plain_prompt for pair in self]
        quarantine.add_many(
            config.data.path, chosen - len(self.prompts), "an answer of several turns"
        )

    def __iter__(self) -> Iterator[Pair]:
        for chunk in survey.read(self._data, self._plan, "train"):
            for pair in chunk.items:
                if isinstance(pair.chosen, str) and isinstance(pair.rejected, str):
                    yield pair


@dataclass
class Asked:
    """The distinct pairs of a fold that voters are asked about, in the order of the votes file.

    Formats in which every row counts repeat pairs, also the other way round: each is asked once.
    """

    number: dict[bytes, int]  # of each pair, whichever answer is preferred
    chosen: list[bytes]  # the answer in whose favour the vote counts
    row_P: list[int]  # of each pair of the fold, its row in the votes file
    sign_P: list[float]  # -1 where the other answer is preferred

    def add(self, pair: Pair) -> bool:
        """Whether the pair is a new one."""
        row = self.number.setdefault(pair.key, len(self.chosen))
        new = row == len(self.chosen)
        if new:
            self.chosen.append(pair.names[1])
        self.row_P.append(row)
        self.sign_P.append(1.0 if pair.names[1] == self.chosen[row] else -1.0)
        return new


def voter(config: CurateJob, number: int = 0, train: Source | None = None) -> RewardModelJob:
    """The job that trains one voter, on `train`; left out, on all pairs, to be checked only.

    Raises:
        ConfigError: naming the key of `base` that is wrong.
    """
    source = config.data if train is None else train
    raw: dict[str, Any] = {
        "name": "voter",
        "tracking": [],
        **config.base,
        "seed": config.seed + number,
        "data": {**(config.base.get("data") or {}), "train": source.model_dump(mode="json")},
    }
    job = validate(RewardModelJob, raw, "base")
    if job.head.attributes:
        raise ConfigError(
            "base: head.attributes: voters learn from pairs, not from grades; leave it out"
        )
    return job


@dataclass(frozen=True)
class Ballot:
    """One voter's votes on one fold; the job is named by all that they depend on."""

    fold: int
    voter: int
    job: RewardModelJob
    votes: Source  # the pairs to vote on
    asked: Asked
    inside_P: np.ndarray  # of all pairs, those of the fold

    def file(self, folder: Path) -> Path:
        """Where their scores are kept."""
        return folder / "votes" / f"{self.job.name}.parquet"


def ballots(config: CurateJob, folder: Path, pairs: PairReader) -> Iterator[Ballot]:
    """Every voter of every fold, once the files of its fold are written.

    Raises:
        ConfigError: more folds than prompts.
    """
    try:
        fold_P = curate.folds(pairs.prompts, config.folds, config.seed)
    except ValueError as error:
        raise ConfigError(f"folds: {error}") from None
    keys = Keys()
    for fold in range(config.folds):
        paths, asked = _write_fold(folder / "folds", pairs, fold_P, fold)
        train, votes = (Source(path=str(path)) for path in paths)
        digests = keys.source(votes), precision(config.scoring.dtype, config.judges)
        for number in range(config.voters):
            job = voter(config, number, train)
            # Not the place alone: votes of another base, seed or fold are other votes.
            name = f"fold-{fold}-voter-{number}-{keys.of(job, *digests)}"
            job = job.model_copy(update={"name": name, "runs": str(folder / "voters")})
            yield Ballot(fold, number, job, votes, asked, fold_P == fold)


def _write_fold(
    folder: Path, pairs: PairReader, fold_P: np.ndarray, fold: int
) -> tuple[tuple[Path, Path], Asked]:
    """Files of the pairs outside the fold, to train on, and of those inside, to vote on."""
    with writing(folder):
        folder.mkdir(exist_ok=True)
    paths = folder / f"{fold}-train.jsonl", folder / f"{fold}-votes.jsonl"
    asked = Asked({}, [], [], [])
    with (
        writing(folder),
        paths[0].open("w", encoding="utf-8") as train,
        paths[1].open("w", encoding="utf-8") as ask,
    ):
        for number, pair in enumerate(pairs):
            inside = fold_P[number] == fold
            if not inside or asked.add(pair):
                line = json.dumps(row(pair), ensure_ascii=False)
                (ask if inside else train).write(line + "\n")
    return paths, asked


def row(pair: Pair) -> dict[str, Any]:
    """A pair in the common format."""
    return {
        "prompt": as_messages(pair.prompt),
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "margin": pair.margin,
        "label_smoothing": pair.smoothing,
    }
