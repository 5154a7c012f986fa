"""A grid of reward models, each trained and judged once, however often the study is started.

A cell is a reward-model job and an evaluation, each in a process of its own. Its result is one
JSON file, named by the hash of all that it depends on; beside it stay the scores, from which the
study's figures are made.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from grm_ray.config.errors import ConfigError
from grm_ray.config.judging import StudyJob
from grm_ray.config.load import dump
from grm_ray.data import sources
from grm_ray.data.sources import Quarantine
from grm_ray.drivers import judging, scoring, subjobs
from grm_ray.drivers.checks.check import check
from grm_ray.drivers.study.grid import GridCell, grid
from grm_ray.reporting.document import put
from grm_ray.reporting.evaluation import RESULT, write_evaluation
from grm_ray.study.preferences import detectable_difference

# Share of pairs that one of two models alone wins, before there is a measured one.
DISCORDANCE = 0.2


def run(config: StudyJob, resume: bool = False) -> Path:
    """Train and judge what has no result yet, then write `study.json` and the page.

    A study always goes on where it stopped: `resume` changes nothing.

    Raises:
        ConfigError: a cell's config, a model or a set is wrong, and nothing was started; or a
            cell's job finds such a thing.
    """
    check(config)
    folder = Path(config.runs).expanduser().resolve() / config.name
    cells = grid(config, folder)
    subjobs.open_folder(folder)
    (folder / "cells").mkdir(exist_ok=True)
    put(folder / "config.yaml", dump(config))
    quarantine = Quarantine()
    beforehand = _say_what_can_be_seen(config, cells, quarantine)
    quarantine.write(folder / "quarantine.jsonl")
    for number, cell in enumerate(cells, start=1):
        found = "already has its result" if _result(folder, cell).exists() else "starts"
        print(f"cell {number} of {len(cells)}, {cell}: {found} ({cell.key})", flush=True)
        if found == "starts":
            _make(cell, config, folder)
            print(f"  {_line(_result(folder, cell))}", flush=True)
    result = {**summary(config, cells, folder), "beforehand": beforehand}
    result["left_out"] = {**quarantine.counts(), **result["left_out"]}
    put(folder / "study.json", json.dumps(result, indent=1) + "\n")
    return write_evaluation(result, folder)


def summary(config: StudyJob, cells: list[GridCell], folder: Path) -> dict[str, Any]:
    """The whole grid side by side: repetitions as one model, ensembles of them as another."""
    groups: dict[tuple[str, ...], list[GridCell]] = defaultdict(list)
    for cell in cells:
        groups[tuple(c for f, c in cell.choices.items() if f != config.repeat)].append(cell)
    scores, refused = _scores(folder, cells, config)
    found: dict[str, dict[str, judging.Repetitions]] = {}
    baselines: dict[str, str] = {}
    models: dict[str, Any] = {}
    factors = [name for name in config.vary if name != config.repeat]
    place = next(i for i, f in enumerate(factors) if config.baseline in config.vary[f])
    for choices, members in groups.items():
        name = "/".join(choices)
        matched = "/".join((*choices[:place], config.baseline, *choices[place + 1 :]))
        tables = [scores[cell.key] for cell in members]
        found[name] = {s: [judging.contests(of[s]) for of in tables] for s in config.sets}
        baselines[name] = matched
        models[name] = {"cells": [cell.key for cell in members]}
        for how in config.ensembles:
            together = judging.combine(tables, how, next(iter(config.sets)))
            found[f"{name}/{how}"] = {
                s: [judging.contests(tables[0][s], together[s])] for s in config.sets
            }
            baselines[f"{name}/{how}"] = matched
            models[f"{name}/{how}"] = {"members": [c.key for c in members], "aggregate": how}
    ensembles = [name for name, described in models.items() if "members" in described]
    return {
        "name": config.name,
        "baseline": config.baseline,
        "models": models,
        "repetitions": {"factor": config.repeat, "choices": list(config.vary[config.repeat])},
        **judging.of_repetitions(found, config.sets, baselines, ensembles),
        "left_out": {scoring.NO_SCORE: refused} if refused else {},
    }


def _make(cell: GridCell, config: StudyJob, folder: Path) -> None:
    """Train and judge one cell; its result file comes last."""
    began = time.time()
    run_folder = folder / "cells" / cell.key
    model = subjobs.train(cell.job, folder / "cells" / f"{cell.key}.yaml")
    judged = subjobs.judge(
        model, config.sets, config.scoring, config.judges, run_folder, like=config
    )
    kept = folder / "cells" / f"{cell.key}.scores"
    shutil.rmtree(kept, ignore_errors=True)
    for table in (judged / "scores" / "model").glob("*.parquet"):
        scoring.write(scoring.read(table), kept / table.name)
    metrics = [json.loads(line) for line in (run_folder / "metrics.jsonl").open(encoding="utf-8")]
    result = {
        "cell": cell.choices,
        "config": cell.job.model_dump(mode="json", exclude={"name", "runs"}),
        "last_metrics": metrics[-1],
        "evaluation": json.loads((judged / RESULT).read_text(encoding="utf-8")),
        "seconds": round(time.time() - began, 1),
    }
    put(_result(folder, cell), json.dumps(result, indent=1) + "\n")
    if not config.keep_models:
        shutil.rmtree(run_folder)


def _scores(
    folder: Path, cells: list[GridCell], config: StudyJob
) -> tuple[dict[str, dict[str, pa.Table]], int]:
    """Cell's key -> set -> its scores, and how many contests some cell's template refused: they
    are left out of all."""
    tables: dict[str, dict[str, pa.Table]] = {cell.key: {} for cell in cells}
    left_out = 0
    for name in config.sets:
        found = {}
        for cell in cells:
            kept = folder / "cells" / f"{cell.key}.scores"
            files = list(kept.glob(f"{name}-" + "[0-9a-f]" * 16 + ".parquet"))
            if len(files) != 1:
                raise ValueError(
                    f"{kept}: {len(files)} files of scores of set '{name}', not one; remove "
                    f"{_result(folder, cell)} to compute the cell again"
                )
            found[cell.key] = scoring.read(files[0])
        found, refused = scoring.without_refused(found)
        left_out += refused
        for key, table in found.items():
            tables[key][name] = table
    return tables, left_out


def _result(folder: Path, cell: GridCell) -> Path:
    return folder / "cells" / f"{cell.key}.json"


def _line(path: Path) -> str:
    """A finished cell's accuracies in one line."""
    result = json.loads(path.read_text(encoding="utf-8"))
    shown = [
        f"{name} {100 * models['model']['accuracy']['mean']:.1f}"
        for name, models in result["evaluation"]["results"].items()
    ]
    return ", ".join(shown) + f" ({result['seconds']:.0f} s)"


def _say_what_can_be_seen(
    config: StudyJob, cells: list[GridCell], quarantine: Quarantine
) -> dict[str, Any]:
    """Before any result: the smallest gain that each set's size would show, and how many of its
    contests ask what the training files ask. What the sets leave out goes to `quarantine`."""
    found = {}
    repeats = len(config.vary[config.repeat])
    trained = _trained_prompts(cells)
    for name, source in config.sets.items():
        rows, shared = [], 0
        for contest in sources.contests(source, quarantine, config.seed):
            rows.append(contest.prompt_id)
            shared += contest.plain_prompt in trained
        if not rows:
            raise ConfigError(f"sets.{name}: {source.path}: no usable preference pair")
        gain = detectable_difference(len(rows), len(set(rows)), 0.6, DISCORDANCE)
        found[name] = {
            "contests": len(rows),
            "prompts": len(set(rows)),
            "detectable": None if gain != gain else gain,
            "assumed_discordance": DISCORDANCE,
            "in_training_files": shared,
        }
        shown = "none" if gain != gain else f"{100 * gain:.1f} points"
        print(
            f"{name}: {len(rows)} contests, {len(set(rows))} prompts, repetitions: {repeats}; "
            "smallest gain detectable between two trainings (power 0.8, discordance "
            f"{DISCORDANCE}): {shown}",
            flush=True,
        )
        if shared:
            print(
                f"warning: {name}: the prompts of {shared} of {len(rows)} contests are also in "
                "the training files, so that a model may have seen them",
                flush=True,
            )
    return found


def _trained_prompts(cells: list[GridCell]) -> set[str]:
    """Prompts, case and spacing aside, of all that any cell may train on, `limit` aside."""
    read: dict[str, tuple[Any, list[str]]] = {}
    for cell in cells:
        for source in cell.job.data.train:
            plain = source.model_copy(update={"flip": 0.0, "weight": 1.0, "limit": None})
            read[plain.model_dump_json()] = plain, cell.job.head.attributes
    found: set[str] = set()
    for source, attributes in read.values():
        items = (
            sources.numbered_rated(source, attributes) if attributes else sources.numbered(source)
        )
        found |= {item.plain_prompt for _, item in items}
    return found
