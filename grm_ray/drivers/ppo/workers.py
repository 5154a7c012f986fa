"""The cast of a PPO run: learner ranks, rollout pool, scorer pool, and the weights between them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from grm_ray.config.ppo import PpoJob
from grm_ray.config.registry import is_path
from grm_ray.config.schema import Workers
from grm_ray.data.packing import split_by_tokens
from grm_ray.drivers.groups import Group
from grm_ray.drivers.reward_stages import rules_of
from grm_ray.models.checkpoint import local_folder
from grm_ray.runtime import cluster
from grm_ray.runtime.failures import Failure, kind_of
from grm_ray.runtime.placement import Bundle
from grm_ray.runtime.pool import Pool, must_show
from grm_ray.runtime.timeline import Timeline
from grm_ray.runtime.transport import RayTransport
from grm_ray.runtime.weights import ON_DEVICE, Version, WeightUpdate
from grm_ray.workers.learner import Learner
from grm_ray.workers.rollout import RolloutWorker
from grm_ray.workers.scorer import Scorer


class PpoCast:
    """Starts all workers of a run at once, and tells new rollout workers the current weights.

    Attributes:
        timeline: the driver's.
        transport: by which the driver waits for its workers.
        say: tells whoever looks on one line.
    """

    def __init__(
        self,
        config: PpoJob,
        folder: Path,
        policy_path: str,
        placed: Any,
        wanted: list[Bundle],
        fingerprints: list[str],
        say: Callable[[str], None],
    ) -> None:
        self._config, self._folder, self._path = config, folder, policy_path
        self.say = say
        self._placed, self._wanted = placed, wanted
        self.timeline = Timeline(folder / "logs" / "driver.log")
        self.transport = RayTransport()
        self._update: WeightUpdate | None = None
        self._blob: Any = None
        self._admitting: dict[Any, Any] = {}  # replacement -> its first weights
        self._plain = config.model_dump(mode="json")
        self._tokens = [0] * config.workers.learner.count
        self.learners_replaced = 0
        self.learners = Group(self._make_learner, config.workers.learner.count, config.timeout_s)
        # One share of a step a worker: continuous batching wants all of it at once.
        self.rollouts = Pool(
            "rollout",
            self._spawn_rollout,
            config.workers.rollout.count,
            admit=self._bring_up_to_date,
            say=say,
            dead_s=config.timeout_s,
        )
        self.scorers = Pool(
            "scorer",
            self._spawn_scorer,
            config.workers.scorer.count,
            admit=must_show(fingerprints),
            say=say,
            dead_s=config.timeout_s,
        )

    @property
    def replaced(self) -> int:
        """Workers that died and were replaced so far."""
        return self.rollouts.replaced + self.scorers.replaced + self.learners_replaced

    def figures(self) -> dict[str, float]:
        """How the roles fare, since this was asked last."""
        return {
            **self.rollouts.figures(),
            **self.scorers.figures(),
            "learner/deaths": float(self.learners_replaced),
        }

    def begin(self) -> None:
        """Have the learner ranks load while the caller does something else."""
        self.learners.begin_setup()

    def wait(self) -> None:
        """Until everyone may serve; `begin` comes first.

        Raises:
            PoolFailed: a scorer holds another reward model than the config's folder.
        """
        timeout = self._config.timeout_s
        self.learners.end_setup()
        self.scorers.wait_ready(timeout)
        self.rollouts.wait_ready(timeout)

    def revive_learners(self) -> None:
        """New learner ranks, with the weights that the policy started from; engines and scorers
        stay, and nobody waits any more for what they do.

        Raises:
            RankDied: one of the new ones died as well.
        """
        self.learners_replaced += len(self.learners.ranks)
        self.rollouts.forget()
        self.scorers.forget()
        # What the ranks had laid ready went with them: who starts now waits for the next version.
        self._update, self._blob = None, None
        self._admitting.clear()
        self._tokens = [0] * len(self._tokens)
        self.learners.restart()
        if self.rollouts.at_rest:
            self._of_engines("wake_up")

    @property
    def evaluates_together(self) -> bool:
        """Whether the ranks can only evaluate all at once: under ZeRO-3 each has a part only."""
        return self._config.ppo.optimizer.zero_stage == 3

    def evaluate(self, batch: Any, tokens: int) -> tuple[Any, Any]:
        """Log-probs and values of a batch on the least loaded rank: references to both results."""
        rank = self._tokens.index(min(self._tokens))
        self._tokens[rank] += tokens
        return self._evaluate(rank, [batch])

    def evaluate_together(self, batches: list[Any], tokens: list[int]) -> list[tuple[Any, Any]]:
        """`evaluate` of all of a step's batches, shared out over the ranks, one result a rank."""
        shares = split_by_tokens(tokens, len(self._tokens))
        return [
            self._evaluate(rank, [batches[i] for i in share]) for rank, share in enumerate(shares)
        ]

    def _evaluate(self, rank: int, batches: list[Any]) -> tuple[Any, Any]:
        return tuple(self.learners.ranks[rank].evaluate.options(num_returns=2).remote(*batches))

    def learner_works(self, now: bool) -> None:
        """Hand shared GPUs to the learner for an update, or back to the engines."""
        if not self._config.workers.share_devices:
            return
        if now:
            self._of_engines("sleep")
        self.learners.call("hold_optimizer", now)
        if not now:
            self._of_engines("wake_up")

    def _of_engines(self, method: str) -> None:
        self.rollouts.at_rest = method == "sleep"
        self._all_engines(lambda engine: getattr(engine, method).remote())

    def _all_engines(self, call: Callable[[Any], Any]) -> None:
        """Every engine does `call`, or is replaced."""
        refs = {handle: call(handle) for handle in self.rollouts.ready_handles}
        for handle, ref in refs.items():
            try:
                ray.get(ref, timeout=self._config.timeout_s)
            except ray.exceptions.RayError as error:
                if kind_of(error) is Failure.PROGRAM:
                    raise
                self.rollouts.replace_dead(handle, error)

    def begin_export(self, version: Version) -> list[Any]:
        """Have the ranks lay their weights ready after all that they were asked for before.

        Only one version may be on its way: `send_weights` comes before the next.
        """
        # A replacement may be reading the version before; its file is written over in turn.
        if self._admitting:
            refs = list(self._admitting.values())
            done, _ = ray.wait(refs, num_returns=len(refs), timeout=self._config.timeout_s)
            for handle, ref in self._admitting.items():
                if ref not in done:
                    self.rollouts.replace_dead(handle, TimeoutError("it did not take the weights"))
            self._admitting.clear()
        return [rank.export_weights.remote(version) for rank in self.learners.ranks]

    def send_weights(self, exported: list[Any]) -> None:
        """What `begin_export` laid ready, into every rollout engine, or into its replacement.

        The engines must be idle: a row is written by one version.
        """
        self._update = self.learners.gather(exported)[0]
        if self._update.path == ON_DEVICE:
            workers = self.rollouts.ready_handles
            self.learners.gather([self.learners.ranks[0].send_weights.remote(workers)])
            self._tokens = [0] * len(self._tokens)
            return
        self._blob = self._bytes_if_needed()
        self._all_engines(lambda engine: engine.update_weights.remote(self._update, self._blob))
        self._tokens = [0] * len(self._tokens)

    def close(self) -> None:
        """End every worker; an engine follows its actor (`runtime.scratch`). Never raises."""
        with contextlib.suppress(Exception):
            stopping = [rank.close.remote() for rank in self.learners.ranks]
            ray.wait(stopping, num_returns=len(stopping), timeout=10)
        for handle in [*self.rollouts.handles, *self.scorers.handles, *self.learners.ranks]:
            with contextlib.suppress(Exception):
                ray.kill(handle)

    # ------------------------------------------------------------------ inside

    def _bytes_if_needed(self) -> Any:
        """A reference to the bytes when the cluster has more than the learner's machine."""
        alive = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        if len(alive) == 1:
            return None
        blob, there = self.learners.ranks[0].weight_bytes.options(num_returns=2).remote()
        self.learners.gather([there])  # that the rank died shall not look like the engines' fault
        return blob

    def _options(self, role: str, slot: int, workers: Workers) -> dict[str, Any]:
        bundle = next(b for b in self._wanted if (b.role, b.slot) == (role, slot))
        return cluster.worker_options(self._placed, self._wanted, bundle, workers.threads)

    def _log(self, role: str, slot: int) -> str:
        return str(self._folder / "logs" / f"{role}-{slot}.log")

    def _make_learner(self, rank: int) -> Any:
        workers = self._config.workers.learner
        return Learner.options(**self._options("learner", rank, workers)).remote(
            self._plain,
            rank,
            workers.count,
            self._path,
            workers.threads,
            self._log("learner", rank),
        )

    def _spawn_rollout(self, slot: int) -> tuple[Any, Any]:
        workers = self._config.workers.rollout
        worker = RolloutWorker.options(**self._options("rollout", slot, workers)).remote(
            self._plain["policy"],
            self._plain["rollout"],
            self._config.data.max_prompt_length,
            self._config.workers.share_devices,
            self._path,
            workers.threads,
            self._log("rollout", slot),
        )
        return worker, worker.start.remote()

    def _bring_up_to_date(self, worker: Any, version: str) -> Any:
        """What a rollout worker with `version` must do before it serves; None: nothing."""
        if self._update is None or version == str(self._update.version):
            return None
        if self._update.path == ON_DEVICE:
            loading = self.learners.ranks[0].send_weights.remote([worker])
        else:
            loading = worker.update_weights.remote(self._update, self._blob)
        self._admitting[worker] = loading
        return loading

    def _spawn_scorer(self, slot: int) -> tuple[Any, Any]:
        workers, reward = self._config.workers.scorer, self._config.reward
        judge = reward.true_reward
        if judge is not None and is_path(judge):
            judge = str(local_folder(judge).resolve())
        worker = Scorer.options(**self._options("scorer", slot, workers)).remote(
            [str(local_folder(path).resolve()) for path in reward.models.values()],
            reward.dtype,
            self._path,
            judge,
            reward.tokens_per_micro_batch,
            workers.threads,
            self._log("scorer", slot),
            self._config.policy.trust_remote_code,
            rules_of(reward),
        )
        return worker, worker.start.remote()
