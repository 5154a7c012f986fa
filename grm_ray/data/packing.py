"""Which rows go together: token-budget micro-batches, and work split over ranks by tokens.

No Ray, no DeepSpeed: plain functions over lengths. No count needs to divide any other.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import torch


def micro_batches(lengths_B: Sequence[int], budget: int) -> list[list[int]]:
    """Row numbers grouped so that rows x longest <= `budget` padded tokens a group.

    Rows are sorted by length, so that a group holds rows of about one length and pads little.
    A row longer than the budget stands alone.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths_B)), key=lambda r: (-lengths_B[r], r)):
        group = groups[-1] if groups else None
        if group is None or (len(group) + 1) * lengths_B[group[0]] > budget:
            groups.append([row])
        else:
            group.append(row)
    return groups


def split_by_tokens(lengths_B: Sequence[int], ranks: int) -> list[list[int]]:
    """Row numbers for each rank, balanced by tokens (longest first to the lightest rank)."""
    heap = [(0, 0, rank) for rank in range(ranks)]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for row in sorted(range(len(lengths_B)), key=lambda r: (-lengths_B[r], r)):
        tokens, rows, rank = heapq.heappop(heap)
        shares[rank].append(row)
        heapq.heappush(heap, (tokens + lengths_B[row], rows + 1, rank))
    return [sorted(share) for share in shares]


def pad_right(rows: Sequence[np.ndarray], fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as `(input_ids_BL, lengths_B)`, padded on the right.

    With causal attention nothing to the right reaches a token, so right padding needs no mask and
    keeps attention on its fast path; positions count from 0 as they do for a row alone.
    """
    lengths_B = torch.tensor([len(row) for row in rows])
    input_ids_BL = torch.full((len(rows), int(lengths_B.max())), fill, dtype=torch.long)
    for i, row in enumerate(rows):
        input_ids_BL[i, : len(row)] = torch.from_numpy(np.asarray(row, dtype=np.int64))
    return input_ids_BL, lengths_B
