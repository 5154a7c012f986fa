"""Advantages of flat rows, and their whitening over several ranks."""

from __future__ import annotations

import math

import torch

from grm_ray.objectives.rows import row_lengths


@torch.no_grad()
def gae(
    rewards_T: torch.Tensor,
    values_T: torch.Tensor,
    offsets_B1: torch.Tensor,
    gamma: float,
    lam: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, equations 11, 12 and 16).

    `delta_t = r_t + gamma * V_{t+1} - V_t` and `A_t = delta_t + gamma * lam * A_{t+1}`; after the
    last token of a row both V and A are 0.

    Args:
        rewards_T: reward for choosing token t.
        values_T: value of the state in which token t was chosen.
        offsets_B1: row i is `[offsets[i]:offsets[i + 1]]`; empty rows are allowed.
        gamma: discount a token, 0 to 1.
        lam: 0: the one-step error; 1: the whole return minus the value.

    Returns:
        `(advantages_T, returns_T)` fp32 without gradient, with returns = advantages + values.

    Raises:
        ValueError: rewards, values and offsets do not fit together.
    """
    if rewards_T.shape != values_T.shape:
        raise ValueError(f"{len(rewards_T)} rewards, but {len(values_T)} values")
    lengths_B = row_lengths(offsets_B1, len(rewards_T)).to(values_T.device)
    rewards_T, values_T = rewards_T.float(), values_T.float()
    if not len(rewards_T):
        return rewards_T, values_T
    # Zeros to the right of each row are the terminal V and A: the loop needs no mask of its own.
    positions_L = torch.arange(int(lengths_B.max()), device=values_T.device)
    inside_BL = positions_L < lengths_B[:, None]
    values_BL = values_T.new_zeros(inside_BL.shape)
    values_BL[inside_BL] = values_T
    advantages_BL = torch.zeros_like(values_BL)
    advantages_BL[inside_BL] = rewards_T
    advantages_BL[:, :-1] += gamma * values_BL[:, 1:]
    advantages_BL -= values_BL  # the deltas, which the loop turns into advantages
    for t in range(len(positions_L) - 2, -1, -1):
        advantages_BL[:, t] += gamma * lam * advantages_BL[:, t + 1]
    advantages_T = advantages_BL[inside_BL]
    return advantages_T, advantages_T + values_T


def masked_moments(
    x_T: torch.Tensor, mask_T: torch.Tensor | None = None
) -> tuple[float, float, float]:
    """(count, sum, sum of squares) of this rank's share, in fp64.

    Sums of the three over all ranks give the global moments, whatever the split:
    `mean = sum / count`, `var = sumsq / count - mean ** 2`.

    Args:
        x_T: values; an empty share is allowed.
        mask_T: where it is false (or 0), a value does not count; None: all count.
    """
    x_T = x_T.detach() if mask_T is None else x_T.detach()[mask_T.bool()]
    x_T = x_T.double()
    return float(x_T.numel()), float(x_T.sum()), float(x_T.square().sum())


def whiten(x_T: torch.Tensor, mean: float, var: float) -> torch.Tensor:
    """`(x - mean) / sqrt(var + 1e-8)`.

    Args:
        mean, var: *global* moments (`masked_moments`, summed over ranks): with a rank's own, the
            gradient would depend on which rows it was given.
    """
    # var is a difference of sums and may round below 0; inside the root, the constant keeps equal
    # values from being blown up.
    return (x_T - mean) / math.sqrt(max(var, 0.0) + 1e-8)
