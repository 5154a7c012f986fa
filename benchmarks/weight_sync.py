"""New weights from the learner into vLLM: how long, and does vLLM then speak with them?

The learner takes one large step. Before and after the update, vLLM writes the same number of
tokens, and the learner gives its own log-probs of them: with the old weights in the engine they
differ, with the new ones only by rounding. The learner's time (merge the adapter, write to shared
memory, checksum) and the engine's (checksum, load) are both in the figure.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from grm_ray.config.ppo import PpoJob
from grm_ray.data.sources import Quarantine, prompts
from grm_ray.drivers.checks.plan import roles
from grm_ray.models import backbone
from grm_ray.runtime import cluster
from grm_ray.runtime.placement import bundles
from grm_ray.runtime.weights import Version
from grm_ray.workers.encoder import start_encoder
from grm_ray.workers.learner import Learner
from grm_ray.workers.rollout import RolloutWorker


def measure(model: str, data: str, tokens: int, updates: int) -> dict[str, float]:
    """Seconds an update and mean |log-prob gap| a token, before and after the first update."""
    rows = max(1, tokens // 24)  # some answers end before their 32 tokens
    config = PpoJob.model_validate(
        {
            "name": "weight_sync",
            "policy": {"path": model, "lora": {"rank": 16, "dropout": 0.0}},
            "reward": {"path": "none"},
            "data": {"train": {"path": data}, "max_prompt_length": 128},
            "rollout": {"max_new_tokens": 32, "rows_per_batch": rows},
            "ppo": {"optimizer": {"learning_rate": 1e-3, "warmup_ratio": 0.0}, "steps": 10},
        }
    )
    path = backbone.resolve(model)
    wanted = bundles({k: v for k, v in roles(config).items() if k != "scorer"})
    with (
        tempfile.TemporaryDirectory() as logs,
        cluster.session(wanted),
        cluster.placement_group(wanted) as placed,
    ):
        return _measure(config, path, placed, wanted, Path(logs), rows, updates)


def _measure(
    config: PpoJob, path: str, placed: Any, wanted: list, logs: Path, rows: int, updates: int
) -> dict[str, float]:
    plain = config.model_dump(mode="json")
    options = {b.role: cluster.worker_options(placed, wanted, b, 2) for b in wanted}
    learner = Learner.options(**options["learner"]).remote(
        plain, 0, 1, path, 2, str(logs / "learner.log")
    )
    rollout = RolloutWorker.options(**options["rollout"]).remote(
        plain["policy"], plain["rollout"], 128, False, path, 2, str(logs / "rollout.log")
    )
    some = prompts(config.data.train, Quarantine())[:rows]
    encoder = start_encoder(path, False, str(logs / "encoder.log"))
    table, info = encoder.prompts.remote(some, 128)
    count = len(ray.get(info)["prompt_ids"])
    ray.get([learner.setup.remote((*ray.get(learner.address.remote()), 1)), rollout.start.remote()])
    calls = 0

    def speak() -> tuple[Any, Any, dict[str, Any]]:
        """`rows` answers by the engine, with the learner's view of them."""
        nonlocal calls
        calls += 1
        wanted_rows = [(i % count, f"{i}:{calls}", i + 1000 * calls) for i in range(rows)]
        stream = rollout.generate.options(num_returns="streaming").remote(table, wanted_rows)
        batch, _ = next(stream), next(stream)
        evaluation, seen = learner.evaluate.options(num_returns=2).remote(batch)
        return batch, evaluation, ray.get(seen)

    def gap(seen: dict[str, Any], batch: Any) -> float:
        answers = ray.get(batch)["response_tokens"].to_pylist()
        return sum(seen["gap"]) / sum(map(len, answers))

    batch, evaluation, seen = speak()
    same = gap(seen, batch)
    rewards = {uid: float((-1) ** i) for i, uid in enumerate(seen["uids"])}
    ray.get(learner.learn.remote([batch], [evaluation], rewards, [list(rewards)], 0.0, True))
    batch, _, seen = speak()
    stale = gap(seen, batch)
    seconds: list[float] = []
    exported: list[float] = []
    for step in range(1, updates + 1):
        began = time.perf_counter()
        update = ray.get(learner.export_weights.remote(Version(0, step)))
        exported.append(time.perf_counter() - began)
        ray.get(rollout.update_weights.remote(update))
        seconds.append(time.perf_counter() - began)
    size = Path(update.path).stat().st_size
    batch, _, seen = speak()
    fresh = gap(seen, batch)
    written = sum(len(a) for a in ray.get(batch)["response_tokens"].to_pylist())
    ray.get(learner.close.remote())
    for actor in (rollout, learner):
        ray.kill(actor)
    return {
        "seconds": sorted(seconds)[len(seconds) // 2],
        "first_seconds": seconds[0],
        "export_seconds": sorted(exported)[len(exported) // 2],
        "bytes": size,
        "tokens": written,
        "gap_same_weights": same,
        "gap_before_update": stale,
        "gap_after_update": fresh,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--updates", type=int, default=5)
    arguments = parser.parse_args()
    found = measure(arguments.model, arguments.data, arguments.tokens, arguments.updates)
    for key, value in found.items():
        print(f"{key:20} {value:.6g}")
    from machine import finish

    # The figure to beat is our own promise: an update of 135M weights within one second.
    finish(
        {
            "name": "weight_sync",
            "ours": round(found["seconds"], 3),
            "theirs": 1.0,
            "ratio": round(1.0 / found["seconds"], 2),
            "unit": "s an update; 'theirs' is the target",
            **found,
        }
    )


if __name__ == "__main__":
    main()
