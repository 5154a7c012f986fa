"""What a scorer takes: the reward models that it holds, and what they have in common once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from grm_ray.config.schema import Dtype, Head, Model, Workers
from grm_ray.drivers.footprint.role import KEPT_HEAP, Role, dtype_of, in_words
from grm_ray.models import footprint
from grm_ray.models.checkpoint import ADAPTER, check_reward_model
from grm_ray.models.footprint import Pass, Size, Unknown


def scorer_of(
    workers: Workers,
    paths: Sequence[str],
    dtype: Dtype,
    budget: int,
    longest: int | None,
    trust: bool,
) -> Role:
    """A scorer that holds the reward models at `paths`.

    Args:
        budget: tokens of one pass through a model.
        longest: tokens of a row at most; None: as long as the models read.
    """
    role = Role("scorer", workers, dtype_of(dtype, workers))
    held: dict[str, float] = {}
    passes: list[Pass] = []
    whole = 0.0
    for path in paths:
        try:
            model, base = _saved(path, role.dtype, trust)
        except Unknown as error:
            role.missing.append(str(error))
            continue
        size = Size.of(model)
        whole = max(whole, size.bytes)
        own = size.bytes
        if base is not None and base[0] in held:  # what no adapter touched is held once
            own = base[1]
        held[path if base is None or base[0] in held else base[0]] = own
        role.about.append(f"reward model {path}: {in_words(size.total)} parameters")
        most = longest or _reads(path)
        try:
            groups = footprint.groups_of(max(budget, most), most, 4)
            passes.append(footprint.scoring_pass(model, groups))
        except Unknown as error:
            role.missing.append(f"activations: {error}")
    # Weights that are computed with as they were saved stay in their file's pages, which all
    # processes of a machine have in common.
    mapped = not workers.gpus and all(_saved_as(path) == role.dtype for path in paths)
    weights = sum(held.values())
    role.parts["shared weights" if mapped else "weights"] = (
        weights / workers.count if mapped else weights
    )
    heap = 1.0 if workers.gpus else KEPT_HEAP
    role.parts["activations"] = heap * max((p.peak for p in passes), default=0)
    # Models come one by one; the last is whole until what it shares is known.
    if not mapped:
        role.loading = weights + (whole if len(held) > 1 else 0.0)
    if passes and not role.missing:
        role.flops["score"] = sum(p.flops / p.tokens for p in passes)
    return role


def _saved_as(path: str) -> str | None:
    """The dtype that a folder's config says its weights have."""
    try:
        said = json.loads((Path(path).expanduser() / "config.json").read_text("utf-8"))
        return str(said.get("dtype", said.get("torch_dtype")))
    except (OSError, ValueError):
        return None


def _reads(path: str) -> int:
    """Tokens that a saved reward model reads at most."""
    try:
        contract = json.loads(
            (Path(path).expanduser() / "scoring_contract.json").read_text("utf-8")
        )
        return int(contract["max_length"])
    except (OSError, KeyError, ValueError):
        return 0


def _saved(path: str, dtype: str, trust: bool) -> tuple[Any, tuple[str, float] | None]:
    """A saved reward model without data; and where it was trained with an adapter, what it was
    trained from, and the bytes of the matrices that the adapter changed."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise Unknown(f"{path}: its config cannot be read offline")
    try:
        meta = check_reward_model(folder)
    except ValueError as error:
        raise Unknown(str(error)) from None
    source = Model(path=str(folder), trust_remote_code=trust)
    model = footprint.build_reward_model(
        folder, source, Head(**meta["head"]), getattr(torch, dtype), meta["language_head"]
    )
    try:
        adapter = json.loads((folder / ADAPTER / "adapter_config.json").read_text("utf-8"))
        targets, layers = set(adapter["target_modules"]), adapter.get("layers_to_transform")
        changed = 0
        for name, p in model.lm.named_parameters():
            *above, module, _ = name.split(".")
            numbers = [int(n) for n in above if n.isdigit()]
            if module in targets and (layers is None or set(numbers) & set(layers)):
                changed += p.nbytes
        return model, (adapter["base_model_name_or_path"], float(changed))
    except (OSError, KeyError, ValueError):
        return model, None
