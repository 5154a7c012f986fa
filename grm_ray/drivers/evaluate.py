"""Judge saved reward models on preference sets, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from grm_ray.config.errors import ConfigError
from grm_ray.config.judging import EvaluateJob
from grm_ray.config.schema import Source
from grm_ray.data.files import digest
from grm_ray.data.sources import Quarantine, contests
from grm_ray.drivers import judging, scoring
from grm_ray.drivers.checks.check import check
from grm_ray.drivers.checks.plan import bundles_of
from grm_ray.drivers.job_key import precision
from grm_ray.drivers.run_folder import claim, open_run
from grm_ray.models.checkpoint import model_identity
from grm_ray.reporting.document import put
from grm_ray.reporting.evaluation import RESULT, write_evaluation
from grm_ray.runtime import cluster
from grm_ray.runtime.disk import writing


def run(config: EvaluateJob, resume: bool = False) -> Path:
    """Score, judge, write `evaluation.json`, `evaluation.md` and the page, whose path it returns.

    With `resume`, what an earlier start has scored is taken from its files.

    Raises:
        ConfigError: config, a model or a set is wrong.
    """
    check(config)
    claim(config)
    wanted = bundles_of(config)
    with cluster.session(wanted):
        folder = open_run(config, resume)
        with cluster.placement_group(wanted) as placed:
            tables = _scored(config, folder, placed, wanted)
    quarantine = _left_out(config, folder)
    kept: dict[str, dict[str, pa.Table]] = {model: {} for model in config.models}
    for name, source in config.sets.items():
        found, refused = scoring.without_refused({m: tables[m][name] for m in tables})
        quarantine.add_many(source.path, refused, scoring.NO_SCORE)
        for model, table in found.items():
            kept[model][name] = table
        if not next(iter(found.values())).num_rows:
            raise ConfigError(f"sets.{name}: {source.path}: no row received a score")
    quarantine.write(folder / "quarantine.jsonl")
    result = {**judge(config, kept), "left_out": quarantine.counts()}
    put(folder / RESULT, json.dumps(result, indent=1) + "\n")
    return write_evaluation(result, folder)


def judge(config: EvaluateJob, tables: dict[str, dict[str, pa.Table]]) -> dict[str, Any]:
    """All figures, from each model's tables of scores by set."""
    found = {
        model: {name: judging.contests(table) for name, table in of_model.items()}
        for model, of_model in tables.items()
    }
    first = next(iter(tables.values()))
    for name, ensemble in config.ensembles.items():
        try:
            scores = judging.combine(
                [tables[member] for member in ensemble.members],
                ensemble.aggregate,
                ensemble.reference or next(iter(config.sets)),
            )
        except ValueError as error:
            raise ConfigError(f"ensembles.{name}: {error}") from None
        found[name] = {s: judging.contests(table, scores[s]) for s, table in first.items()}
    baseline = config.baseline or next(iter(found))
    return {
        "name": config.name,
        "baseline": baseline,
        "models": {
            **{model: {"path": path} for model, path in config.models.items()},
            **{name: ensemble.model_dump() for name, ensemble in config.ensembles.items()},
        },
        **judging.side_by_side(
            found, config.sets, dict.fromkeys(found, baseline), ensembles=config.ensembles
        ),
    }


def _scored(
    config: EvaluateJob, folder: Path, placed: Any, wanted: list
) -> dict[str, dict[str, pa.Table]]:
    """model -> set -> scores; one model at a time is in memory."""
    digests = {name: digest(source) for name, source in config.sets.items()}
    tables: dict[str, dict[str, pa.Table]] = {}
    for model, path in config.models.items():
        identity, tables[model], pool = model_identity(path), {}, None
        try:
            for name, source in config.sets.items():
                file = _file(folder / "scores" / model, name, identity, digests[name], config)
                if not file.exists():
                    if pool is None:
                        print(f"{model}: loading {path}", flush=True)
                        pool = scoring.start_scorers(
                            path,
                            config.scoring,
                            config.workers,
                            placed,
                            wanted,
                            folder / "logs",
                            print,
                            config.timeout_s,
                        )
                        pool.wait_ready(config.timeout_s)
                    aside = Quarantine()
                    table = _score(pool, source, config, aside)
                    with writing(_aside(folder, name)):
                        _aside(folder, name).parent.mkdir(parents=True, exist_ok=True)
                    aside.write(_aside(folder, name))
                    scoring.write(table, file)
                tables[model][name] = scoring.read(file)
                print(f"{model}: {name}: {tables[model][name].num_rows} answers scored", flush=True)
        finally:
            if pool is not None:
                scoring.stop_scorers(pool)
    return tables


def _score(pool: Any, source: Source, config: EvaluateJob, quarantine: Quarantine) -> pa.Table:
    table = scoring.score(pool, contests(source, quarantine, config.seed), config.timeout_s)
    if not table.num_rows:
        raise ConfigError(f"{source.path} (split '{source.split}'): no usable preference pair")
    return table


def _file(folder: Path, name: str, identity: str, digest: str, config: EvaluateJob) -> Path:
    dtype = precision(config.scoring.dtype, config.workers)
    key = scoring.key(identity, config.sets[name], digest, config.seed, dtype)
    return folder / f"{name}-{key}.parquet"


def _aside(folder: Path, name: str) -> Path:
    """What a set's rows lost when they were read: every model reads the same."""
    return folder / "scores" / f"{name}.quarantine.jsonl"


def _left_out(config: EvaluateJob, folder: Path) -> Quarantine:
    quarantine = Quarantine()
    for name in config.sets:
        with _aside(folder, name).open(encoding="utf-8") as lines:
            quarantine.rows += [json.loads(line) for line in lines]
    return quarantine
