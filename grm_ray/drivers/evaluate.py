"""Judge saved reward models on preference sets, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from grm_ray.config.judging import EvaluateJob
from grm_ray.config.load import ConfigError
from grm_ray.config.schema import Source
from grm_ray.data.files import digest
from grm_ray.data.sources import Quarantine, contests
from grm_ray.drivers import judging, scoring
from grm_ray.drivers.checks import check, roles
from grm_ray.drivers.run_folder import open_run
from grm_ray.models.checkpoint import model_identity
from grm_ray.reporting.evaluation import write_evaluation
from grm_ray.runtime import cluster
from grm_ray.runtime.placement import bundles

RESULT = "evaluation.json"


def run(config: EvaluateJob, resume: bool = False) -> Path:
    """Score, judge, write `evaluation.json`, `evaluation.md` and the page, whose path it returns.

    With `resume`, what an earlier start has scored is taken from its files.

    Raises:
        ConfigError: config, a model or a set is wrong.
    """
    check(config)
    wanted = bundles(roles(config))
    with cluster.session(wanted):
        folder = open_run(config, resume)
        quarantine = Quarantine()
        with cluster.placement_group(wanted) as placed:
            tables = _scored(config, folder, placed, wanted, quarantine)
        quarantine.write(folder / "quarantine.jsonl")
    result = judge(config, tables)
    result["left_out"] = quarantine.counts()
    (folder / RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return write_evaluation(result, folder)


def judge(config: EvaluateJob, tables: dict[str, dict[str, pa.Table]]) -> dict[str, Any]:
    """All figures, from each model's tables of scores by set."""
    found = {
        model: {name: judging.contests(table) for name, table in of_model.items()}
        for model, of_model in tables.items()
    }
    first = next(iter(tables.values()))
    for name, ensemble in config.ensembles.items():
        scores = judging.combine(
            [tables[member] for member in ensemble.members],
            ensemble.aggregate,
            ensemble.reference or next(iter(config.sets)),
        )
        found[name] = {s: judging.contests(table, scores[s]) for s, table in first.items()}
    baseline = config.baseline or next(iter(found))
    return {
        "name": config.name,
        "baseline": baseline,
        "models": {
            **{model: {"path": path} for model, path in config.models.items()},
            **{name: ensemble.model_dump() for name, ensemble in config.ensembles.items()},
        },
        **judging.side_by_side(found, config.sets, dict.fromkeys(found, baseline)),
    }


def _scored(
    config: EvaluateJob, folder: Path, placed: Any, wanted: list, quarantine: Quarantine
) -> dict[str, dict[str, pa.Table]]:
    """model -> set -> scores; one model at a time is in memory."""
    tables: dict[str, dict[str, pa.Table]] = {}
    digests = {name: digest(source) for name, source in config.sets.items()}
    for number, (model, path) in enumerate(config.models.items()):
        identity = model_identity(path)
        files = {
            name: _file(folder / "scores" / model, name, identity, digests[name], config)
            for name in config.sets
        }
        tables[model] = {}
        pool = None
        try:
            for name, source in config.sets.items():
                # Every model reads the same rows: what is left out is told once.
                aside = quarantine if number == 0 else Quarantine()
                if not files[name].exists():
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
                        )
                        pool.wait_ready(config.timeout_s)
                    table = _score(pool, source, config, aside)
                    scoring.write(table, files[name])
                tables[model][name] = scoring.read(files[name])
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
    key = scoring.key(identity, config.sets[name], digest, config.seed, config.scoring)
    return folder / f"{name}-{key}.parquet"
