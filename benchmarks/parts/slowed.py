"""Real workers on a tiny model with made-up durations, in the proportions of a large step."""

from __future__ import annotations

import asyncio
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray

from grm_ray.config.ppo import PpoJob
from grm_ray.drivers.ppo import run as ppo
from grm_ray.drivers.ppo import workers as ppo_workers
from grm_ray.workers.learner import Learner
from grm_ray.workers.rollout import RolloutWorker
from grm_ray.workers.scorer import Scorer


def slow_down(seconds: float, a_batch: float = 0.0, factor: float = 1.0) -> None:
    """Have every update and every share of generation take `seconds` longer, each in its own
    worker, and every batch that is scored `a_batch`; scorer 0 takes `factor` times that."""

    class SlowLearner(Learner.__ray_metadata__.modified_class):
        def learn(self, *arguments: Any) -> dict[str, float]:
            time.sleep(seconds)
            return super().learn(*arguments)

    class SlowRollout(RolloutWorker.__ray_metadata__.modified_class):
        async def generate(self, *arguments: Any) -> Any:
            await asyncio.sleep(seconds)
            async for item in super().generate(*arguments):
                yield item

    class SlowScorer(Scorer.__ray_metadata__.modified_class):
        def score(self, *arguments: Any) -> Any:
            time.sleep(a_batch * (factor if self.timeline.name == "scorer-0" else 1.0))
            return super().score(*arguments)

    ppo_workers.Learner = ray.remote(SlowLearner)
    ppo_workers.RolloutWorker = ray.remote(SlowRollout)
    ppo_workers.Scorer = ray.remote(SlowScorer)


def run(work: Path, name: str, steps: int, **changes: Any) -> tuple[list[float], list[dict]]:
    """Seconds of all steps but the first two, in which the pipeline fills, and all metrics.

    Args:
        work: as `tiny_jobs.prepare` leaves it.
        changes: sections of the config beside the ones here.
    """
    config = PpoJob.model_validate(
        {
            "name": name,
            "runs": str(work / "runs"),
            "policy": {"path": str(work / "model"), "dtype": "float32", "lora": {"rank": 4}},
            "reward": {"path": str(work / "reward")},
            "data": {"train": {"path": str(work / "prompts.jsonl")}, "max_prompt_length": 64},
            "ppo": {"steps": steps, "estimator": "rloo"},
            "evaluation": {"prompts": 1},
            "checkpoint": {"every": 0},
            "tracking": [],
            **changes,
        }
    )
    ppo.run(config)
    lines = (work / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["step"]]
    ends = [row["time"] for row in rows[:-1]]  # after the last one comes the evaluation
    return [after - before for before, after in pairwise(ends[1:])], rows
