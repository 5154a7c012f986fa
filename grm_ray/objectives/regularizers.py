"""Text-generation losses that keep a reward model's hidden states general (GRM).

Yang et al. 2024, "Regularizing Hidden States Enables Learning Generalizable Reward Model for
LLMs", section 3. One function a regulariser, all called as `f(chosen_logp_B, beta=..., **more)`:
one that compares with the rejected answer or a reference model takes those log-probs as keywords
(`rejected_logp_B`, `chosen_ref_logp_B`, `rejected_ref_logp_B`).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def sft(chosen_logp_B: torch.Tensor, beta: float) -> torch.Tensor:
    """GRM's SFT form: `-log sigma(beta * s)`, with s the *sum* of the answer's log-probs.

    Almost linear for real answers (`-beta * s`), so it grows with length: its gradient on s lies
    between `-beta / 2` and `-beta`. That is why alpha is small (0.01).

    Args:
        chosen_logp_B: summed log-probs of the chosen answers' tokens (no prompt), in nats.
        beta: inverse temperature of the implied policy (paper: 0.1).

    Returns:
        `(B,)` fp32, in nats, not reduced.
    """
    return F.softplus(-beta * chosen_logp_B.float())


def grm_loss(
    preference_B: torch.Tensor, regularizer_B: torch.Tensor | None, alpha: float
) -> torch.Tensor:
    """The whole loss: `(1 - alpha) * preference + alpha * regularizer`, one a pair.

    Args:
        preference_B: for instance `bradley_terry`.
        regularizer_B: for instance `sft`; may be None when alpha is 0.
        alpha: share of the regulariser, 0 to 1 (paper: 0.01). At 0 the preference loss comes back
            as it is, and nothing of the language head enters the graph.

    Raises:
        ValueError: alpha lies outside [0, 1], or is above 0 without a regulariser.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    if alpha == 0.0:
        return preference_B
    if regularizer_B is None:
        raise ValueError(f"alpha {alpha} needs a regularizer; without one, alpha must be 0")
    return (1.0 - alpha) * preference_B + alpha * regularizer_B
