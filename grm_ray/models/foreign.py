"""Reward models that others trained, read as ours: backbone, head and scoring contract.

The GRM authors' layout ("sftreg"): a causal LM whose weight files also hold `v_head.summary.*`,
with the head's form in config.json (`vhead_layer_type`, `vhead_num_neurons`, `vhead_num_layers`).

Sequence classification with one label, as transformers writes it: the backbone and `score.weight`.
It has no language head.

Neither says how a conversation becomes tokens. Both read the whole of what the chat template
writes; the authors tokenise it as ordinary text, which puts special tokens (a BOS) before those
that the template wrote. A `scoring_contract.json` put beside the weights says otherwise.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from grm_ray.config.schema import Head, Model
from grm_ray.data.chat import FILE, ScoringContract
from grm_ray.models.backbone import load_causal_lm, load_tokenizer, unwrap
from grm_ray.models.heads import ScalarHead
from grm_ray.models.reward_model import RewardModel

HEADS = ("v_head.", "score.", "classifier.", "value_head.", "reward_head.", "regression_layer.")
# Hub ids, cache folders and copies of the authors' sequence classifiers, which their own code reads
# with a second BOS, too.
AUTHORS = re.compile(r"(^|/|--)Ray2333(/|--)|(^|/)GRM[-_][^/]*(rewardmodel-ft|distill)/*$")


@dataclass(frozen=True)
class Layout:
    """What a foreign folder holds."""

    head: Head
    tensors: dict[str, str]  # the checkpoint's name of a head tensor -> ours
    language_head: bool


def describe(folder: Path) -> Layout:
    """The head in `folder`, from its config and the headers of its weight files.

    Raises:
        ValueError: no reward head, one that this project cannot hold, or a tensor of it missing or
            left over.
    """
    config = _config(folder)
    shapes = _head_shapes(folder)
    if any(name.startswith("v_head.") for name in shapes):
        layout = _authors(folder, config, shapes)
    elif "score.weight" in shapes:
        layout = _classifier(folder, shapes)
    else:
        held = f"; it contains {sorted(shapes)}" if shapes else ""
        raise ValueError(
            f"{folder} contains no reward head that grm_ray can read: no grm_ray.json, no "
            f"v_head.summary.* and no score.weight{held}"
        )
    missing, left = set(layout.tensors) - set(shapes), set(shapes) - set(layout.tensors)
    if missing or left:
        raise ValueError(
            f"{folder}: the weights of its {layout.head.kind} reward head do not fit: missing "
            f"{sorted(missing)}, unexpected {sorted(left)}"
        )
    return layout


def holds_head(folder: Path) -> bool:
    """Whether a folder's weight files hold tensors of a reward head."""
    return bool(list(folder.glob("*.safetensors"))) and bool(_head_shapes(folder))


def describes_reward_model(config: Path) -> bool:
    """Whether a `config.json` is that of a model in one of these layouts."""
    try:
        described = dict(json.loads(config.read_text(encoding="utf-8")))
    except (TypeError, ValueError):
        return False
    kinds = described.get("architectures") or []
    return "vhead_layer_type" in described or any(
        str(kind).endswith("ForSequenceClassification") for kind in kinds
    )


def load(folder: Path, source: Model, dropout: float | None = None) -> RewardModel:
    """The reward model in `folder`, in a layout of `describe`.

    Args:
        source: dtype, adapter and checkpointing of its backbone.
        dropout: of the head; None: what the layout has.

    Raises:
        ValueError: a tensor of head or backbone is missing or left over, or the model is of a kind
            that cannot be scored here.
    """
    layout = describe(folder)
    lm = load_causal_lm(source, str(folder), layout.language_head, layout.tensors)
    if not layout.language_head:
        silence(lm)
    head = layout.head if dropout is None else layout.head.model_copy(update={"dropout": dropout})
    model = RewardModel(lm, head)
    tensors = {}
    for path in _weight_files(folder):
        with safe_open(path, "pt") as file:
            for name in set(file.keys()) & set(layout.tensors):
                tensors[layout.tensors[name]] = file.get_tensor(name)
    fill_head(model.head, tensors, str(folder))
    return model


def fill_head(head: ScalarHead, tensors: dict[str, torch.Tensor], origin: str) -> None:
    """Load a head from exactly its own tensors.

    Raises:
        ValueError: naming what is missing, left over or of another shape.
    """
    wanted = {name: list(tensor.shape) for name, tensor in head.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if found != wanted:
        missing, left = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        other = sorted(n for n in set(found) & set(wanted) if found[n] != wanted[n])
        raise ValueError(
            f"{origin}: the reward head's tensors do not fit: missing {missing}, unexpected "
            f"{left}, of a different shape {[f'{n} {found[n]}, not {wanted[n]}' for n in other]}"
        )
    head.load_state_dict(tensors)


def contract(folder: Path, origin: str, trust_remote_code: bool = False) -> ScoringContract:
    """How the reward model in `folder` reads conversations (see above).

    Args:
        origin: what the user wrote, a hub id perhaps: it tells the authors' models from others.

    Raises:
        ValueError: no chat template, or no length in the config.
    """
    if (folder / FILE).is_file():
        return ScoringContract.load(folder)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # each kind of model checks its values in a way of its own
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder}/config.json: cannot be used ({said})") from None
    text = config.get_text_config()
    length = getattr(text, "max_position_embeddings", None)
    if not length:
        raise ValueError(
            f"{folder}: config.json has no max_position_embeddings, so how many tokens the model "
            f"reads is unknown; put a {FILE} beside it"
        )
    ours = any(name.startswith("v_head.") for name in describe(folder).tensors)
    return ScoringContract.of_template(
        load_tokenizer(str(folder), trust_remote_code),
        max_length=length,
        special_tokens_twice=ours or bool(AUTHORS.search(origin)),
        # The authors pool by the attention mask, transformers by the pad token's id.
        passed_over_id=None if ours else text.pad_token_id,
    )


class NoLanguageHead(nn.Module):
    """In the place of a language head that a sequence classifier does not have."""

    @property
    def weight(self) -> torch.Tensor:
        raise ValueError(
            "this reward model was read from a sequence classifier, which has no language head: "
            "log-probs and a text-generation regulariser need one"
        )

    bias = weight

    def forward(self, *_: Any) -> torch.Tensor:
        return self.weight


def silence(lm: nn.Module) -> None:
    """Take the language head, of random weights, out of a classifier's backbone."""
    unwrap(lm).set_output_embeddings(NoLanguageHead())
    lm.config.tie_word_embeddings = False


def speaks(lm: nn.Module) -> bool:
    """Whether `lm` has a language head."""
    return not isinstance(unwrap(lm).get_output_embeddings(), NoLanguageHead)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"reward model folder {folder} has no config.json")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"reward model folder {folder} has no .safetensors file")
    return files


def _head_shapes(folder: Path) -> dict[str, list[int]]:
    """Every head tensor in the weight files, and its shape."""
    shapes = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - no dictionary
                    if name.startswith(HEADS):
                        shapes[name] = list(file.get_slice(name).get_shape())
        except Exception as error:
            raise ValueError(f"{path}: damaged ({error})") from None
    return shapes


def _authors(folder: Path, config: dict[str, Any], shapes: dict[str, list[int]]) -> Layout:
    kind = config.get("vhead_layer_type") or (
        "linear" if "v_head.summary.weight" in shapes else "mlp"
    )
    layers, outputs = config.get("vhead_num_layers", 1), config.get("vhead_num_output", 1)
    if kind not in ("linear", "mlp") or outputs != 1 or (kind == "mlp" and layers != 1):
        raise ValueError(
            f"{folder}: a head with vhead_layer_type {kind}, vhead_num_layers {layers} and "
            f"vhead_num_output {outputs} cannot be read; linear, and mlp with one hidden layer and "
            "one output, can"
        )
    if kind == "linear":
        head, numbers = Head(kind="linear", bias=True, dropout=0.1), {"": 0}
    else:
        hidden = config.get("vhead_num_neurons") or shapes.get("v_head.summary.0.weight", [1024])[0]
        head, numbers = Head(kind="mlp", hidden=hidden, dropout=0.1), {".0": 0, ".2": 2}
    tensors = {
        f"v_head.summary{number}.{leaf}": f"layers.{ours}.{leaf}"
        for number, ours in numbers.items()
        for leaf in ("weight", "bias")
    }
    return Layout(head, tensors, language_head=True)


def _classifier(folder: Path, shapes: dict[str, list[int]]) -> Layout:
    labels = shapes["score.weight"][0]
    if labels != 1:
        raise ValueError(
            f"{folder}: a classifier with {labels} labels is not a reward model, which has 1"
        )
    tensors = {"score.weight": "layers.0.weight"}
    bias = "score.bias" in shapes
    if bias:
        tensors["score.bias"] = "layers.0.bias"
    return Layout(Head(kind="linear", bias=bias), tensors, language_head=False)
