"""Folders on disk: a Hugging Face causal LM, plus the reward head and the scoring contract.

config.json, model*.safetensors, tokenizer files   the backbone with its language head
reward_head.safetensors                            the reward head
grm_ray.json                                       what the head is, and the fingerprint
scoring_contract.json                              how a conversation becomes tokens
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load_file, save_file
from torch import nn

from grm_ray.config.schema import Dtype, Head, Model
from grm_ray.data.chat import ScoringContract
from grm_ray.models.backbone import load_causal_lm, merged_weights, resolve_dtype, unwrap
from grm_ray.models.reward_model import RewardModel

HEAD_FILE = "reward_head.safetensors"
META_FILE = "grm_ray.json"


def save_causal_lm(lm: nn.Module, tokenizer: Any, folder: Path, card: str) -> None:
    """Write `lm` (adapter merged) and its tokenizer beside `folder`, then rename into place."""
    with _beside(folder) as fresh:
        _write_causal_lm(lm, tokenizer, fresh, card)


def save_reward_model(
    model: RewardModel,
    head: Head,
    tokenizer: Any,
    contract: ScoringContract,
    folder: Path,
    card: str,
) -> str:
    """Write a reward model to `folder`; returns its fingerprint."""
    with _beside(folder) as fresh:
        _write_causal_lm(model.lm, tokenizer, fresh, card)
        tensors = {k: v.detach().contiguous() for k, v in model.head.state_dict().items()}
        save_file(tensors, fresh / HEAD_FILE)
        contract.save(fresh)
        fingerprint = _fingerprint(fresh)
        meta = {"format": 1, "head": head.model_dump(), "fingerprint": fingerprint}
        (fresh / META_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return fingerprint


def load_reward_model(
    folder: str | Path, dtype: Dtype = "auto", trust_remote_code: bool = False
) -> tuple[RewardModel, ScoringContract, str]:
    """`(model in eval mode, contract, fingerprint)` of a folder that `save_reward_model` wrote.

    Raises:
        ValueError: no such folder, no reward head, tensors missing or left over.
    """
    folder = Path(folder)
    meta = check_reward_model(folder)
    contract = ScoringContract.load(folder)
    head = Head(**meta["head"])
    source = Model(path=str(folder), dtype=dtype, trust_remote_code=trust_remote_code)
    lm = load_causal_lm(source, path=str(folder))
    model = RewardModel(lm, head)
    tensors = load_file(folder / HEAD_FILE)
    expected = set(model.head.state_dict())
    if set(tensors) != expected:
        raise ValueError(
            f"{folder / HEAD_FILE}: holds {sorted(tensors)}, a {head.kind} head needs "
            f"{sorted(expected)}"
        )
    model.head.load_state_dict(tensors)
    model.head.to(getattr(torch, resolve_dtype(dtype)))
    return model.eval().requires_grad_(False), contract, meta["fingerprint"]


def check_reward_model(folder: Path) -> dict[str, Any]:
    """The folder's description, read without loading weights.

    Raises:
        ValueError: when the folder is not there or not a reward model of ours.
    """
    if not folder.is_dir():
        raise ValueError(f"reward model folder {folder} does not exist")
    for name in (META_FILE, HEAD_FILE, "config.json"):
        if not (folder / name).is_file():
            raise ValueError(f"reward model folder {folder} has no {name}")
    try:
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        Head(**meta["head"])
        return {"head": meta["head"], "fingerprint": str(meta["fingerprint"])}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / META_FILE}: damaged ({error})") from None


def _write_causal_lm(lm: nn.Module, tokenizer: Any, folder: Path, card: str) -> None:
    from huggingface_hub import save_torch_state_dict

    base = unwrap(lm)
    base.config.save_pretrained(folder)
    if getattr(base, "generation_config", None) is not None:
        base.generation_config.save_pretrained(folder)
    weights = {name: _of_its_own(weight) for name, weight in merged_weights(lm)}
    save_torch_state_dict(weights, folder, metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _of_its_own(weight: torch.Tensor) -> torch.Tensor:
    """`weight` on the CPU in memory that holds nothing else.

    ZeRO makes the weights that it trains views of one flat buffer, and such are not saved.
    """
    weight = weight.contiguous().cpu()
    alone = weight.untyped_storage().nbytes() == weight.nbytes
    return weight if alone else weight.clone()


def _fingerprint(folder: Path) -> str:
    digest = xxhash.xxh3_128()
    for path in sorted([*folder.glob("*.safetensors"), folder / "scoring_contract.json"]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


class _beside:
    """A fresh folder next to `folder` that takes its place only when all went well."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fresh = folder.with_name(folder.name + ".part")

    def __enter__(self) -> Path:
        shutil.rmtree(self._fresh, ignore_errors=True)
        self._fresh.mkdir(parents=True)
        return self._fresh

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            shutil.rmtree(self._fresh, ignore_errors=True)
            return
        if self._folder.exists():
            old = self._folder.with_name(self._folder.name + ".old")
            shutil.rmtree(old, ignore_errors=True)
            self._folder.rename(old)
            self._fresh.rename(self._folder)
            shutil.rmtree(old)
        else:
            self._fresh.rename(self._folder)


def model_identity(path: str) -> str:
    """Which weights a path holds: a hash over config and weight files, or the hub id itself."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    digest = xxhash.xxh3_128()
    for file in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        digest.update(file.read_bytes() if file.suffix == ".json" else _digest_of(file))
    return digest.hexdigest()


def _digest_of(path: Path) -> bytes:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.digest()
