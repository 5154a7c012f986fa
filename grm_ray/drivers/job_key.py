"""Names of trainings by all that their outcome depends on: where there is one name, there is one
outcome, and it need not be computed again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Set
from typing import Any

from grm_ray.config.best_of_n import BestOfNJob
from grm_ray.config.ppo import PpoJob
from grm_ray.config.reward_model import RewardModelJob
from grm_ray.config.schema import Dtype, Source, Workers
from grm_ray.data import files
from grm_ray.models.backbone import resolve, resolve_dtype
from grm_ray.models.checkpoint import model_identity
from grm_ray.models.starting import starting_folder

# Raised where one config comes to mean another training (a default that changes, say).
FORMAT = 2  # 2: every row of an epoch is trained on, the last step being shorter
# What an outcome does not depend on, up to rounding. Paths stand for what they hold.
WITHOUT_EFFECT = (
    "name",
    "runs",
    "tracking",
    "workers",
    "timeout_s",
    "checkpoint.every",
    "checkpoint.keep",
    "model.path",
    "model.dtype",
    "data.train",
    "data.eval",
)
WITHOUT_EFFECT_ON_POLICIES = (
    "name",
    "runs",
    "tracking",
    "workers",
    "timeout_s",
    "checkpoint",
    "policy.path",
    "policy.dtype",
    "data.prompts",
    "data.train",
    "data.eval",
    "proxies",
    "ensembles",
    "betas",
    "true_reward",
    "reward.path",
    "reward.members",
    "reward.true_reward",
    # How fast, in how much memory.
    "policy.gradient_checkpointing",
    "rollout.rows_per_batch",
    "rollout.engine",
    "rollout.weight_transfer",
    "reward.tokens_per_micro_batch",
    "scoring.tokens_per_micro_batch",
    "ppo.optimizer.tokens_per_micro_batch",
    "ppo.optimizer.zero_stage",
    "ppo.optimizer.offload",
    "prompts_per_shard",
    # What is watched beside.
    "evaluation.greedy",
    "evaluation.canaries",
)


class Keys:
    """Hashes models and data once each, however many jobs share them."""

    def __init__(self) -> None:
        self._models: dict[str, str] = {}
        self._data: dict[str, str] = {}

    def of(self, job: RewardModelJob, *more: Any) -> str:
        """16 hex digits of the job's settings, weights and data, and of `more` (plain data).

        Settings that have their defaults are not named: a key that a later version adds leaves
        the keys of earlier jobs as they are.

        Raises:
            ConfigError: a model or data file that is not there.
        """
        plain = job.model_dump(mode="json", exclude_defaults=True)
        for path in WITHOUT_EFFECT:
            _leave_out(plain, path.split("."))
        parts = {
            "format": FORMAT,
            "job": plain,
            "dtype": precision(job.model.dtype, job.workers),
            # Ranks draw what dropout leaves out each for itself.
            "ranks": job.workers.count if _drops_out(job) else None,
            "model": self._model(job.model.path),
            **self._kept_head(job),
            "train": [self.source(source) for source in job.data.train],
            "eval": {name: self.source(source) for name, source in job.data.eval.items()},
            "more": more,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def of_policy(self, job: BestOfNJob | PpoJob, *more: Any) -> str:
        """16 hex digits of a best-of-n or PPO job's settings, policy and prompts, and of `more`.

        Reward models and true reward are not looked at: name them in `more`.

        Raises:
            ConfigError: a model or data file that is not there.
        """
        plain = job.model_dump(mode="json", exclude_defaults=True)
        for path in WITHOUT_EFFECT_ON_POLICIES:
            _leave_out(plain, path.split("."))
        watched = None
        if isinstance(job, PpoJob):
            prompts, workers = [job.data.train, job.data.eval], job.workers.learner
            watched = job.evaluation.canaries
        else:
            prompts, workers = [job.data.prompts], job.workers.rollout
        parts = {
            "format": FORMAT,
            "job": plain,
            "dtype": precision(job.policy.dtype, workers),
            "policy": self._model(job.policy.path),
            "prompts": [self.source(source, {"prompt"}) for source in prompts if source],
            **({"canaries": self.source(watched, {"prompt", "matches"})} if watched else {}),
            "more": more,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def _kept_head(self, job: RewardModelJob) -> dict[str, bool]:
        """Named only where there is one: the keys of jobs without stay what they were."""
        folder = None if job.new_head else starting_folder(resolve(job.model.path))
        return {} if folder is None else {"kept_head": True}

    def source(self, source: Source, columns: Set[str] = frozenset({"chosen"})) -> list[Any]:
        """What a source reads and how, as plain data.

        Args:
            columns: what is read of it, as `data.files.digest` takes them.
        """
        settings = source.model_dump(mode="json", exclude_defaults=True, exclude={"path"})
        place = json.dumps([source.path, source.split, sorted(columns)])
        if place not in self._data:
            self._data[place] = files.digest(source, columns)
        return [settings, self._data[place]]

    def _model(self, path: str) -> str:
        if path not in self._models:
            self._models[path] = model_identity(resolve(path))
        return self._models[path]


def _leave_out(plain: dict[str, Any], path: list[str]) -> None:
    """Remove a key and the sections that have nothing else."""
    first, *rest = path
    if not rest:
        plain.pop(first, None)
    elif first in plain:
        _leave_out(plain[first], rest)
        if not plain[first]:
            del plain[first]


def precision(dtype: Dtype, workers: Workers) -> str:
    """What workers compute in, as far as the driver can tell: on a GPU "auto" is theirs to
    resolve."""
    return "auto on a GPU" if dtype == "auto" and workers.gpus > 0 else resolve_dtype(dtype)


def _drops_out(job: RewardModelJob) -> bool:
    lora = job.model.lora
    return bool(job.head.dropout or (lora is not None and lora.dropout))
