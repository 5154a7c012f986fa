"""A PPO run on a simulated cluster: the real loop, and the schedule that it is compared with."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parts.simulated_cluster import SimulatedCluster, Speeds
from grm_ray.config.ppo import PpoJob
from grm_ray.drivers.ppo.ahead import Ahead
from grm_ray.drivers.ppo.stream import Stream
from grm_ray.drivers.ppo.update import begin_update
from grm_ray.runtime.ledger import LedgerFile, seed
from grm_ray.training.policy_loss import PolicyLoss


def job(prompts_per_step: int, samples: int, steps: int, staleness: int) -> PpoJob:
    return PpoJob.model_validate(
        {
            "name": "simulated",
            "policy": {"path": "none"},
            "reward": {"path": "none"},
            "data": {"train": {"path": "none"}},
            "rollout": {
                "prompts_per_step": prompts_per_step,
                "samples_per_prompt": samples,
                "staleness": staleness,
            },
            "ppo": {"steps": steps, "estimator": "rloo"},
        }
    )


def run(
    engines: int,
    scorers: int,
    speeds: Speeds,
    steps: int = 4,
    rows_per_engine: int = 16,
    staleness: int = 1,
    run_seed: int = 0,
) -> dict[str, Any]:
    """One run of the real loop; its figures.

    Raises:
        AssertionError: a row was lost, or counted twice.
    """
    samples = 4
    prompts_per_step = max(2, engines * rows_per_engine // samples)
    config = job(prompts_per_step, samples, steps, staleness)
    # The learner grows with the engines, as its share of a real cluster would.
    speeds = Speeds(**{**vars(speeds)})
    speeds.evaluate_tokens *= engines / 16
    speeds.learn_tokens *= engines / 16
    cluster = SimulatedCluster(engines, scorers, speeds, run_seed)
    stream = Stream(cluster, timeout_s=3600.0)
    ids = [f"{i:06d}" for i in range(prompts_per_step * steps)]
    ahead = Ahead(config, cluster, stream, None, ids, 0)
    loss = PolicyLoss(config.ppo, config.rollout)
    began, transport = cluster.transport.now(), cluster.transport
    with tempfile.TemporaryDirectory() as folder:
        ledger = LedgerFile(Path(folder) / "ledger.jsonl")
        for number in range(1, steps + 1):
            gathering, prompts = ahead.take(number)
            stream.gather(gathering, between=ahead.advance)
            step = gathering.step
            rewards = step.column("scores")[:, 0]
            learning = begin_update(
                config, cluster.learners, loss, step, rewards, prompts, 0.0, number
            )
            ahead.issued(number)
            stream.wait(learning, ahead.advance)
            ahead.updated(number)
            ledger.append(number, step.ledger.uids)
        told = [uid for uids in ledger.steps().values() for uid in uids]
    rows = prompts_per_step * samples * steps
    assert len(told) == len(set(told)) == rows, (len(told), len(set(told)), rows)
    assert sorted(cluster.learners.updated) == sorted(told)
    seconds = transport.now() - began
    pools = (cluster.rollouts, cluster.scorers)
    return {
        "engines": engines,
        "scorers": scorers,
        "rows": rows,
        "simulated_s": seconds,
        "learner_busy": cluster.learners.busy_s / seconds,
        "learner_busy_barrier": barrier(told, rows // steps, engines, scorers, speeds),
        "driver_ms_per_row": 1000 * transport.driver_s / rows,
        "deaths": cluster.deaths,
        "replaced": sum(pool.replaced for pool in pools),
        "retries": sum(pool.retried for pool in pools),
        "hedged": sum(pool.hedged for pool in pools),
    }


def barrier(uids: list[str], per_step: int, engines: int, scorers: int, speeds: Speeds) -> float:
    """The learner's share where every phase of a step waits for all of the one before.

    The same answers; nobody dies, and the driver costs nothing.
    """
    drawn = SimulatedCluster(1, 1, speeds, 0)
    lengths = np.array([drawn.length(seed(uid, 0)) for uid in uids]).reshape(-1, per_step)
    busy = total = 0.0
    for step in lengths:
        shares = np.array_split(step, engines)
        rounds = [
            sum(np.sort(share)[::-1][:: speeds.sequences]) * speeds.decode_s for share in shares
        ]
        tokens = float(step.sum() + per_step * speeds.prompt)
        learner = tokens / speeds.evaluate_tokens + tokens / speeds.learn_tokens
        total += max(rounds) + tokens / speeds.score_tokens / scorers + learner + speeds.sync_s
        busy += learner
    return busy / total
