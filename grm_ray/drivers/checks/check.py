"""Everything about a config that can be known before a worker starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from grm_ray.config.errors import ConfigError
from grm_ray.config.judging import CurateJob, JudgeScoring, JudgeWorkers, StudyJob
from grm_ray.config.overoptimization import OveroptimizationJob
from grm_ray.config.reward_model import RewardModelJob
from grm_ray.config.schema import Job
from grm_ray.drivers.checks.jobs import PAIR, as_config_error, check_data, check_job, check_pairs
from grm_ray.drivers.checks.plan import JobPlan
from grm_ray.drivers.curate.votes import voter
from grm_ray.drivers.overoptimization.check import check_study
from grm_ray.drivers.study import grid as study_grid
from grm_ray.runtime.disk import check_place
from grm_ray.runtime.placement import Node, bundles, fit
from grm_ray.runtime.tracking import check_backends


def check(config: Job, cluster: list[Node] | None = None, elsewhere: bool = False) -> JobPlan:
    """Validate names, models, data and (with `cluster`) placement.

    Args:
        elsewhere: `cluster` is another one than this machine: a reward model that an earlier job
            is to leave in the runs folder need not be here, nor is that folder looked at.

    Raises:
        ConfigError: the first thing that is wrong, with what would be right.
    """
    if not elsewhere:
        _check_runs(config)
    if not isinstance(config, StudyJob | OveroptimizationJob | CurateJob):
        return check_job(config, cluster, elsewhere)
    plan = JobPlan([])
    with as_config_error():
        check_backends(list(config.tracking))
        if isinstance(config, StudyJob):
            check_pairs(config.sets, plan)
            jobs = {f"cell {'/'.join(c.values())}": job for c, job in study_grid.jobs(config)}
            _started(jobs, config.judges, config.scoring, plan, cluster)
        elif isinstance(config, OveroptimizationJob):
            check_study(config, plan, cluster, elsewhere)
        else:
            check_data(config.data, PAIR, plan)
            _started({"base": voter(config)}, config.judges, config.scoring, plan, cluster)
    plan.finish(config, cluster)
    return plan


def _check_runs(config: Job) -> None:
    runs = Path(config.runs).expanduser()
    try:
        check_place(runs)
    except OSError as error:
        raise ConfigError(
            f"runs: {runs} cannot be written to ({error.strerror or error}); name another folder"
        ) from None


def _started(
    jobs: Mapping[str, RewardModelJob],
    judges: JudgeWorkers,
    scoring: JudgeScoring,
    plan: JobPlan,
    cluster: list[Node] | None,
) -> None:
    """The jobs that a study or a curation starts: each by itself, then judges of its model."""
    judging = bundles({"judge": judges})
    seen: set[str] = set()
    for where, job in jobs.items():
        # Cells differ in seeds and rates mostly, which nothing here looks at.
        alike = job.model_dump_json(exclude={"seed", "training"})
        if alike in seen:
            continue
        seen.add(alike)
        if job.model.trust_remote_code and not scoring.trust_remote_code:
            raise ConfigError(
                f"{where}: model.trust_remote_code: true, but scoring.trust_remote_code: false: "
                "the trained model could not be loaded; give both the same value"
            )
        try:
            found = check_job(job, cluster)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        if not plan.bundles:
            plan.bundles = [*found.bundles, *judging]
            plan.placed = {**found.placed, **(fit(judging, cluster) if cluster is not None else {})}
        plan.reads = list(dict.fromkeys([*plan.reads, *found.reads]))
        plan.unchecked = list(dict.fromkeys([*plan.unchecked, *found.unchecked]))
