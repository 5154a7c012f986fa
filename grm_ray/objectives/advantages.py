"""Advantages: with a critic (one a token) or against the prompt's other answers (one a row)."""

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


@torch.no_grad()
def returns_to_go(
    rewards_T: torch.Tensor, offsets_B1: torch.Tensor, gamma: float = 1.0
) -> torch.Tensor:
    """`G_t = r_t + gamma * G_{t+1}` within each row: REINFORCE's weight of a token, `(T,)` fp32.

    Whitened over the global batch, it is the advantage of REINFORCE++ (Hu 2025, arXiv 2501.03262).
    """
    return gae(rewards_T, torch.zeros_like(rewards_T), offsets_B1, gamma, 1.0)[0]


@torch.no_grad()
def leave_one_out(rewards_B: torch.Tensor, prompts_B: torch.Tensor) -> torch.Tensor:
    """RLOO: a reward minus the mean reward of the prompt's *other* answers.

    `A_i = r_i - 1 / (k - 1) * sum_{j != i} r_j` (Ahmadian et al. 2024, arXiv 2402.14740).

    Args:
        rewards_B: one reward a row, the KL penalty included where it belongs to the reward.
        prompts_B: rows with equal numbers answer the same prompt, in any order.

    Returns:
        `(B,)` fp32.

    Raises:
        ValueError: a prompt with one answer, which has no others.
    """
    mean_B, count_B, _ = _of_prompts(rewards_B, prompts_B)
    if bool((count_B == 1).any()):
        row = int((count_B == 1).nonzero()[0])
        raise ValueError(f"row {row} is its prompt's only answer: leave-one-out needs two or more")
    # r - (k mean - r) / (k - 1) = k / (k - 1) * (r - mean)
    return count_B / (count_B - 1) * (rewards_B.float() - mean_B)


@torch.no_grad()
def group_relative(
    rewards_B: torch.Tensor, prompts_B: torch.Tensor, scale: bool, eps: float = 1e-4
) -> torch.Tensor:
    """A reward minus the mean reward of the prompt's answers, this one included.

    Args:
        rewards_B, prompts_B: as for `leave_one_out`.
        scale: also over the group's deviation (with k - 1): `A_i = (r_i - mean) / (std + eps)`,
            GRPO (Shao et al. 2024, arXiv 2402.03300). Without: Dr. GRPO (Liu et al. 2025, arXiv
            2503.20783), and the baseline of REINFORCE++ with baseline.
        eps: keeps groups of nearly equal rewards from being blown up; equal ones give 0.

    Returns:
        `(B,)` fp32; 0 for a prompt's only answer.
    """
    mean_B, _, std_B = _of_prompts(rewards_B, prompts_B)
    centred_B = rewards_B.float() - mean_B
    return centred_B / (std_B + eps) if scale else centred_B


def _of_prompts(
    rewards_B: torch.Tensor, prompts_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each row's prompt: mean reward, number of answers, their standard deviation (k - 1)."""
    if rewards_B.shape != prompts_B.shape:
        raise ValueError(f"{len(rewards_B)} rewards, but {len(prompts_B)} prompt numbers")
    _, group_B = torch.unique(prompts_B, return_inverse=True)
    rewards_B = rewards_B.double()
    zeros_P = rewards_B.new_zeros(int(group_B.max()) + 1 if len(group_B) else 0)
    count_P = zeros_P.index_add(0, group_B, torch.ones_like(rewards_B))
    mean_P = zeros_P.index_add(0, group_B, rewards_B) / count_P
    squared_P = zeros_P.index_add(0, group_B, (rewards_B - mean_P[group_B]).square())
    std_P = (squared_P / (count_P - 1).clamp_min(1)).sqrt()
    return mean_P[group_B].float(), count_P[group_B].float(), std_P[group_B].float()


def moments(x_T: torch.Tensor) -> tuple[float, float, float]:
    """(count, sum, sum of squares) of this rank's share, in fp64.

    Sums of the three over all ranks give the global moments, whatever the split:
    `mean = sum / count`, `var = sumsq / count - mean ** 2`.

    Args:
        x_T: values; an empty share is allowed.
    """
    x_T = x_T.detach().double()
    return float(x_T.numel()), float(x_T.sum()), float(x_T.square().sum())


def whiten(x_T: torch.Tensor, mean: float, var: float) -> torch.Tensor:
    """`(x - mean) / sqrt(var + 1e-8)`.

    Args:
        mean, var: *global* moments (`moments`, summed over ranks): with a rank's own, the
            gradient would depend on which rows it was given.
    """
    # var is a difference of sums and may round below 0; inside the root, the constant keeps equal
    # values from being blown up.
    return (x_T - mean) / math.sqrt(max(var, 0.0) + 1e-8)
