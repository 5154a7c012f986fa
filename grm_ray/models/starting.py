"""What reward-model training starts from: a language model and a new head, or a saved reward model
with its head and the tokens that it reads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from grm_ray.config.errors import ConfigError
from grm_ray.config.schema import Head, Model
from grm_ray.data.chat import ScoringContract
from grm_ray.models import foreign
from grm_ray.models.backbone import is_hub_id, load_causal_lm
from grm_ray.models.checkpoint import (
    META_FILE,
    head_of,
    is_ours,
    local_folder,
    read_reward_model,
    reward_contract,
)
from grm_ray.models.reward_model import RewardModel


def start_reward_model(source: Model, path: str, head: Head, new_head: bool) -> RewardModel:
    """What training starts from: a language model and a new head, or a saved reward model.

    Args:
        path: folder (or hub id) of `source`; a reward model there brings its head.
        new_head: a new head although there is one.

    Raises:
        ConfigError: the saved head is of another form than `head`, or the folder is damaged.
    """
    with _as_config_error():
        folder = starting_folder(path)
        if folder is None:
            return RewardModel(load_causal_lm(source, path), head)
        if new_head:
            return RewardModel(read_reward_model(folder, source).lm, head)
        check_same_head(folder, head)
        return read_reward_model(folder, source, head.dropout)


def starting_contract(
    path: str, tokenizer: Any, max_length: int, truncation: str, new_head: bool, trust: bool
) -> ScoringContract:
    """How training reads conversations that starts from `path`: a head that is kept goes on to be
    read where it was, on the same tokens; length and truncation are the config's.

    Raises:
        ConfigError: the tokenizer is not the contract's.
    """
    with _as_config_error():
        folder = None if new_head else starting_folder(path)
        if folder is None:
            return ScoringContract.of(tokenizer, max_length, truncation)
        contract = reward_contract(folder, trust, origin=path)
        contract.check(tokenizer)
        return replace(contract, max_length=max_length, truncation=truncation)


def starting_folder(path: str) -> Path | None:
    """The folder of the reward model that a model's path names; None: it is no reward model.

    Of a hub id, only what is a reward model is downloaded here.

    Raises:
        ValueError: it holds a head that cannot be read, or a part of one.
    """
    if is_hub_id(path):
        return local_folder(path) if _is_hub_reward_model(path) else None
    folder = Path(path)
    holds = folder.is_dir() and (is_ours(folder) or foreign.holds_head(folder))
    return folder if holds else None


def _is_hub_reward_model(path: str) -> bool:
    """Whether a hub id is a reward model of ours or in a layout of `models.foreign`, by its small
    files."""
    from transformers.utils import cached_file

    quiet = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
        "_raise_exceptions_for_gated_repo": False,
    }
    try:
        if cached_file(path, META_FILE, **quiet) is not None:
            return True
        described = cached_file(path, "config.json", **quiet)
    except OSError:  # loading the model will say what is wrong with the id
        return False
    return described is not None and foreign.describes_reward_model(Path(described))


def check_same_head(folder: Path, head: Head) -> None:
    """That a saved head can be trained on as `head`; how much dropout it has is free.

    Raises:
        ValueError: it is of another form.
    """
    saved = head_of(folder)
    form = {"dropout", *(("hidden",) if head.kind == saved.kind == "linear" else ("bias",))}
    if saved.model_dump(exclude=form) != head.model_dump(exclude=form):
        unset = Head().model_dump()
        given = {k: v for k, v in saved.model_dump(exclude={"dropout"}).items() if v != unset[k]}
        raise ValueError(
            f"{folder} is a reward model with a different head from that of the config; set head: "
            f"{given or 'nothing (the default)'}, or new_head: true to start with a new one"
        )


@contextlib.contextmanager
def _as_config_error() -> Iterator[None]:
    """What is wrong with the model's files is the user's to mend, whoever finds it."""
    try:
        yield
    except (ValueError, SafetensorError) as error:
        raise ConfigError(str(error)) from None
