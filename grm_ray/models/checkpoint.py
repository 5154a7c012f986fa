"""Folders on disk: a Hugging Face causal LM, plus the reward head and the scoring contract.

config.json, model*.safetensors, tokenizer files   the backbone with its language head
reward_head.safetensors                            the reward head
grm_ray.json                                       what the head is, and the fingerprint
scoring_contract.json                              how a conversation becomes tokens
adapter/                                           the LoRA adapter alone, for PEFT (on request)

The weights beside `config.json` are always merged and complete: they are what scorers load, and
`adapter/` is extra. Reward models that others trained are read too (`models.foreign`).
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load_file, save_file
from torch import nn

from grm_ray.config.schema import Dtype, Head, Model
from grm_ray.data.chat import FILE as CONTRACT_FILE
from grm_ray.data.chat import ScoringContract
from grm_ray.models import foreign
from grm_ray.models.backbone import (
    is_hub_id,
    is_lora,
    load_causal_lm,
    merged_weights,
    refuse_pickles,
    resolve_dtype,
    unwrap,
)
from grm_ray.models.reward_model import RewardModel

# Files of these kinds decide what a model computes; a card or a log does not.
_DECISIVE = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".py"}
HEAD_FILE = "reward_head.safetensors"
META_FILE = "grm_ray.json"
ADAPTER = "adapter"
FORMAT = 1


def save_causal_lm(lm: nn.Module, tokenizer: Any, folder: Path, card: str) -> None:
    """Write `lm` (adapter merged) and its tokenizer beside `folder`, then rename into place."""
    with beside(folder) as fresh:
        _write_causal_lm(lm, tokenizer, fresh, card)


def save_reward_model(
    model: RewardModel,
    head: Head,
    tokenizer: Any,
    contract: ScoringContract,
    folder: Path,
    card: str,
    adapter: bool = False,
) -> str:
    """Write a reward model to `folder`; returns its fingerprint.

    Args:
        adapter: write the LoRA adapter beside the merged weights too.

    Raises:
        ValueError: an adapter is wanted of a model that has none.
    """
    if adapter and not is_lora(model.lm):
        raise ValueError("there is no adapter to save: all weights of the model were trained")
    with beside(folder) as fresh:
        _write_causal_lm(model.lm, tokenizer, fresh, card)
        save_head(model.head, fresh)
        contract.save(fresh)
        if adapter:
            _write_adapter(model.lm, fresh / ADAPTER)
        fingerprint = _fingerprint(fresh)
        meta = {
            "format": FORMAT,
            "head": head.model_dump(),
            "language_head": foreign.speaks(model.lm),
            "fingerprint": fingerprint,
        }
        (fresh / META_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return fingerprint


def save_head(head: nn.Module, folder: Path) -> None:
    """Write the reward head's tensors to `folder`."""
    tensors = {name: of_its_own(tensor) for name, tensor in head.state_dict().items()}
    save_file(tensors, folder / HEAD_FILE)


def load_reward_model(
    path: str | Path, dtype: Dtype = "auto", trust_remote_code: bool = False
) -> tuple[RewardModel, ScoringContract, str]:
    """`(model in eval mode, contract, fingerprint)` of a reward model.

    Args:
        path: a folder that `save_reward_model` wrote, or a folder or hub id in one of the layouts
            of `models.foreign`.

    Raises:
        ValueError: no such folder, no reward head, tensors missing or left over, a folder of ours
            that is not as it was written.
    """
    folder = local_folder(path)
    meta = check_reward_model(folder)
    contract = reward_contract(folder, trust_remote_code, origin=str(path))
    source = Model(path=str(folder), dtype=dtype, trust_remote_code=trust_remote_code)
    model = read_reward_model(folder, source)
    return model.eval().requires_grad_(False), contract, meta["fingerprint"]


def read_reward_model(folder: Path, source: Model, dropout: float | None = None) -> RewardModel:
    """The reward model in `folder`, head included, as `source` wants it: dtype, adapter.

    Args:
        dropout: of the head; None: what it was saved with.

    Raises:
        ValueError: tensors missing or left over, or a folder of ours that is not as it was written.
    """
    meta = check_reward_model(folder)
    if is_ours(folder) and not is_whole(folder, meta):
        raise ValueError(
            f"{folder}: weights and scoring contract do not match the fingerprint in {META_FILE}: "
            "the folder was changed or not copied completely; copy it again"
        )
    if not is_ours(folder):
        model = foreign.load(folder, source, dropout)
    else:
        head = Head(**meta["head"])
        if dropout is not None:
            head = head.model_copy(update={"dropout": dropout})
        lm = load_causal_lm(source, str(folder), meta["language_head"])
        if not meta["language_head"]:
            foreign.silence(lm)
        model = RewardModel(lm, head)
        foreign.fill_head(model.head, load_file(folder / HEAD_FILE), str(folder / HEAD_FILE))
    model.head.to(getattr(torch, resolve_dtype(source.dtype)))
    return model


def reward_contract(
    path: str | Path, trust_remote_code: bool = False, origin: str | None = None
) -> ScoringContract:
    """How the reward model in `path` reads conversations; no weights are read.

    Raises:
        ValueError: no contract in a folder of ours, or none can be made of a foreign tokenizer.
    """
    folder = local_folder(path)
    if is_ours(folder):
        return ScoringContract.load(folder)
    return foreign.contract(folder, origin or str(path), trust_remote_code)


def check_reward_model(path: str | Path) -> dict[str, Any]:
    """`head` (as a dict), `language_head` and `fingerprint`; the model is not built.

    The fingerprint of a foreign folder is a hash of its weight files; ours is written down.

    Raises:
        ValueError: when the folder is not there or holds no reward model.
    """
    folder = local_folder(path)
    if is_ours(folder):
        return _described(folder)
    layout = foreign.describe(folder)
    return {
        "head": layout.head.model_dump(),
        "language_head": layout.language_head,
        "fingerprint": model_identity(str(folder)),
    }


def _described(folder: Path) -> dict[str, Any]:
    """What `grm_ray.json` says."""
    for name in (META_FILE, HEAD_FILE, CONTRACT_FILE, "config.json"):
        if not (folder / name).is_file():
            raise ValueError(f"reward model folder {folder} has no {name}")
    try:
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        if meta.get("format", FORMAT) != FORMAT:
            raise ValueError(
                f"format {meta['format']} is not known to this grm_ray; it was written by a newer "
                "one"
            )
        Head(**meta["head"])
        return {
            "head": meta["head"],
            "language_head": bool(meta.get("language_head", True)),
            "fingerprint": str(meta["fingerprint"]),
        }
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / META_FILE}: damaged ({error})") from None


def head_of(folder: Path) -> Head:
    """What the reward head of a folder is; no weights are read.

    Raises:
        ValueError: when the folder holds no reward model.
    """
    return Head(**_described(folder)["head"]) if is_ours(folder) else foreign.describe(folder).head


def is_ours(folder: Path) -> bool:
    """Whether `save_reward_model` wrote `folder` (or a part of it is left)."""
    return (folder / META_FILE).is_file() or (folder / HEAD_FILE).is_file()


def local_folder(path: str | Path) -> Path:
    """The folder itself, or a hub id's snapshot in the cache, downloaded where it is not there yet.

    Raises:
        ValueError: no such folder, or the hub does not give it.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        refuse_pickles(folder)
        return folder
    if not is_hub_id(str(path)):
        raise ValueError(f"reward model folder {path} does not exist")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py"]
    try:
        return Path(snapshot_download(str(path), allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(
            f"reward model {path}: no such local folder, and the model hub did not provide it "
            f"({said})"
        ) from None


def _write_causal_lm(lm: nn.Module, tokenizer: Any, folder: Path, card: str) -> None:
    from huggingface_hub import save_torch_state_dict

    base = unwrap(lm)
    base.config.save_pretrained(folder)
    if getattr(base, "generation_config", None) is not None:
        base.generation_config.save_pretrained(folder)
    weights = {name: of_its_own(weight) for name, weight in merged_weights(lm)}
    save_torch_state_dict(weights, folder, metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_adapter(lm: nn.Module, folder: Path) -> None:
    """The adapter as PEFT reads it: `PeftModel.from_pretrained(base, folder)`."""
    from peft import get_peft_model_state_dict

    config = copy.deepcopy(lm.peft_config["default"])
    config.inference_mode = True
    config.save_pretrained(folder)
    # No embedding was trained, and looking for one would ask the model hub about the base.
    tensors = get_peft_model_state_dict(lm, save_embedding_layers=False)
    save_file(
        {name: of_its_own(tensor) for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )


def of_its_own(weight: torch.Tensor) -> torch.Tensor:
    """`weight` on the CPU in memory that holds nothing else.

    ZeRO makes the weights that it trains views of one flat buffer, and such are not saved.
    """
    weight = weight.detach().contiguous().cpu()
    alone = weight.untyped_storage().nbytes() == weight.nbytes
    return weight if alone else weight.clone()


def is_whole(folder: Path, meta: dict[str, Any]) -> bool:
    """Whether weights and contract of a folder of ours are those that were saved."""
    try:
        return _fingerprint(folder) == meta["fingerprint"]
    except OSError:  # a link to nowhere, a folder in a file's place
        return False


def _fingerprint(folder: Path) -> str:
    digest = xxhash.xxh3_128()
    for path in sorted([*folder.glob("*.safetensors"), folder / CONTRACT_FILE]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


class beside:
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
    """Which model a path holds: a hash over its files (weights, config, tokenizer, chat template,
    scoring contract), or the hub id itself."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path
    digest = xxhash.xxh3_128()
    for file in sorted(f for f in folder.iterdir() if f.suffix in _DECISIVE and f.is_file()):
        digest.update(file.name.encode())
        digest.update(_digest_of(file))
    return digest.hexdigest()


def _digest_of(path: Path) -> bytes:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.digest()
