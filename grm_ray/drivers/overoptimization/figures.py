"""Figures of an over-optimisation study, from its finished cells.

R repetitions (seeds) of a proxy on the same P prompts, at S sizes of choice or S evaluations: means
and differences have intervals over seeds and prompts (`study.repetitions`), the share kept is
drawn over both (`study.kept`). What is not finished is None.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grm_ray.config.best_of_n import BestOfNJob, ProxyEnsemble
from grm_ray.config.overoptimization import OveroptimizationJob, Proxy
from grm_ray.drivers.best_of_n import ensembles
from grm_ray.drivers.best_of_n import figures as best_of_n_figures
from grm_ray.drivers.best_of_n import shards as best_of_n_shards
from grm_ray.drivers.best_of_n.figures import plain
from grm_ray.drivers.overoptimization.plan import JobCell, result_of
from grm_ray.reporting.run import read_run
from grm_ray.reporting.trajectory import Trajectory, paired, read_trajectory
from grm_ray.study.best_of_n import kl_of_best_of_n
from grm_ray.study.intervals import bootstrap_mean
from grm_ray.study.kept import bootstrap_kept
from grm_ray.study.repetitions import mean_over

Key = tuple[str, str, int]  # noise, model or proxy, seed
Found = dict[str, Any]


def figures(
    config: OveroptimizationJob,
    folder: Path,
    search: str,
    trained: Mapping[Key, JobCell],
    policies: Mapping[Key, JobCell],
) -> Found:
    """What `overoptimization.json` holds: plain data.

    Args:
        search: `plan.search_key`: other best-of-n cells are another study's.
    """
    found: Found = {
        "name": config.name,
        "baseline": config.baseline,
        "true_reward": config.true_reward,
        "seeds": config.seeds,
        "flips": config.flips,
        "flip_seed": config.flip_seed,
        "proxies": {name: _described(proxy) for name, proxy in config.proxies.items()},
        "models": _accuracies(config, folder, trained),
        "noise": {},
    }
    for noise in config.flips:
        choices = _choices(config, noise, folder, search, trained)
        runs = {
            name: [
                policies[noise, name, seed]
                for seed in config.seeds[: config.ppo_seeds]
                if (noise, name, seed) in policies
                and result_of(folder, policies[noise, name, seed].key).is_file()
            ]
            for name in config.proxies
        }
        found["noise"][noise] = {
            "best_of_n": _best_of_n(config, choices),
            "ppo": _ppo(config, folder, runs),
        }
    return found


# ------------------------------------------------------------------ reward models


def _accuracies(
    config: OveroptimizationJob, folder: Path, trained: Mapping[Key, JobCell]
) -> dict[str, dict[str, Any]]:
    """noise -> model -> accuracy on the test pairs, each seed's and the mean."""
    found: dict[str, dict[str, Any]] = {noise: {} for noise in config.flips}
    for (noise, model, _), cell in trained.items():
        file = result_of(folder, cell.key)
        if file.is_file():
            last = json.loads(file.read_text(encoding="utf-8"))["last_metrics"]
            found[noise].setdefault(model, []).append(last["eval/accuracy"])
    return {
        noise: {model: {"each": each, "mean": float(np.mean(each))} for model, each in of.items()}
        for noise, of in found.items()
    }


# ------------------------------------------------------------------ best of n


def _choices(
    config: OveroptimizationJob,
    noise: str,
    folder: Path,
    search: str,
    trained: Mapping[Key, JobCell],
) -> dict[str, Any]:
    """proxy -> (true `(R, S, P)`, proxy's own gain `(R, S)`); with "sizes", "oracle" of one cell.

    A proxy's repetitions are read from the newest cell that has all of them.
    """
    found: dict[str, Any] = {}
    for file in sorted((folder / "cells").glob("*.json"), key=lambda file: file.stat().st_mtime):
        result = json.loads(file.read_text(encoding="utf-8"))
        about = result["about"]
        if about.get("search") != search:
            continue
        name_of = {key: name for name, key in about["models"].items()}
        members = {
            name: [name_of.get(trained[noise, proxy.trained, seed].key) for seed in config.seeds]
            for name, proxy in config.proxies.items()
        }
        whole = {name: list(filter(None, of)) for name, of in members.items() if all(of)}
        if whole:
            run = folder / "cells" / file.stem
            found |= _read(config, result["config"], whole, run)
    return found


def _read(
    config: OveroptimizationJob,
    saved: Mapping[str, Any],
    whole: Mapping[str, list[str]],
    run: Path,
) -> dict[str, Any]:
    joined = {
        f"{name}.all": ProxyEnsemble(members=whole[name], aggregate=config.proxies[name].aggregate)
        for name in whole
        if config.proxies[name].ensemble_of is not None
    }
    job = BestOfNJob.model_validate({**saved, "name": run.name, "tracking": []}).model_copy(
        update={"ensembles": joined, "betas": []}
    )
    files = best_of_n_shards.finished(run)
    fitted = ensembles.fit(job, best_of_n_figures.shards(job, files))
    spreads = dict.fromkeys(job.choosers, 1.0)
    curves, oracle_SP = best_of_n_figures.curves(job, files, fitted, spreads)
    found: dict[str, Any] = {"sizes": job.sizes, "oracle": oracle_SP.mean(axis=1).tolist()}
    for name, members in whole.items():
        used = [curves[f"{name}.all"]] if f"{name}.all" in joined else [curves[m] for m in members]
        own_RS = np.stack([c.chosen_by.mean(axis=1) for c in used])
        found[name] = np.stack([c.true for c in used]), own_RS - own_RS[:, :1]
    return found


def _best_of_n(config: OveroptimizationJob, choices: Mapping[str, Any]) -> Found | None:
    if not choices:
        return None
    sizes = choices["sizes"]
    base = choices.get(config.baseline)
    base_RP = None if base is None else base[0][:, -1]
    found: Found = {
        "sizes": sizes,
        "kl": [kl_of_best_of_n(n) for n in sizes],
        "oracle": choices["oracle"],
        "proxies": {},
    }
    for name in config.proxies:
        if name not in choices:
            continue
        true_RSP, own_RS = choices[name]
        found["proxies"][name] = {
            "seeds": len(true_RSP),
            "prompts": true_RSP.shape[2],
            "true": [_mean(true_RSP[:, s]) for s in range(len(sizes))],
            "own_gain": own_RS.mean(axis=0).tolist(),
            "kept": _kept(true_RSP[:, 1:], true_RSP[:, 0]),
            "peak": sizes[int(true_RSP.mean(axis=(0, 2)).argmax())],
            "gain": _mean(true_RSP[:, -1] - true_RSP[:, 0]),
            "versus": _versus(None if name == config.baseline else base_RP, true_RSP[:, -1]),
        }
    return found


# ------------------------------------------------------------------ PPO


def _ppo(
    config: OveroptimizationJob, folder: Path, runs: Mapping[str, Sequence[JobCell]]
) -> Found | None:
    read = {
        name: [read_trajectory(read_run(folder / "cells" / cell.key)) for cell in cells]
        for name, cells in runs.items()
        if cells
    }
    if not read:
        return None
    true = {name: _together(trajectories) for name, trajectories in read.items()}
    base = true.get(config.baseline)
    return {
        name: {
            "seeds": [cell.about["seed"] for cell in runs[name]],
            "runs": [cell.key for cell in runs[name]],
            "steps": max((_steps(one) for one in trajectories), key=len),
            "d": _over_runs(trajectories, lambda e: e.d),
            "reward": _over_runs(trajectories, lambda e: e.means["reward"].value),
            **_of_policies(true[name], _of_seeds(config, runs, base, name)),
        }
        for name, trajectories in read.items()
    }


def _steps(trajectory: Trajectory) -> list[int]:
    return [e.step for e in trajectory.evaluations]


def _together(trajectories: Sequence[Trajectory]) -> np.ndarray | None:
    """True rewards `(R, S, P)`; None where runs differ in their prompts or lack answers.

    A run that its guard ended before the others keeps its last policy to their end.
    """
    found = [paired(one.known("true_reward"))[0] for one in trajectories]
    known = [values_SP for values_SP in found if values_SP is not None]
    if len(known) < len(found) or len({values_SP.shape[1] for values_SP in known}) > 1:
        return None
    most = max(len(values_SP) for values_SP in known)
    return np.stack([_lasting(values_SP, most) for values_SP in known])


def _lasting(values: Any, most: int) -> Any:
    """`values` with the last one again until there are `most`."""
    return [*values, *[values[-1]] * (most - len(values))]


def _of_seeds(
    config: OveroptimizationJob,
    runs: Mapping[str, Sequence[JobCell]],
    base_RSP: np.ndarray | None,
    name: str,
) -> np.ndarray | None:
    """The baseline's runs with the seeds of the proxy's, in their order; None without one of them,
    and for the baseline itself."""
    if base_RSP is None or name == config.baseline:
        return None
    place = {cell.about["seed"]: i for i, cell in enumerate(runs[config.baseline])}
    seeds = [cell.about["seed"] for cell in runs[name]]
    return base_RSP[[place[s] for s in seeds]] if set(seeds) <= set(place) else None


def _of_policies(true_RSP: np.ndarray | None, base_RSP: np.ndarray | None) -> Found:
    if true_RSP is None:
        return dict.fromkeys(("prompts", "true", "kept", "peak", "gain", "versus"))
    means_S = true_RSP.mean(axis=(0, 2))
    return {
        "prompts": true_RSP.shape[2],
        "true": [_mean(true_RSP[:, s]) for s in range(true_RSP.shape[1])],
        "kept": _kept(true_RSP[:, 1:], true_RSP[:, 0]),
        "peak": int(means_S.argmax()),
        "gain": _mean(true_RSP[:, -1] - true_RSP[:, 0]),
        "versus": _versus(None if base_RSP is None else base_RSP[:, -1], true_RSP[:, -1]),
    }


def _over_runs(trajectories: Sequence[Trajectory], value: Any) -> list[float | None]:
    """Mean over runs of a figure of each evaluation; None where one lacks it."""
    each = [[value(e) for e in one.evaluations] for one in trajectories]
    most = max(map(len, each))
    columns = zip(*(_lasting(values, most) for values in each), strict=True)
    return [None if None in column else float(np.mean(column)) for column in columns]


# ------------------------------------------------------------------ both


def _mean(values_RP: np.ndarray) -> dict[str, float | None]:
    if len(values_RP) > 1:
        return plain(mean_over(values_RP).interval)
    return plain(bootstrap_mean(values_RP[0]))


def _versus(base_RP: np.ndarray | None, values_RP: np.ndarray) -> dict[str, float | None] | None:
    """Less the baseline's, prompt by prompt; repetition by repetition where both have as many."""
    if base_RP is None or base_RP.shape[1] != values_RP.shape[1]:
        return None
    if len(base_RP) == len(values_RP):
        return _mean(values_RP - base_RP)
    return (
        _mean(values_RP - base_RP.mean(axis=0))
        if len(values_RP) > 1
        else _mean(values_RP[:1] - base_RP)
    )


def _kept(values_RSP: np.ndarray, baseline_RP: np.ndarray) -> Found:
    found = bootstrap_kept(values_RSP, baseline_RP)
    return {**plain(found.share), "note": found.note}


def _described(proxy: Proxy) -> dict[str, Any]:
    return proxy.model_dump(mode="json", exclude_defaults=True)
