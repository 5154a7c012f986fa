"""A grid of reward models, each trained and judged once, however often the study is started.

A cell is a reward-model job and an evaluation, each in a process of its own. Its result is one
JSON file, named by the hash of all that it depends on; beside it stay the scores, from which the
study's figures are made.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import shutil
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from grm_ray.config.judging import StudyJob
from grm_ray.config.load import ConfigError, apply, dump, validate
from grm_ray.config.schema import RewardModelJob
from grm_ray.data.files import digest
from grm_ray.data.sources import Quarantine, contests
from grm_ray.drivers import judging, scoring, subjobs
from grm_ray.drivers.checks import check
from grm_ray.drivers.evaluate import RESULT
from grm_ray.models.backbone import resolve
from grm_ray.models.checkpoint import model_identity
from grm_ray.reporting.evaluation import write_evaluation
from grm_ray.study.preferences import Contest, detectable_difference

# What a cell's outcome does not depend on, up to rounding.
WITHOUT_EFFECT = (
    "name",
    "runs",
    "tracking",
    "workers",
    "timeout_s",
    "checkpoint.every",
    "checkpoint.keep",
)
# Share of pairs that one of two models alone wins, before there is a measured one.
DISCORDANCE = 0.2


@dataclass(frozen=True)
class Cell:
    """One choice from every factor, and the job that it makes."""

    choices: dict[str, str]
    job: RewardModelJob
    key: str

    def __str__(self) -> str:
        return "/".join(self.choices.values())


def run(config: StudyJob, resume: bool = False) -> Path:
    """Train and judge what has no result yet, then write `study.json` and the page.

    A study always goes on where it stopped: `resume` changes nothing.

    Raises:
        ConfigError: a cell's config, a model or a set is wrong; nothing was started.
    """
    check(config)
    folder = Path(config.runs).expanduser().resolve() / config.name
    cells = grid(config, folder)
    for cell in cells:
        check(cell.job)
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    beforehand = _say_what_can_be_seen(config)
    for number, cell in enumerate(cells, start=1):
        found = "has its result" if _result(folder, cell).exists() else "begins"
        print(f"cell {number} of {len(cells)}, {cell}: {found} ({cell.key})", flush=True)
        if found == "begins":
            _make(cell, config, folder)
            print(f"  {_line(_result(folder, cell))}", flush=True)
    result = {**summary(config, cells, folder), "beforehand": beforehand}
    (folder / "study.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return write_evaluation(result, folder)


def grid(config: StudyJob, folder: Path) -> list[Cell]:
    """Every cell, validated.

    Raises:
        ConfigError: naming the cell and the key that is wrong.
    """
    sets = {
        name: [source.model_dump(mode="json"), digest(source)]
        for name, source in config.sets.items()
    }
    cells = []
    for picked in itertools.product(*(list(choices) for choices in config.vary.values())):
        choices = dict(zip(config.vary, picked, strict=True))
        raw = copy.deepcopy(config.base)
        for factor, choice in choices.items():
            for path, value in config.vary[factor][choice].items():
                apply(raw, path, copy.deepcopy(value))
        where = f"cell {'/'.join(picked)}"
        job = validate(RewardModelJob, {"name": "cell", "tracking": [], **raw}, where)
        key = _key(job, sets, config)
        job = job.model_copy(update={"name": key, "runs": str(folder / "cells")})
        cells.append(Cell(choices, job, key))
    return cells


def summary(config: StudyJob, cells: list[Cell], folder: Path) -> dict[str, Any]:
    """The whole grid side by side: repetitions as one model, ensembles of them as another."""
    groups: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[tuple(c for f, c in cell.choices.items() if f != config.repeat)].append(cell)
    found: dict[str, dict[str, list[Contest]]] = {}
    baselines: dict[str, str] = {}
    models: dict[str, Any] = {}
    factors = [name for name in config.vary if name != config.repeat]
    place = next(i for i, f in enumerate(factors) if config.baseline in config.vary[f])
    for choices, members in groups.items():
        name = "/".join(choices)
        matched = "/".join((*choices[:place], config.baseline, *choices[place + 1 :]))
        tables = [_scores(folder, cell, config) for cell in members]
        found[name] = {
            s: [c for of_cell in tables for c in judging.contests(of_cell[s])] for s in config.sets
        }
        baselines[name] = matched
        models[name] = {"cells": [cell.key for cell in members], config.repeat: len(members)}
        for how in config.ensembles:
            scores = judging.combine(tables, how, next(iter(config.sets)))
            # Repeated, so that it can be compared with the repetitions row by row.
            found[f"{name}/{how}"] = {
                s: judging.contests(tables[0][s], scores[s]) * len(members) for s in config.sets
            }
            baselines[f"{name}/{how}"] = matched
            models[f"{name}/{how}"] = {"members": [c.key for c in members], "aggregate": how}
    return {
        "name": config.name,
        "baseline": config.baseline,
        "models": models,
        **judging.side_by_side(found, config.sets, baselines),
        "left_out": {},
    }


def _make(cell: Cell, config: StudyJob, folder: Path) -> None:
    """Train and judge one cell; its result file comes last."""
    began = time.time()
    run_folder = folder / "cells" / cell.key
    model = subjobs.train(cell.job, folder / "cells" / f"{cell.key}.yaml")
    judged = subjobs.judge(
        model, config.sets, config.scoring, config.judges, run_folder, like=config
    )
    for table in (judged / "scores" / "model").glob("*.parquet"):
        scoring.write(scoring.read(table), folder / "cells" / f"{cell.key}.scores" / table.name)
    metrics = [json.loads(line) for line in (run_folder / "metrics.jsonl").open(encoding="utf-8")]
    result = {
        "cell": cell.choices,
        "config": cell.job.model_dump(mode="json", exclude={"name", "runs"}),
        "last_metrics": metrics[-1],
        "evaluation": json.loads((judged / RESULT).read_text(encoding="utf-8")),
        "seconds": round(time.time() - began, 1),
    }
    target = _result(folder, cell)
    part = target.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    part.replace(target)
    if not config.keep_models:
        shutil.rmtree(run_folder)


def _scores(folder: Path, cell: Cell, config: StudyJob) -> dict[str, pa.Table]:
    kept = folder / "cells" / f"{cell.key}.scores"
    tables = {}
    for name in config.sets:
        (path,) = kept.glob(f"{name}-" + "[0-9a-f]" * 16 + ".parquet")
        tables[name] = scoring.read(path)
    return tables


def _key(job: RewardModelJob, sets: dict[str, Any], config: StudyJob) -> str:
    """Hash of what a cell's result depends on: job, weights, data, and how it is judged."""
    plain = job.model_dump(mode="json")
    for path in WITHOUT_EFFECT:
        *parents, last = path.split(".")
        node = plain
        for parent in parents:
            node = node[parent]
        del node[last]
    data = [digest(source) for source in [*job.data.train, *job.data.eval.values()]]
    parts = [plain, model_identity(resolve(job.model.path)), data, sets, config.seed]
    parts.append(config.scoring.dtype)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _result(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.key}.json"


def _line(path: Path) -> str:
    """A finished cell's accuracies in one line."""
    result = json.loads(path.read_text(encoding="utf-8"))
    shown = [
        f"{name} {100 * models['model']['accuracy']['mean']:.1f}"
        for name, models in result["evaluation"]["results"].items()
    ]
    return ", ".join(shown) + f" ({result['seconds']:.0f} s)"


def _say_what_can_be_seen(config: StudyJob) -> dict[str, Any]:
    """Before any result: the smallest gain that each set's size would show."""
    found = {}
    repeats = len(config.vary[config.repeat])
    for name, source in config.sets.items():
        rows = [c.prompt_id for c in contests(source, Quarantine(), config.seed)]
        if not rows:
            raise ConfigError(f"sets.{name}: {source.path}: no usable preference pair")
        gain = detectable_difference(len(rows), len(set(rows)), 0.6, DISCORDANCE)
        found[name] = {
            "contests": len(rows),
            "prompts": len(set(rows)),
            "detectable": None if gain != gain else gain,
            "assumed_discordance": DISCORDANCE,
        }
        shown = "none" if gain != gain else f"{100 * gain:.1f} points"
        print(
            f"{name}: {len(rows)} contests, {len(set(rows))} prompts, {repeats} repetitions; "
            f"smallest gain that would show (power 0.8, discordance {DISCORDANCE}): {shown}",
            flush=True,
        )
    return found
