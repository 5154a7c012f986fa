"""Attention over packed sequences, for every transformers model with pluggable attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface

from grm_ray.data.packing import Packed

NAME = "grm_ray_packed"


def packed_attention(
    module: nn.Module,
    query_1QTD: torch.Tensor,
    key_1KTD: torch.Tensor,
    value_1KTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed: Packed | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Each answer sees its prompt and itself; each prompt sees itself. All of it is causal.

    One call per answer: a prompt and its first answer are one text; further answers branch off the
    prompt, and further prompts off the start that all of them share. A mask over the whole
    sequence would take T^2 memory and the slow path.

    Args:
        query_1QTD: one sequence, Q query heads; keys and values have K heads, K dividing Q.
        packed: the sequence's layout, handed through the model's forward.
        sliding_window: a token sees this many positions, its own included.

    Returns:
        `(1, T, Q, D)`, and None for the weights.
    """
    if packed is None:
        raise ValueError(f"attention '{NAME}' needs `packed=` in the model's forward")
    for name in ("softcap", "s_aux"):
        if other.get(name) is not None:
            raise ValueError(f"attention with {name} is not supported on packed sequences")
    repeats = query_1QTD.shape[1] // key_1KTD.shape[1]
    if repeats > 1:
        key_1KTD = key_1KTD.repeat_interleave(repeats, 1)
        value_1KTD = value_1KTD.repeat_interleave(repeats, 1)
    pieces = []
    for (first, branch), (start, end) in zip(packed.prompts, packed.answers, strict=True):
        follows = start == branch  # the first answer continues its prompt
        query = query_1QTD[:, :, first if follows else start : end]
        spans = [(first, end)] if follows else [(first, branch), (start, end)]
        if first > 0 and packed.shared:
            spans = [(0, packed.shared), *spans]
        key, value = (
            torch.cat([x[:, :, a:b] for a, b in spans], 2) if len(spans) > 1 else x[:, :, first:end]
            for x in (key_1KTD, value_1KTD)
        )
        windowed = sliding_window is not None and key.shape[2] > sliding_window
        plain = len(spans) == 1 and not windowed  # one text from its beginning needs no mask
        pieces.append(
            F.scaled_dot_product_attention(
                query,
                key,
                value,
                None
                if plain
                else _causal(query, key.shape[2], sliding_window if windowed else None),
                dropout_p=dropout,
                is_causal=plain,
                scale=scaling,
            )
        )
    return torch.cat(pieces, 2).transpose(1, 2), None


def _causal(query: torch.Tensor, keys: int, window: int | None) -> torch.Tensor:
    """`(queries, keys)`: True where the last `queries` of `keys` positions may look."""
    queries = query.shape[2]
    mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    return mask if window is None else mask.triu(keys - queries - window + 1)


# Without a mask function of this name transformers builds no mask of its own.
AttentionInterface.register(NAME, packed_attention)
