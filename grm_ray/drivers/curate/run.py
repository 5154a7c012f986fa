"""Preference strength by the votes of cross-fitted reward models, as columns beside the pairs.

The pairs are split into folds by prompt. For each fold, reward models are trained on the other
folds and vote on it, so that no model has seen a prompt that it votes on (`votes`);
`data.curate` turns the votes into strengths and actions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from grm_ray.config.errors import ConfigError
from grm_ray.config.judging import CurateJob
from grm_ray.config.load import dump
from grm_ray.data import curate
from grm_ray.data.records import Pair
from grm_ray.data.sources import Quarantine
from grm_ray.drivers import scoring, subjobs
from grm_ray.drivers.checks.check import check
from grm_ray.drivers.curate.votes import Ballot, PairReader, ballots, row
from grm_ray.reporting.document import put
from grm_ray.runtime.disk import writing

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


def run(config: CurateJob, resume: bool = False) -> Path:
    """Train the voters, let them vote, write `curated.parquet`; returns its path.

    What has its votes already is not trained again: `resume` changes nothing.

    Raises:
        ConfigError: the data or the base config is wrong, and nothing was started; or a voter's
            job finds such a thing.
    """
    check(config)
    folder = Path(config.runs).expanduser().resolve() / config.name
    subjobs.open_folder(folder)
    put(folder / "config.yaml", dump(config))
    quarantine = Quarantine()
    pairs = PairReader(config, quarantine)
    quarantine.write(folder / "quarantine.jsonl")
    votes_PM = np.full((len(pairs.prompts), config.voters), np.nan)
    for ballot in ballots(config, folder, pairs):
        place = f"fold {ballot.fold + 1} of {config.folds}, voter {ballot.voter + 1}"
        print(place, flush=True)
        votes_PM[ballot.inside_P, ballot.voter] = _votes(config, folder, ballot)
    kept_P = np.isfinite(votes_PM).all(axis=1)
    quarantine.add_many(config.data.path, int((~kept_P).sum()), scoring.NO_SCORE)
    quarantine.write(folder / "quarantine.jsonl")
    if not kept_P.any():
        raise ConfigError(f"{config.data.path}: no pair received a vote")
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


def _votes(config: CurateJob, folder: Path, ballot: Ballot) -> np.ndarray:
    """Score differences of the fold's pairs in units of their median size, `(pairs,)`; NaN where
    the voter's template refused one.

    A voter's scores have no unit of their own; without the division one loud voter would decide.
    """
    file, job, asked = ballot.file(folder), ballot.job, ballot.asked
    if not file.exists():
        model = subjobs.train(job, folder / "voters" / f"{job.name}.yaml")
        sets = {"fold": ballot.votes}
        judged = subjobs.judge(
            model, sets, config.scoring, config.judges, model.parent, like=config
        )
        (scores,) = (judged / "scores" / "model").glob("fold-*.parquet")
        scoring.write(scoring.read(scores), file)
    found_P = _margins(scoring.read(file), len(asked.chosen), file)[asked.row_P] * asked.sign_P
    given_P = found_P[np.isfinite(found_P)]
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
    if not all(np.array_equal(row_A[side_A], np.arange(count)) for side_A in (chosen_A, ~chosen_A)):
        raise ValueError(f"{file}: it has scores of {len(score_A) // 2} pairs, expected {count}")
    return score_A[chosen_A].astype(np.float64) - score_A[~chosen_A]


def _write(pairs: Iterator[Pair], curated: curate.Curated, target: Path) -> None:
    """All pairs, dropped ones too, beside their columns; flipped ones with answers exchanged.

    The data's own margin and label smoothing stay where the policy sets none, but for flipped
    pairs: they were about the other label.
    """
    columns, flipped = curated.columns(), curated.flipped_P
    part = target.with_suffix(".part")
    rows: list[dict[str, Any]] = []
    with writing(target), pa.parquet.ParquetWriter(part, CURATED) as out:
        for number, pair in enumerate(pairs):
            found = row(pair.turned() if flipped[number] else pair)
            if flipped[number]:
                found |= {"margin": None, "label_smoothing": None}
            made = {name: values[number] for name, values in columns.items()}
            own = {k: found[k] for k in ("margin", "label_smoothing") if made[k] is None}
            rows.append({**found, **made, **own, "subset": pair.subset})
            if len(rows) == PAIRS_PER_BATCH:
                out.write_table(pa.Table.from_pylist(rows, CURATED))
                rows = []
        if rows:
            out.write_table(pa.Table.from_pylist(rows, CURATED))
    with writing(target):
        part.replace(target)


def _tell(curated: curate.Curated, target: Path) -> None:
    actions, counts = np.unique(curated.action_P.astype(str), return_counts=True)
    shown = ", ".join(f"{count} {action}" for action, count in zip(actions, counts, strict=True))
    against = float((curated.strength_mean_P < 0).mean())
    print(
        f"{len(curated.action_P)} pairs: {shown}; the voters disagree with the labels of "
        f"{100 * against:.1f} %"
    )
    print(f"train on it with data.train.path: {target}")
