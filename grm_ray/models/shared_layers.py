"""Models that have weights in common hold them once, and compute the layers below once.

Reward models trained with adapters on one backbone are alike wherever there was no adapter: their
embeddings, their lower layers (`model.lora.last_layers`), the matrices that no adapter touched. Of
K such models one backbone is in memory with K sets of adapted matrices, and a batch goes through
the common lower layers once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from grm_ray.data.packing import Packed, pack
from grm_ray.models.backbone import hidden_states, unwrap


class Trunk(nn.Module):
    """The first layers of several models, as one layer of each: computed once a batch."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        # Some models choose a layer's mask and positions by this.
        self.attention_type = getattr(layers[0], "attention_type", None)
        self._read: Packed | None = None
        self._hidden: torch.Tensor | None = None

    def forward(
        self, hidden: torch.Tensor, *positional: Any, packed: Packed | None = None, **named: Any
    ) -> torch.Tensor:
        """Hidden states after the last of the layers; `packed` is the batch they are known by."""
        if packed is None or packed is not self._read or self._hidden is None:
            for layer in self.layers:
                hidden = layer(hidden, *positional, packed=packed, **named)
            self._read, self._hidden = packed, hidden
        return self._hidden


def share_weights(lms: Sequence[nn.Module]) -> int:
    """Let every model after the first hold the first one's tensors wherever its own are equal.

    Returns:
        Bytes that were freed.
    """
    first = dict(lms[0].named_parameters(remove_duplicate=False))  # tied ones by all their names
    freed = 0
    for lm in lms[1:]:
        replaced: dict[int, nn.Parameter] = {}
        for name, own in list(lm.named_parameters(remove_duplicate=False)):
            common = first.get(name)
            if common is None or common is own or common.dtype != own.dtype:
                continue
            if common.shape == own.shape and torch.equal(common, own):
                place, _, leaf = name.rpartition(".")
                setattr(lm.get_submodule(place), leaf, common)
                replaced[id(own)] = own
        freed += sum(own.numel() * own.element_size() for own in replaced.values())
    return freed


def share_layers(lms: Sequence[nn.Module]) -> int:
    """Put the layers that all models have in common, from the first on, into one `Trunk`.

    For models in eval mode that are never trained again. Where hidden states would differ by one
    bit, or a model's layers cannot be put together, all stay as they are.

    Returns:
        How many layers are computed once.
    """
    stacks = [_layers(lm) for lm in lms]
    if len(lms) < 2 or any(stack is None for stack in stacks) or not _same_below(lms):
        return 0
    depth = 0
    for together in zip(*stacks, strict=False):
        if not all(_is_one(together[0], layer) for layer in together):
            break
        depth += 1
    kinds = {getattr(layer, "attention_type", None) for layer in stacks[0][:depth]}
    kinds |= set(getattr(unwrap(lms[0]).config, "layer_types", None) or [])
    if depth < 2 or len({str(kind) for kind in kinds if kind is not None}) > 1:
        return 0
    probe = pack([(np.arange(1, 9), [np.array([1, 2, 3]), np.array([4, 5])])])
    probe = probe.to(next(lms[0].parameters()).device)
    before = [hidden_states(lm, probe) for lm in lms]
    trunk = Trunk(stacks[0][:depth])
    for lm, stack in zip(lms, stacks, strict=True):
        _set_layers(lm, nn.ModuleList([trunk, *stack[depth:]]))
    try:
        after = [hidden_states(lm, probe) for lm in lms]
        same = all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    except Exception:  # noqa: BLE001 - whatever a model makes of a strange layer, it stays as it was
        same = False
    if not same:
        for lm, stack in zip(lms, stacks, strict=True):
            _set_layers(lm, stack)
    return depth if same else 0


def _backbone(lm: nn.Module) -> nn.Module:
    base = unwrap(lm)
    return getattr(base, base.base_model_prefix)


def _layers(lm: nn.Module) -> nn.ModuleList | None:
    layers = getattr(_backbone(lm), "layers", None)
    return layers if isinstance(layers, nn.ModuleList) else None


def _set_layers(lm: nn.Module, layers: nn.ModuleList) -> None:
    _backbone(lm).layers = layers


def _same_below(lms: Sequence[nn.Module]) -> bool:
    """Whether what comes before the layers is one: the embeddings."""
    first, *others = (unwrap(lm) for lm in lms)
    return all(
        type(lm) is type(first) and _is_one(first.get_input_embeddings(), lm.get_input_embeddings())
        for lm in others
    )


def _is_one(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules are of one class and hold the same tensors."""
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=False)
    counts = {len(list(module.parameters())) for module in (one, other)}
    return type(one) is type(other) and len(counts) == 1 and all(a[1] is b[1] for a, b in pairs)
