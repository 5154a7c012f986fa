"""Losses on pairs of rewards. All take `(chosen_B, rejected_B)` and give one loss a pair."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def bradley_terry(chosen_B: torch.Tensor, rejected_B: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of the preference: `-log sigma(chosen - rejected)`.

    Bradley and Terry 1952; as a reward-model loss: Ouyang et al. 2022, equation 1.

    Args:
        chosen_B: rewards of the preferred answers, any float dtype.
        rejected_B: rewards of the others.

    Returns:
        `(B,)` fp32, in nats, not reduced.
    """
    # softplus(-z), because log(sigma(z)) underflows to -inf where the loss matters most.
    return F.softplus(rejected_B.float() - chosen_B.float())
