"""The over-optimisation study: label, train reward models, search them, and tell what came of it.

Each cell is a job in a process of its own; as many run beside one another as have room. Its result
is one JSON file, named by the hash of all that it depends on.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from grm_ray.config.errors import RunStopped
from grm_ray.config.load import dump
from grm_ray.config.overoptimization import OveroptimizationJob
from grm_ray.data.sources import Quarantine
from grm_ray.drivers import subjobs
from grm_ray.drivers.best_of_n.run import MADE_WITH
from grm_ray.drivers.checks.check import check
from grm_ray.drivers.checks.plan import bundles_of
from grm_ray.drivers.job_key import Keys
from grm_ray.drivers.overoptimization import labels, plan
from grm_ray.drivers.overoptimization.figures import figures
from grm_ray.drivers.overoptimization.plan import JobCell, result_of
from grm_ray.drivers.run_folder import DONE
from grm_ray.reporting.document import put
from grm_ray.reporting.overoptimization_study import RESULT, write_overoptimization
from grm_ray.runtime import cluster
from grm_ray.runtime.placement import Node, most_at_once
from grm_ray.runtime.snapshot import Snapshots


def run(config: OveroptimizationJob, resume: bool = False) -> Path:
    """Compute what has no result yet; `overoptimization.json` and the page grow part by part.

    A study always goes on where it stopped: `resume` changes nothing.

    Raises:
        ConfigError: a cell's config, a model or a set is wrong, and nothing was started; or a
            cell's job finds such a thing.
    """
    check(config)
    folder = Path(config.runs).expanduser().resolve() / config.name
    subjobs.open_folder(folder)
    for part in ("cells", "labels"):
        (folder / part).mkdir(exist_ok=True)
    put(folder / "config.yaml", dump(config))
    quarantine, keys, truth = Quarantine(), Keys(), labels.identity(config)
    labelled = labels.label(config, folder / "labels", quarantine)
    if quarantine.rows:
        quarantine.write(folder / "quarantine.jsonl")
    nodes = cluster.available()
    trained = plan.reward_models(config, labelled, folder, keys)
    models = {name: cell.key for name, cell in trained.items()}
    policies = plan.policies(config, models, truth, folder, keys)
    search = plan.search_key(config, truth, keys) if config.best_of_n is not None else ""

    def tell() -> Path:
        result = figures(config, folder, search, trained, policies)
        put(folder / RESULT, json.dumps(result, indent=1) + "\n")
        return write_overoptimization(result, folder)

    chosen = plan.best_of_n(config, models, truth, folder, keys)
    searched = [cell for (noise, proxy, _), cell in policies.items() if config.wants(noise, proxy)]
    open_cells = [*chosen, *(c for c in searched if not result_of(folder, c.key).is_file())]
    _make(_wanted_models(config, folder, trained, open_cells), config, folder, nodes, tell)
    _make(chosen, config, folder, nodes, tell)
    _make(searched, config, folder, nodes, tell)
    return tell()


def _wanted_models(
    config: OveroptimizationJob,
    folder: Path,
    trained: dict[tuple[str, str, int], JobCell],
    open_cells: Sequence[JobCell],
) -> list[JobCell]:
    """The reward models that are wanted. One whose weights are gone has no result where a cell is
    still to read them."""
    read = {path for cell in open_cells for path in plan.reads(cell.job)}
    wanted = {
        (noise, proxy.trained)
        for noise in config.flips
        for name, proxy in config.proxies.items()
        if config.wants(noise, name)
    }
    cells = [cell for (noise, model, _), cell in trained.items() if (noise, model) in wanted]
    for cell in cells:
        run_folder = _run_folder(cell)
        if str(run_folder / "model") in read and not _has_model(run_folder):
            result_of(folder, cell.key).unlink(missing_ok=True)
    return cells


def _make(
    cells: Sequence[JobCell],
    config: OveroptimizationJob,
    folder: Path,
    nodes: Sequence[Node],
    tell: Callable[[], Path],
) -> None:
    """Run the cells that have no result; `tell` after each."""
    there = [cell for cell in cells if result_of(folder, cell.key).is_file()]
    for cell in there:
        _drop(cell)
        print(f"{cell.name}: already has its result ({cell.key})", flush=True)
    todo = [cell for cell in cells if cell not in there]
    if not todo:
        return
    at_once = min(_room(cell, nodes) for cell in todo)
    if config.at_once is not None:
        at_once = min(at_once, config.at_once)
    began, of_file = {}, {}

    def begun() -> Iterator[subjobs.Call]:
        for number, cell in enumerate(todo, start=len(there) + 1):
            print(f"{cell.name}: starts, {number} of {len(cells)} ({cell.key})", flush=True)
            wanted = subjobs.Call(
                cell.module, cell.job, folder / "cells" / f"{cell.key}.yaml", _resumable(cell)
            )
            of_file[wanted.file], began[wanted.file] = cell, time.time()
            if _is_done(cell):
                _finish(cell, folder, 0.0)
            else:
                yield wanted

    for ended in subjobs.calls(begun(), at_once):
        _finish(of_file[ended.file], folder, time.time() - began[ended.file])
        tell()


def _room(cell: JobCell, nodes: Sequence[Node]) -> int:
    """How many such jobs may run beside one another, at least one."""
    bundles = bundles_of(cell.job)
    # Without a cluster that they share, each job has a Ray of its own, which gives out GPU 0 first.
    if not os.environ.get("RAY_ADDRESS") and any(bundle.gpus for bundle in bundles):
        return 1
    return max(1, most_at_once(bundles, nodes))


def _run_folder(cell: JobCell) -> Path:
    return Path(cell.job.runs) / cell.job.name


def _is_done(cell: JobCell) -> bool:
    """Whether the training ended well before it could be said."""
    run_folder = _run_folder(cell)
    return cell.job.job == "rm" and (run_folder / DONE).is_file() and _has_model(run_folder)


def _has_model(run_folder: Path) -> bool:
    return (run_folder / "model").is_dir()


def _resumable(cell: JobCell) -> bool:
    run_folder = _run_folder(cell)
    if cell.job.job == "bon":
        return (run_folder / MADE_WITH).is_file()
    return bool(Snapshots(run_folder / "checkpoints", 1).all())


def _finish(cell: JobCell, folder: Path, seconds: float) -> None:
    """Write a cell's result; then what nobody reads again goes.

    Raises:
        RunStopped: the last held-out answers of a policy have no true reward to compare.
    """
    run_folder = _run_folder(cell)
    subjobs.clear(run_folder)
    result: dict[str, Any] = {
        "about": cell.about,
        "config": cell.job.model_dump(mode="json", exclude={"name", "runs"}),
        "seconds": round(seconds, 1),
    }
    said = f"{seconds:.0f} s"
    if cell.job.job != "bon":
        lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        result["last_metrics"] = last = json.loads(lines[-1])
        if cell.job.job == "rm":
            said = f"accuracy {100 * last['eval/accuracy']:.1f} %, {said}"
        elif "eval/true_reward" not in last:
            raise RunStopped(
                f"{cell.name}: no answer to the held-out prompts has a true reward; "
                f"{run_folder / 'samples' / 'after.parquet'} says why (column refused)"
            )
        else:
            said = f"true reward {last['eval/true_reward']:.3f}, {said}"
    put(result_of(folder, cell.key), json.dumps(result, indent=1) + "\n")
    _drop(cell)
    print(f"{cell.name}: {said}", flush=True)


def _drop(cell: JobCell) -> None:
    """Remove what nobody reads again of a cell that has its result: checkpoints, policies."""
    run_folder = _run_folder(cell)
    if cell.job.job == "ppo":
        shutil.rmtree(run_folder / "model", ignore_errors=True)
    if cell.job.job in ("ppo", "rm"):
        shutil.rmtree(run_folder / "checkpoints", ignore_errors=True)
