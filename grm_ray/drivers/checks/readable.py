"""Whether the reward models of a PPO run can read its prompts: known before any worker starts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import jinja2

from grm_ray.config import registry
from grm_ray.config.errors import ConfigError
from grm_ray.config.ppo import PpoJob
from grm_ray.config.schema import Job
from grm_ray.data.files import is_hub
from grm_ray.data.records import Prompt, as_messages
from grm_ray.data.sources import Quarantine
from grm_ray.drivers.ppo.prompts import read_prompts
from grm_ray.models import backbone
from grm_ray.models.checkpoint import local_folder, reward_contract


def rehearse(config: Job) -> None:
    """What a run finds out from its data before any worker starts, beyond `check`: for `--dry-run`.

    Raises:
        ConfigError: no prompt is left, or a reward model's chat template refuses them.
    """
    if not isinstance(config, PpoJob):
        return
    paths = [config.policy.path, *readers(config).values()]
    local = [p for p in paths if p == backbone.EMBEDDED or Path(p).expanduser().is_dir()]
    if len(local) == len(paths) and not is_hub(config.data.train.path):
        train, held_out = read_prompts(config, Quarantine())
        check_readable(config, backbone.resolve(config.policy.path), [*train, *held_out])


def readers(config: PpoJob) -> dict[str, str]:
    """Config key -> folder or hub id of each reward model that reads the policy's answers."""
    judge = config.reward.true_reward
    watched = judge is not None and registry.is_path(judge)
    return {**config.reward.models, **({"reward.true_reward": judge} if watched else {})}


def check_readable(config: PpoJob, policy_path: str, prompts: Iterable[Prompt]) -> None:
    """That the reward models' chat templates take the prompts; one of each order of roles is tried.

    Raises:
        ConfigError: naming the model and the roles.
    """
    kinds = {tuple(role for role, _ in prompt.messages): prompt for prompt in prompts}
    trust = config.policy.trust_remote_code
    policy = backbone.load_tokenizer(policy_path, trust)
    for key, path in readers(config).items():
        contract = reward_contract(path, trust)
        if contract.same_tokens_as(policy):
            continue  # it reads the policy's own
        tokenizer = backbone.load_tokenizer(str(local_folder(path)), trust)
        for kind, prompt in kinds.items():
            messages = as_messages(prompt.messages)
            try:
                contract.tokens(tokenizer, messages, ["Yes."])
            except jinja2.TemplateError as error:
                raise ConfigError(
                    f"{key}: the chat template of {path} refuses a conversation of "
                    f"{', '.join(kind)}: {error}; leave such prompts out of data, or use another "
                    "reward model"
                ) from None
