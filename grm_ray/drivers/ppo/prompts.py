"""The prompts of a run: read, parted into training and held-out ones, told apart from others."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from grm_ray.config.errors import ConfigError
from grm_ray.config.ppo import PpoJob, PromptData
from grm_ray.config.schema import Source
from grm_ray.data import sources
from grm_ray.data.records import Prompt
from grm_ray.data.sources import Quarantine
from grm_ray.drivers.groups import fetch


def read_prompts(config: PpoJob, quarantine: Quarantine) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts, with none in both: case, spacing and system turns aside."""
    data = config.data
    train = sources.prompts(data.train, quarantine)
    if data.train.shuffle:
        order = np.random.default_rng([config.seed, 1]).permutation(len(train))
        train = [train[i] for i in order]
    if data.eval is not None:
        held_out = sources.prompts(data.eval, quarantine)[: data.eval.limit]
        held_out = held_out[: config.evaluation.prompts]
    else:
        held_out = train[-config.evaluation.prompts :]
    asked = {prompt.plain_prompt for prompt in held_out}
    apart = [prompt for prompt in train if prompt.plain_prompt not in asked]
    shared = len(train) - len(apart)
    if data.eval is not None:
        quarantine.add_many(data.train.path, shared, "prompt shared with an evaluation set")
    else:
        alike = shared - len(held_out)
        quarantine.add_many(data.train.path, alike, "prompt shared with the held-out part")
    train = apart[: data.train.limit]
    if not train:
        raise ConfigError(
            f"{data.train.path}: no training prompt is left after {len(held_out)} held-out ones"
        )
    return train, held_out


def fingerprint(prompts: list[Prompt]) -> str:
    """Of a set of prompts and its order."""
    return hashlib.sha256(" ".join(p.prompt_id for p in prompts).encode()).hexdigest()


def encoded(
    refs: list[Any], data: PromptData, source: Source, quarantine: Quarantine
) -> tuple[Any, list[str]]:
    """Reference to the table of tokenised prompts, and their ids; those that are too long or that
    the chat template refuses go to the quarantine.

    Args:
        refs: what `Encoder.prompts` gave.

    Raises:
        ConfigError: no prompt is left.
    """
    table, info_ref = refs
    info = fetch(info_ref)
    for prompt_id, reason in info["left_out"]:
        quarantine.add(source.path, 0, reason, prompt_id)
    if not info["prompt_ids"]:
        raise ConfigError(
            f"{source.path}: none of {len(info['left_out'])} prompts can be used "
            f"(data.max_prompt_length: {data.max_prompt_length}); the first is "
            f"{info['left_out'][0][1]}"
        )
    return table, info["prompt_ids"]
