"""The cast of a best-of-n run: engines that write, scorers that hold every proxy."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import ray

from grm_ray.config.best_of_n import BestOfNJob
from grm_ray.config.registry import is_path
from grm_ray.models.checkpoint import local_folder
from grm_ray.runtime import cluster
from grm_ray.runtime.placement import Bundle
from grm_ray.runtime.pool import Pool, must_show
from grm_ray.runtime.transport import RayTransport
from grm_ray.workers.rollout import RolloutWorker
from grm_ray.workers.scorer import Scorer


class Cast:
    """Starts all workers at once.

    Args:
        fingerprints: what the scorers' models must be, as `Scorer.start` gives them.
    """

    def __init__(
        self,
        config: BestOfNJob,
        folder: Path,
        policy: str,
        placed: Any,
        wanted: list[Bundle],
        fingerprints: list[str],
    ) -> None:
        self._config, self._folder, self._policy = config, folder, policy
        self._placed, self._wanted = placed, wanted
        workers = config.workers
        self.transport = RayTransport()
        self.rollouts = Pool(
            "rollout",
            self._spawn_rollout,
            workers.rollout.count,
            say=_say,
            dead_s=config.timeout_s,
        )
        self.scorers = Pool(
            "scorer",
            self._spawn_scorer,
            workers.scorer.count,
            admit=must_show(fingerprints),
            say=_say,
            dead_s=config.timeout_s,
        )

    def wait(self) -> None:
        """Until everyone may serve.

        Raises:
            PoolFailed: a worker cannot start, or holds other models.
        """
        self.scorers.wait_ready(self._config.timeout_s)
        self.rollouts.wait_ready(self._config.timeout_s)

    def close(self) -> None:
        """End every worker; an engine follows its actor (`runtime.scratch`). Never raises."""
        for handle in [*self.rollouts.handles, *self.scorers.handles]:
            with contextlib.suppress(Exception):
                ray.kill(handle)

    def _spawn_rollout(self, slot: int) -> tuple[Any, Any]:
        config, threads = self._config, self._config.workers.rollout.threads
        worker = RolloutWorker.options(**self._options("rollout", slot, threads)).remote(
            config.policy.model_dump(mode="json"),
            config.rollout.rollout().model_dump(mode="json"),
            config.data.max_prompt_length,
            False,
            self._policy,
            threads,
            self._log("rollout", slot),
        )
        return worker, worker.start.remote()

    def _spawn_scorer(self, slot: int) -> tuple[Any, Any]:
        config, threads = self._config, self._config.workers.scorer.threads
        judge = config.true_reward
        worker = Scorer.options(**self._options("scorer", slot, threads)).remote(
            [_folder(path) for path in config.proxies.values()],
            config.scoring.dtype,
            self._policy,
            _folder(judge) if is_path(judge) else judge,
            config.scoring.tokens_per_micro_batch,
            threads,
            self._log("scorer", slot),
            config.policy.trust_remote_code,
            by_member=False,
        )
        return worker, worker.start.remote()

    def _options(self, role: str, slot: int, threads: int) -> dict[str, Any]:
        bundle = next(b for b in self._wanted if (b.role, b.slot) == (role, slot))
        return cluster.worker_options(self._placed, self._wanted, bundle, threads)

    def _log(self, role: str, slot: int) -> str:
        return str(self._folder / "logs" / f"{role}-{slot}.log")


def _folder(path: str) -> str:
    """Where a reward model is, whatever folder a worker starts in."""
    return str(local_folder(path).resolve())


def _say(message: str) -> None:
    print(message, flush=True)
