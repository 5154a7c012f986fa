"""What can be known of an over-optimisation study before its first cell is begun."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grm_ray.config import registry
from grm_ray.config.best_of_n import ProxyEnsemble
from grm_ray.config.errors import ConfigError
from grm_ray.config.overoptimization import OveroptimizationJob
from grm_ray.config.reward_model import PairData
from grm_ray.drivers.best_of_n.ensembles import check_ensemble
from grm_ray.drivers.checks.jobs import PAIR, check_data, check_job, check_saved_model
from grm_ray.drivers.checks.plan import JobPlan
from grm_ray.drivers.job_key import Keys
from grm_ray.drivers.overoptimization import labels
from grm_ray.drivers.overoptimization import plan as study_plan
from grm_ray.runtime.placement import Node, bundles, fit


def check_study(
    config: OveroptimizationJob, plan: JobPlan, cluster: list[Node] | None, elsewhere: bool
) -> None:
    """Check the kinds of jobs that the study starts, each by itself; they need not fit together.

    Raises:
        ConfigError: naming the cell.
    """
    seen: set[str] = set()
    for where, job, later in _cells(config, elsewhere):
        alike = job.model_dump_json(exclude={"name", "seed"})
        if alike in seen:
            continue
        seen.add(alike)
        try:
            found = check_job(job, cluster, elsewhere or later)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        new = [bundle for bundle in found.bundles if bundle not in plan.bundles]
        plan.bundles += new
        plan.placed |= {bundle: found.placed[bundle] for bundle in new if bundle in found.placed}
        plan.reads = list(dict.fromkeys([*plan.reads, *found.reads]))
        own = [u for u in found.unchecked if f"/{config.name}/cells/" not in u]
        plan.unchecked = list(dict.fromkeys([*plan.unchecked, *own]))
        if later:
            _models_read_enough(config, where, job)
    for name, proxy in config.proxies.items():
        if proxy.ensemble_of is not None and config.best_of_n is not None:
            ensemble = ProxyEnsemble(
                members=[str(seed) for seed in config.seeds], aggregate=proxy.aggregate
            )
            check_ensemble(f"proxies.{name}.aggregate", ensemble)
    if registry.is_path(config.true_reward):
        check_saved_model(config.true_reward, config.scoring.trust_remote_code, plan)
        judging = bundles({"judge": config.judges})
        plan.bundles += judging
        plan.placed |= fit(judging, cluster) if cluster is not None else {}
    for source in (config.data.train, config.data.test):
        check_data(source, PAIR, plan)


def _models_read_enough(config: OveroptimizationJob, where: str, job: Any) -> None:
    """That the reward models, which are not there yet, will read what the policy may write."""
    longest = job.data.max_prompt_length + job.rollout.max_new_tokens + 1
    for name, changes in config.models.items():
        data = config.reward_model.get("data") or {}
        length = changes.get(
            "data.max_length", data.get("max_length", PairData.model_fields["max_length"].default)
        )
        if length < longest:
            raise ConfigError(
                f"{where}: models.{name} reads {length} tokens (reward_model.data.max_length), but "
                f"data.max_prompt_length + rollout.max_new_tokens + 1 is {longest}"
            )


def _cells(config: OveroptimizationJob, elsewhere: bool) -> Iterator[tuple[str, Any, bool]]:
    """(where, job, whether its reward models are not there yet) of every kind of cell.

    Raises:
        ConfigError: a config or the true reward is wrong.
    """
    folder, keys = Path(config.runs).expanduser().resolve() / config.name, Keys()
    truth = "not looked at" if elsewhere else labels.identity(config)
    trained = study_plan.reward_models(config, None, folder, keys)
    models = {name: cell.key for name, cell in trained.items()}
    for cell in trained.values():
        yield cell.name, cell.job, False
    for cell in study_plan.best_of_n(config, models, truth, folder, keys):
        yield cell.name, cell.job, True
    for cell in study_plan.policies(config, models, truth, folder, keys).values():
        yield cell.name, cell.job, True
