"""Preference strength by the votes of cross-fitted reward models, as columns beside the pairs.

The pairs are split into folds by prompt. For each fold, reward models are trained on the other
folds and vote on it, so that no model has seen a prompt that it votes on; `data.curate` turns the
votes into strengths and actions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from grm_ray.config.judging import CurateJob
from grm_ray.config.load import dump, validate
from grm_ray.config.schema import RewardModelJob, Source
from grm_ray.data import curate, sources
from grm_ray.data.records import Answer, Pair
from grm_ray.data.sources import Quarantine
from grm_ray.drivers import judging, scoring, subjobs
from grm_ray.drivers.checks import check

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
        ConfigError: the data or the base config is wrong; nothing was started.
    """
    check(config)
    folder = Path(config.runs).expanduser().resolve() / config.name
    jobs = {place: _voter(config, folder, *place) for place in _places(config)}
    for job in jobs.values():
        check(job.model_copy(update={"data": _read_from(job, config.data)}))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    quarantine = Quarantine()
    prompts = [pair.prompt_id for pair in _pairs(config, quarantine)]
    quarantine.write(folder / "quarantine.jsonl")
    fold_P = curate.folds(prompts, config.folds, config.seed)
    votes_PM = np.full((len(prompts), config.voters), np.nan)
    for fold in range(config.folds):
        _write_fold(config, folder, fold_P, fold)
        for voter in range(config.voters):
            print(f"fold {fold + 1} of {config.folds}, voter {voter + 1}", flush=True)
            votes_PM[fold_P == fold, voter] = _votes(config, folder, jobs[fold, voter], fold, voter)
    curated = curate.act(
        curate.judged(votes_PM),
        config.policy,
        config.weakest,
        config.label_smoothing,
        config.margin_cap,
    )
    target = folder / "curated.parquet"
    _write(config, curated, target)
    _tell(curated, target)
    return target


def _places(config: CurateJob) -> list[tuple[int, int]]:
    return [(fold, voter) for fold in range(config.folds) for voter in range(config.voters)]


def _voter(config: CurateJob, folder: Path, fold: int, voter: int) -> RewardModelJob:
    """The job that trains one voter on the pairs outside `fold`."""
    raw: dict[str, Any] = {
        **config.base,
        "name": f"fold-{fold}-voter-{voter}",
        "runs": str(folder / "voters"),
        "seed": config.seed + voter,
        "tracking": [],
        "data": {
            **config.base.get("data", {}),
            "train": {"path": str(folder / "folds" / f"{fold}-train.jsonl")},
        },
    }
    return validate(RewardModelJob, raw, "base")


def _read_from(job: RewardModelJob, source: Any) -> Any:
    """The voter's data section as it stands before its fold is written."""
    return job.data.model_copy(update={"train": [source]})


def _pairs(config: CurateJob, quarantine: Quarantine) -> Iterator[Pair]:
    """The pairs with an answer of one turn each; the others are left out."""
    for pair in sources.iterate(config.data, quarantine, config.seed):
        if isinstance(pair.chosen, str) and isinstance(pair.rejected, str):
            yield pair


def _write_fold(config: CurateJob, folder: Path, fold_P: np.ndarray, fold: int) -> None:
    """The pairs outside the fold to train on, and those inside to vote on."""
    (folder / "folds").mkdir(exist_ok=True)
    train = (folder / "folds" / f"{fold}-train.jsonl").open("w", encoding="utf-8")
    votes = (folder / "folds" / f"{fold}-votes.jsonl").open("w", encoding="utf-8")
    with train, votes:
        for number, pair in enumerate(_pairs(config, Quarantine())):
            row = json.dumps(_row(pair.prompt, pair.chosen, pair.rejected), ensure_ascii=False)
            (votes if fold_P[number] == fold else train).write(row + "\n")


def _row(prompt: Any, chosen: Answer, rejected: Answer) -> dict[str, Any]:
    messages = [{"role": role, "content": content} for role, content in prompt]
    return {"prompt": messages, "chosen": chosen, "rejected": rejected}


def _votes(
    config: CurateJob, folder: Path, job: RewardModelJob, fold: int, voter: int
) -> np.ndarray:
    """Score differences of the fold's pairs in units of their median size, `(pairs,)`.

    A voter's scores have no unit of their own; without the division one loud voter would decide.
    """
    file = folder / "votes" / f"{job.name}.parquet"
    if not file.exists():
        model = subjobs.train(job, folder / "voters" / f"{job.name}.yaml")
        asked = {"fold": Source(path=str(folder / "folds" / f"{fold}-votes.jsonl"))}
        judged = subjobs.judge(
            model, asked, config.scoring, config.judges, model.parent, like=config
        )
        (scores,) = (judged / "scores" / "model").glob("fold-*.parquet")
        scoring.write(scoring.read(scores), file)
    found = judging.contests(scoring.read(file))
    votes = np.array([float(contest.margins_nm[0, 0]) for contest in found])
    print(f"  agrees with {100 * float((votes > 0).mean()):.1f} % of the labels", flush=True)
    return votes / curate.robust_scale(votes)


def _write(config: CurateJob, curated: curate.Curated, target: Path) -> None:
    """All pairs, dropped ones too, beside their columns; flipped ones with answers exchanged."""
    columns, flipped = curated.columns(), curated.flipped_P
    part = target.with_suffix(".part")
    rows: list[dict[str, Any]] = []
    with pa.parquet.ParquetWriter(part, CURATED) as out:
        for number, pair in enumerate(_pairs(config, Quarantine())):
            turned = pair.turned() if flipped[number] else pair
            made = {name: values[number] for name, values in columns.items()}
            rows.append({**_row(turned.prompt, turned.chosen, turned.rejected), **made})
            rows[-1]["subset"] = pair.subset
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
