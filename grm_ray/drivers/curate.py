"""Preference strength by the votes of cross-fitted reward models, as columns beside the pairs.

The pairs are split into folds by prompt. For each fold, reward models are trained on the other
folds and vote on it, so that no model has seen a prompt that it votes on; `data.curate` turns the
votes into strengths and actions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from grm_ray.config.judging import CurateJob
from grm_ray.config.load import ConfigError, dump, validate
from grm_ray.config.schema import PairData, RewardModelJob, Source
from grm_ray.data import curate, survey
from grm_ray.data.records import Pair
from grm_ray.data.sources import Quarantine
from grm_ray.drivers import scoring, subjobs
from grm_ray.drivers.checks import check
from grm_ray.drivers.job_key import Keys, precision

PAIRS_PER_BATCH = 1024
CURATED = pa.schema(
    [
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("subset", pa.string()),
        ("strength_mean", pa.float64()),
        ("strength_std", pa.float64()),
        ("action", pa.string()),
        ("label_smoothing", pa.float64()),
        ("margin", pa.float64()),
    ]
)


class _Pairs:
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
class _Asked:
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


def run(config: CurateJob, resume: bool = False) -> Path:
    """Train the voters, let them vote, write `curated.parquet`; returns its path.

    What has its votes already is not trained again: `resume` changes nothing.

    Raises:
        ConfigError: the data or the base config is wrong, and nothing was started; or a voter's
            job finds such a thing.
    """
    check(config)
    folder = Path(config.runs).expanduser().resolve() / config.name
    with subjobs.alone(folder):
        (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
        quarantine = Quarantine()
        pairs = _Pairs(config, quarantine)
        quarantine.write(folder / "quarantine.jsonl")
        votes_PM = _all_votes(config, folder, pairs)
        kept_P = ~np.isnan(votes_PM).any(axis=1)
        quarantine.add_many(
            config.data.path, int((~kept_P).sum()), "no score: refused by a chat template"
        )
        quarantine.write(folder / "quarantine.jsonl")
        if not kept_P.any():
            raise ConfigError(f"{config.data.path}: no pair got a vote")
        curated = curate.act(
            curate.judged(votes_PM[kept_P]),
            config.policy,
            config.weakest,
            config.label_smoothing,
            config.margin_cap,
        )
        target = folder / "curated.parquet"
        kept = (pair for pair, voted in zip(pairs, kept_P, strict=True) if voted)
        _write(kept, curated, target)
    _tell(curated, target)
    return target


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
        raise ConfigError("base: head.attributes: voters learn from pairs; leave it out")
    return job


def _all_votes(config: CurateJob, folder: Path, pairs: _Pairs) -> np.ndarray:
    """Votes of all voters, `(pairs, voters)`; NaN where a template refused a pair.

    Raises:
        ConfigError: more folds than prompts.
    """
    try:
        fold_P = curate.folds(pairs.prompts, config.folds, config.seed)
    except ValueError as error:
        raise ConfigError(f"folds: {error}") from None
    votes_PM = np.full((len(fold_P), config.voters), np.nan)
    keys = Keys()
    for fold in range(config.folds):
        train, votes, asked = _write_fold(folder / "folds", pairs, fold_P, fold)
        sources = [Source(path=str(path)) for path in (train, votes)]
        asked_of = [keys.source(sources[1]), precision(config.scoring.dtype, config.judges)]
        for number in range(config.voters):
            print(f"fold {fold + 1} of {config.folds}, voter {number + 1}", flush=True)
            job = voter(config, number, sources[0])
            # Not the place alone: votes of other pairs, of another base or seed are other votes.
            name = f"fold-{fold}-voter-{number}-{keys.of(job, *asked_of)}"
            update = {"name": name, "runs": str(folder / "voters")}
            votes_PM[fold_P == fold, number] = _votes(
                config, folder, job.model_copy(update=update), sources[1], asked
            )
    return votes_PM


def _write_fold(
    folder: Path, pairs: _Pairs, fold_P: np.ndarray, fold: int
) -> tuple[Path, Path, _Asked]:
    """Files of the pairs outside the fold, to train on, and of those inside, to vote on."""
    folder.mkdir(exist_ok=True)
    paths = folder / f"{fold}-train.jsonl", folder / f"{fold}-votes.jsonl"
    asked = _Asked({}, [], [], [])
    with paths[0].open("w", encoding="utf-8") as train, paths[1].open("w", encoding="utf-8") as ask:
        for number, pair in enumerate(pairs):
            inside = fold_P[number] == fold
            if not inside or asked.add(pair):
                row = json.dumps(_row(pair), ensure_ascii=False)
                (ask if inside else train).write(row + "\n")
    return *paths, asked


def _row(pair: Pair) -> dict[str, Any]:
    messages = [{"role": role, "content": content} for role, content in pair.prompt]
    return {
        "prompt": messages,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "margin": pair.margin,
        "label_smoothing": pair.smoothing,
    }


def _votes(
    config: CurateJob, folder: Path, job: RewardModelJob, votes: Source, asked: _Asked
) -> np.ndarray:
    """Score differences of the fold's pairs in units of their median size, `(pairs,)`.

    A voter's scores have no unit of their own; without the division one loud voter would decide.
    """
    file = folder / "votes" / f"{job.name}.parquet"
    if not file.exists():
        model = subjobs.train(job, folder / "voters" / f"{job.name}.yaml")
        judged = subjobs.judge(
            model, {"fold": votes}, config.scoring, config.judges, model.parent, like=config
        )
        (scores,) = (judged / "scores" / "model").glob("fold-*.parquet")
        scoring.write(scoring.read(scores), file)
    found_P = _margins(scoring.read(file), len(asked.chosen), file)[asked.row_P] * asked.sign_P
    given_P = found_P[~np.isnan(found_P)]
    if not len(given_P):
        raise ConfigError(f"{file}: the voter's chat template refuses every pair of the fold")
    print(f"  agrees with {100 * float((given_P > 0).mean()):.1f} % of the labels", flush=True)
    return found_P / curate.robust_scale(given_P)


def _margins(scored: pa.Table, count: int, file: Path) -> np.ndarray:
    """Chosen less rejected score of each row of the votes file.

    Raises:
        ValueError: the scores are not those of such a file.
    """
    score_A, chosen_A = scored["score"].to_numpy(), scored["chosen"].to_numpy()
    row_A = scored["contest"].to_numpy()
    expected = [np.arange(count)] * 2
    if not all(
        np.array_equal(row_A[side_A], rows)
        for side_A, rows in zip((chosen_A, ~chosen_A), expected, strict=True)
    ):
        raise ValueError(f"{file}: scores of {len(score_A) // 2} pairs, asked were {count}")
    return score_A[chosen_A].astype(np.float64) - score_A[~chosen_A]


def _write(pairs: Iterator[Pair], curated: curate.Curated, target: Path) -> None:
    """All pairs, dropped ones too, beside their columns; flipped ones with answers exchanged.

    The data's own margin and label smoothing stay where the policy sets none, but for flipped
    pairs: they were about the other label.
    """
    columns, flipped = curated.columns(), curated.flipped_P
    part = target.with_suffix(".part")
    rows: list[dict[str, Any]] = []
    with pa.parquet.ParquetWriter(part, CURATED) as out:
        for number, pair in enumerate(pairs):
            row = _row(pair.turned() if flipped[number] else pair)
            if flipped[number]:
                row |= {"margin": None, "label_smoothing": None}
            made = {name: values[number] for name, values in columns.items()}
            own = {name: row[name] for name in ("margin", "label_smoothing") if made[name] is None}
            rows.append({**row, **made, **own, "subset": pair.subset})
            if len(rows) == PAIRS_PER_BATCH:
                out.write_table(pa.Table.from_pylist(rows, CURATED))
                rows = []
        if rows:
            out.write_table(pa.Table.from_pylist(rows, CURATED))
    part.replace(target)


def _tell(curated: curate.Curated, target: Path) -> None:
    actions, counts = np.unique(curated.action_P.astype(str), return_counts=True)
    shown = ", ".join(f"{count} {action}" for action, count in zip(actions, counts, strict=True))
    against = float((curated.strength_mean_P < 0).mean())
    print(f"{len(curated.action_P)} pairs: {shown}; the voters are against {100 * against:.1f} %")
    print(f"train on it with data.train.path: {target}")
