"""Steps with one scorer in four ten times slower than the others, against steps with four alike.

The real driver, engine, scorers and learner on a tiny model; the durations are made up, so that a
step has the proportions of a large one: generation and update take some seconds longer, and so does
every batch that is scored. What the slow scorer does not deliver in time another one does as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray
from machine import ROOT, finish

sys.path.insert(0, str(ROOT))

from grm_ray.config.ppo import PpoJob
from grm_ray.config.schema import Head, Model
from grm_ray.data.chat import ScoringContract
from grm_ray.drivers import ppo, ppo_workers
from grm_ray.models import backbone
from grm_ray.models.checkpoint import save_reward_model
from grm_ray.models.reward_model import RewardModel
from grm_ray.workers.learner import Learner
from grm_ray.workers.rollout import RolloutWorker
from grm_ray.workers.scorer import Scorer
from tests.conftest import WORDS, build_model


def slowed(seconds: float, a_batch: float, factor: float) -> tuple[Any, Any, Any]:
    """Learner, rollout worker and scorer with durations of their own; scorer 0 takes `factor`
    times as long."""

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
        def score(self, rollouts: Any) -> Any:
            time.sleep(a_batch * (factor if self.timeline.name == "scorer-0" else 1.0))
            return super().score(rollouts)

    return ray.remote(SlowLearner), ray.remote(SlowRollout), ray.remote(SlowScorer)


def measure(work: Path, name: str, steps: int) -> dict[str, Any]:
    """Seconds of all steps but the first two, and what the pool did."""
    config = PpoJob.model_validate(
        {
            "name": name,
            "runs": str(work / "runs"),
            "policy": {"path": str(work / "model"), "dtype": "float32", "lora": {"rank": 4}},
            "reward": {"path": str(work / "reward")},
            "data": {"train": {"path": str(work / "prompts.jsonl")}, "max_prompt_length": 64},
            "rollout": {
                "prompts_per_step": 8,
                "samples_per_prompt": 2,
                "max_new_tokens": 4,
                "rows_per_batch": 2,
            },
            "ppo": {"steps": steps, "estimator": "rloo"},
            "workers": {"scorer": {"count": 4, "cpus": 0.1, "threads": 1}},
            "evaluation": {"prompts": 1},
            "checkpoint": {"every": 0},
            "tracking": [],
        }
    )
    ppo.run(config)
    lines = (work / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["step"]]
    ends = [row["time"] for row in rows[:-1]]  # after the last one comes the evaluation
    seconds = [after - before for before, after in pairwise(ends[1:])]
    told = {key: rows[-1][f"scorer/{key}"] for key in ("hedged", "deaths")}
    return {"seconds": seconds, "median": statistics.median(seconds), **told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of generation and of update")
    parser.add_argument("--a-batch", type=float, default=0.4, help="seconds of scoring")
    parser.add_argument("--factor", type=float, default=10.0, help="of the slow scorer")
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        path = str(build_model(work / "model"))
        tokenizer = backbone.load_tokenizer(path)
        model = RewardModel(backbone.load_causal_lm(Model(path=path, dtype="float32")), Head())
        contract = ScoringContract.of(tokenizer, 128, "left")
        save_reward_model(model, Head(), tokenizer, contract, work / "reward", "# fresh head\n")
        prompts = [{"prompt": " ".join(WORDS[i:] + WORDS[:i])} for i in range(len(WORDS))]
        text = "".join(json.dumps(row) + "\n" for row in prompts)
        (work / "prompts.jsonl").write_text(text, encoding="utf-8")
        found = {}
        for name, factor in (("alike", 1.0), ("one-slow", arguments.factor)):
            made = slowed(arguments.seconds, arguments.a_batch, factor)
            ppo_workers.Learner, ppo_workers.RolloutWorker, ppo_workers.Scorer = made
            found[name] = measure(work, name, arguments.steps)
    finish(
        {
            "name": "straggler",
            "seconds_of_generation_and_update": arguments.seconds,
            "seconds_a_batch": arguments.a_batch,
            "factor": arguments.factor,
            "ratio": round(found["one-slow"]["median"] / found["alike"]["median"], 2),
            "unit": "seconds a step",
            "detail": found,
        }
    )


if __name__ == "__main__":
    main()
