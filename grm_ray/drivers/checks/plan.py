"""What a job will start, read and write, as far as it is known before a worker starts."""

from __future__ import annotations

from dataclasses import dataclass, field

from grm_ray.config.best_of_n import BestOfNJob
from grm_ray.config.judging import EvaluateJob
from grm_ray.config.ppo import PpoJob
from grm_ray.config.reward_model import RewardModelJob
from grm_ray.config.schema import Job, Workers
from grm_ray.config.serve import ServeJob
from grm_ray.runtime.placement import Bundle, Node, bundles, fit


@dataclass
class JobPlan:
    """What a run will do, as far as it is known beforehand."""

    bundles: list[Bundle]
    placed: dict[Bundle, Node] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = ["workers"]
        for bundle in self.bundles:
            node = self.placed.get(bundle)
            lines.append(f"  {bundle}" + (f"  ->  {node.name}" if node else ""))
        for title, entries in (
            ("reads", self.reads),
            ("writes", self.writes),
            ("could not be checked offline", self.unchecked),
        ):
            lines += [title, *(f"  {entry}" for entry in entries)] if entries else []
        return "\n".join(lines)

    def finish(self, config: Job, cluster: list[Node] | None) -> None:
        """Note where it writes and, with `cluster`, where its workers fit."""
        self.writes.append(f"{config.runs}/{config.name}/")
        if cluster is not None and not self.placed:
            self.placed = fit(self.bundles, cluster)


def roles(config: Job) -> dict[str, Workers]:
    """role -> its workers; a job that only starts other jobs has none of its own."""
    if isinstance(config, PpoJob):
        workers = config.workers
        return {
            "learner": workers.learner,
            "rollout": workers.rollout,
            "scorer": workers.scorer,
        }
    if isinstance(config, BestOfNJob):
        return {"rollout": config.workers.rollout, "scorer": config.workers.scorer}
    if isinstance(config, EvaluateJob):
        return {"scorer": config.workers}
    if isinstance(config, ServeJob):
        return {"scorer": config.workers}
    return {"trainer": config.workers} if isinstance(config, RewardModelJob) else {}


def bundles_of(config: Job) -> list[Bundle]:
    """What the job's workers need, one bundle a worker."""
    share = isinstance(config, PpoJob) and config.workers.share_devices
    return bundles(roles(config), ("learner", "rollout") if share else ())
