"""What a PPO run is made of, by fingerprint: checkpoints of other models or prompts are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from grm_ray.config.ppo import PpoJob
from grm_ray.data.records import Prompt
from grm_ray.drivers.ppo.canaries import Canary
from grm_ray.drivers.ppo.prompts import fingerprint
from grm_ray.models import backbone
from grm_ray.models.checkpoint import model_identity


def identity_of(
    config: PpoJob,
    path: str,
    prompts: Sequence[Prompt],
    canaries: Sequence[Canary],
    fingerprints: Mapping[str, str],
) -> dict[str, str]:
    """What -> its fingerprint, as `run_folder.saved_state` compares them.

    Args:
        path: of the starting policy.
        prompts: training and held-out ones, in their order.
        fingerprints: of the models that read answers, by config key (`readable.readers`).
    """
    found = {
        "policy model": model_identity(path),
        "reward model": " ".join(fingerprints[key] for key in config.reward.models),
        "set of prompts": fingerprint(list(prompts)),
    }
    if canaries:
        told = " ".join(f"{c.prompt.prompt_id} {c.pattern.pattern}" for c in canaries)
        found["set of canaries"] = hashlib.sha256(told.encode()).hexdigest()
    if config.ppo.kl.reference is not None:
        found["reference model"] = model_identity(backbone.resolve(config.ppo.kl.reference))
    if "reward.true_reward" in fingerprints:
        found["true reward"] = fingerprints["reward.true_reward"]
    return found
