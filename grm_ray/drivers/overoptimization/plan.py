"""The cells of an over-optimisation study: which jobs there are, and what each one's name is.

A cell is one job in a process of its own. Its name is the hash of all that its result depends on,
so that what is finished stays finished, whatever is added to the study.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grm_ray.config.best_of_n import BestOfNJob
from grm_ray.config.errors import ConfigError
from grm_ray.config.load import apply, validate
from grm_ray.config.overoptimization import OveroptimizationJob, Proxy
from grm_ray.config.ppo import PpoJob
from grm_ray.config.reward_model import RewardModelJob
from grm_ray.config.schema import Job
from grm_ray.drivers.job_key import Keys

MODULES = {"rm": "grm_ray.rm", "bon": "grm_ray.bon", "ppo": "grm_ray.ppo"}
# Reward models go by their keys once these are known; before, only by their names.
Models = Mapping[tuple[str, str, int], str]


@dataclass(frozen=True)
class JobCell:
    """One job.

    Attributes:
        name: what it is of, for people: noise, model or proxy, seed.
        about: the same as plain data, which its result begins with.
    """

    name: str
    job: Job
    key: str
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def module(self) -> str:
        return MODULES[self.job.job]


def named(cell: JobCell, folder: Path) -> JobCell:
    """The same, its run in `folder/cells` under its key."""
    place = {"name": cell.key, "runs": str(folder / "cells")}
    return JobCell(cell.name, cell.job.model_copy(update=place), cell.key, cell.about)


def result_of(folder: Path, key: str) -> Path:
    """The file of a finished cell."""
    return folder / "cells" / f"{key}.json"


def reward_models(
    config: OveroptimizationJob, labels: Mapping[str, Path] | None, folder: Path, keys: Keys
) -> dict[tuple[str, str, int], JobCell]:
    """(noise, model, seed) -> the training of each reward model that a proxy is made of.

    Args:
        labels: what `labels.label` gives; None: not made yet, and the sources'
            own labels stand for them.

    Raises:
        ConfigError: a config or a file is wrong.
    """
    used = {proxy.trained for proxy in config.proxies.values()}
    found = {}
    for noise in config.flips:
        for model, changes in config.models.items():
            if model not in used:
                continue
            for seed in config.seeds:
                raw = _changed(config.reward_model, changes)
                apply(raw, "data.train", _train(config, labels, noise))
                apply(raw, "data.eval", _test(config, labels))
                raw |= {"name": "cell", "seed": seed, "tracking": []}
                raw["timeout_s"] = config.timeout_s
                job = validate(RewardModelJob, raw, f"models.{model}")
                if labels is None:
                    key = hashlib.sha256(f"{noise}/{model}/{seed}".encode()).hexdigest()[:16]
                else:
                    key = keys.of(job)
                about = {"part": "reward model", "noise": noise, "model": model, "seed": seed}
                cell = JobCell(f"{noise}/{model}/{seed}", job, key, about)
                found[noise, model, seed] = named(cell, folder)
    _refuse_twins(found)
    return found


def best_of_n(
    config: OveroptimizationJob, models: Models, truth: str, folder: Path, keys: Keys
) -> list[JobCell]:
    """One job a noise (or several of `scored_together` models): its models choose among the same
    answers.

    The seeds of a model belong together. Where a finished cell has scored them, they are not scored
    again; a seed that came later has answers of its own and brings the others along.
    """
    if config.best_of_n is None:
        return []
    search, found = search_key(config, truth, keys), []
    there = scored(folder, search)
    for noise in config.flips:
        wanted = {p.trained for name, p in config.proxies.items() if config.wants(noise, name)}
        groups = []
        for model in config.models:
            seeds = {k: f"{m}_{s}" for (n, m, s), k in models.items() if (n, m) == (noise, model)}
            if model in wanted and not any(set(seeds) <= of for of in there):
                groups.append(seeds)
        for number, part in enumerate(_parts(groups, config.scored_together)):
            proxies = {name: key for key, name in part.items()}
            folders = {n: str(folder / "cells" / key / "model") for n, key in proxies.items()}
            job = _best_of_n_job(config, folders)
            about = {"part": "best of n", "noise": noise, "search": search, "models": proxies}
            key = hashlib.sha256(json.dumps([search, proxies]).encode()).hexdigest()[:16]
            name = f"{noise}/best of n" + (f" {number + 1}" if number else "")
            found.append(named(JobCell(name, job, key, about), folder))
    return found


def search_key(config: OveroptimizationJob, truth: str, keys: Keys) -> str:
    """Name of what best-of-n does, whatever models it is done for."""
    return keys.of_policy(_best_of_n_job(config, {"none": "none"}), truth)


def _parts(groups: list[dict[str, str]], most: int | None) -> list[dict[str, str]]:
    """Groups joined while a part has at most `most` models; a group is never parted."""
    parts: list[dict[str, str]] = []
    for group in groups:
        if parts and (most is None or len(parts[-1]) + len(group) <= most):
            parts[-1] = parts[-1] | group
        else:
            parts.append(group)
    return parts


def scored(folder: Path, search: str) -> list[set[str]]:
    """Keys of the reward models that each finished best-of-n cell of this search has scored."""
    results = (json.loads(f.read_text("utf-8")) for f in (folder / "cells").glob("*.json"))
    found = [result["about"] for result in results]
    return [set(about["models"].values()) for about in found if about.get("search") == search]


def policies(
    config: OveroptimizationJob, models: Models, truth: str, folder: Path, keys: Keys
) -> dict[tuple[str, str, int], JobCell]:
    """(noise, proxy, seed) -> each PPO run.

    Raises:
        ConfigError: a config or a file is wrong.
    """
    if config.ppo is None:
        return {}
    found = {}
    for noise in config.flips:
        # Seed by seed: a study that is stopped has compared all proxies on the first ones.
        for seed in config.seeds[: config.ppo_seeds]:
            for name, proxy in config.proxies.items():
                wanted = [seed] if proxy.model is not None else config.seeds
                members = {s: models[noise, proxy.trained, s] for s in wanted}
                folders = {s: str(folder / "cells" / k / "model") for s, k in members.items()}
                raw = _ppo_config(config, proxy, folders, seed)
                job = validate(PpoJob, raw, f"proxies.{name}")
                if job.data.eval is None:
                    raise ConfigError(
                        "ppo.data.eval: leave it out; policies are compared on the same prompts"
                    )
                about = {"part": "ppo", "noise": noise, "proxy": name, "seed": seed}
                key = keys.of_policy(job, list(members.values()), truth)
                cell = JobCell(f"{noise}/{name}/{seed}", job, key, about)
                found[noise, name, seed] = named(cell, folder)
    _refuse_twins(found)
    return found


def reads(job: Job) -> list[str]:
    """Folders of the reward models that a best-of-n or PPO job reads."""
    if isinstance(job, BestOfNJob):
        return list(job.proxies.values())
    return list(job.reward.models.values()) if isinstance(job, PpoJob) else []


def _best_of_n_job(config: OveroptimizationJob, proxies: dict[str, str]) -> BestOfNJob:
    raw = copy.deepcopy(config.best_of_n or {})
    raw |= {"name": "cell", "seed": config.seed, "tracking": [], "timeout_s": config.timeout_s}
    raw |= {"proxies": proxies, "true_reward": config.true_reward}
    return validate(BestOfNJob, raw, "best_of_n")


def _ppo_config(
    config: OveroptimizationJob, proxy: Proxy, folders: dict[int, str], seed: int
) -> dict[str, Any]:
    raw = _changed(config.ppo or {}, proxy.ppo)
    raw |= {"name": "cell", "seed": seed, "tracking": [], "timeout_s": config.timeout_s}
    apply(raw, "reward.true_reward", config.true_reward)
    if proxy.model is not None:
        apply(raw, "reward.path", folders[seed])
    else:
        apply(raw, "reward.members", {f"s{s}": path for s, path in folders.items()})
        aggregate = proxy.aggregate
        apply(raw, "reward.aggregate", {"name": aggregate.name, **aggregate.parameters})
    return raw


def _changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    raw = copy.deepcopy(base)
    for path, value in changes.items():
        apply(raw, path, copy.deepcopy(value))
    return raw


def _train(
    config: OveroptimizationJob, labels: Mapping[str, Path] | None, noise: str
) -> dict[str, Any]:
    """The training pairs of a noise level, as a source."""
    flip = {"flip": config.flips[noise]}
    if labels is None:
        return {**config.data.train.model_dump(mode="json", exclude_defaults=True), **flip}
    if config.flip_seed is None:
        return {"path": str(labels["train"]), **flip}
    return {"path": str(labels[f"train/{noise}"])}


def _test(config: OveroptimizationJob, labels: Mapping[str, Path] | None) -> dict[str, Any]:
    if labels is None:
        return config.data.test.model_dump(mode="json", exclude_defaults=True)
    return {"path": str(labels["test"])}


def _refuse_twins(cells: Mapping[tuple[str, str, int], JobCell]) -> None:
    """Two cells of one key would be one result under two names."""
    first: dict[str, str] = {}
    for cell in cells.values():
        other = first.setdefault(cell.key, cell.name)
        if other != cell.name:
            raise ConfigError(f"{other} and {cell.name} are the same job: remove one of them")
