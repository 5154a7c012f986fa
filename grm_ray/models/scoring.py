"""Scores of token rows: no prompt twice, no padding, no language head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from grm_ray.data.packing import group_tokens, micro_batches, pack, share_prompts
from grm_ray.models.reward_model import RewardModel

Row = tuple[np.ndarray, np.ndarray]


def score_rows(
    model: RewardModel,
    rows: Sequence[Row],
    budget: int,
    device: torch.device | str = "cpu",
    by_member: bool = False,
) -> np.ndarray:
    """One raw score a row, fp32, in the rows' order.

    Args:
        model: in eval mode, on `device`.
        rows: tokens of (prompt, answer), closed by the scoring contract; rows of equal prompts
            share it, wherever they stand.
        budget: tokens of one pass through the backbone.
        by_member: `(B, K)`, the scores of the K members of the head's ensemble, in one pass.
    """
    (scores,) = score_rows_by_all([model], rows, budget, device)
    return scores if by_member else scores.mean(axis=1)


@torch.inference_mode()
def score_rows_by_all(
    models: Sequence[RewardModel],
    rows: Sequence[Row],
    budget: int,
    device: torch.device | str = "cpu",
) -> list[np.ndarray]:
    """`(B, K)` of each model, batch by batch: models that share layers compute them once."""
    scores = [np.zeros((len(rows), model.head.members), np.float32) for model in models]
    numbers = share_prompts([p for p, _ in rows], [len(a) for _, a in rows], budget)
    groups = [(rows[group[0]][0], [rows[i][1] for i in group]) for group in numbers]
    for batch in micro_batches([group_tokens(group) for group in groups], budget):
        packed = pack([groups[g] for g in batch]).to(device)
        places = [i for g in batch for i in numbers[g]]
        for model, found in zip(models, scores, strict=True):
            outputs, _ = model(packed)
            found[places] = model.head.member_scores(outputs).float().numpy(force=True)
    return scores
