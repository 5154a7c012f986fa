"""Text-generation losses that keep a reward model's hidden states general (GRM).

Yang et al. 2024, "Regularizing Hidden States Enables Learning Generalizable Reward Model for
LLMs", section 3. A regulariser names what it needs by its parameters, and is called with keywords:

    chosen_logp_B, rejected_logp_B: summed log-probs of the answers' tokens (no prompt), in nats.
    chosen_ref_logp_B, rejected_ref_logp_B: the same under a frozen reference; no gradient.
    chosen_tokens_B, rejected_tokens_B: how many tokens those sums have, 1 or more.
    beta: inverse temperature of the implied policy (paper: 0.1).

All give `(B,)` fp32, in nats, not reduced. The `_per_token` forms are ours and not the paper's:
they divide each sum by its tokens, so that long answers do not outweigh short ones. A mean is
smaller than a sum by the answer's length: alpha (and beta) must be tuned anew.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from grm_ray.objectives.preference import bradley_terry, upcast


def sft(chosen_logp_B: torch.Tensor, beta: float) -> torch.Tensor:
    """GRM's SFT form: `-log sigma(beta * s)`, with s the *sum* of the answer's log-probs.

    Almost linear for real answers (`-beta * s`), so it grows with length: its gradient on s lies
    between `-beta / 2` and `-beta`. That is why alpha is small (0.01).
    """
    return F.softplus(-beta * upcast(chosen_logp_B))


def nll(chosen_logp_B: torch.Tensor) -> torch.Tensor:
    """GRM's SFT form without the log-sigmoid: `-s`, the chosen answer's cross-entropy, summed."""
    return -upcast(chosen_logp_B)


def dpo_noref(
    chosen_logp_B: torch.Tensor, rejected_logp_B: torch.Tensor, beta: float
) -> torch.Tensor:
    """GRM's DPO form without a reference: `-log sigma(beta * (s_chosen - s_rejected))`."""
    return bradley_terry(beta * upcast(chosen_logp_B), beta * upcast(rejected_logp_B))


def dpo(
    chosen_logp_B: torch.Tensor,
    rejected_logp_B: torch.Tensor,
    chosen_ref_logp_B: torch.Tensor,
    rejected_ref_logp_B: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """GRM's DPO form: `dpo_noref` on log-ratios to the reference, `s - s_ref`.

    Rafailov et al. 2023, equation 7. It starts at log 2, where the policy still is the reference.
    """
    return dpo_noref(
        upcast(chosen_logp_B) - upcast(chosen_ref_logp_B),
        upcast(rejected_logp_B) - upcast(rejected_ref_logp_B),
        beta,
    )


def sft_per_token(
    chosen_logp_B: torch.Tensor, chosen_tokens_B: torch.Tensor, beta: float
) -> torch.Tensor:
    """Ours, not the paper's: `sft` of the mean log-prob a token.

    Raises:
        ValueError: an answer without tokens.
    """
    return sft(_mean(chosen_logp_B, chosen_tokens_B), beta)


def nll_per_token(chosen_logp_B: torch.Tensor, chosen_tokens_B: torch.Tensor) -> torch.Tensor:
    """Ours, not the paper's: `nll` of the mean log-prob a token.

    Raises:
        ValueError: an answer without tokens.
    """
    return nll(_mean(chosen_logp_B, chosen_tokens_B))


def dpo_noref_per_token(
    chosen_logp_B: torch.Tensor,
    rejected_logp_B: torch.Tensor,
    chosen_tokens_B: torch.Tensor,
    rejected_tokens_B: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Ours, not the paper's: `dpo_noref` of the mean log-probs a token.

    Raises:
        ValueError: an answer without tokens.
    """
    return dpo_noref(
        _mean(chosen_logp_B, chosen_tokens_B), _mean(rejected_logp_B, rejected_tokens_B), beta
    )


def dpo_per_token(
    chosen_logp_B: torch.Tensor,
    rejected_logp_B: torch.Tensor,
    chosen_ref_logp_B: torch.Tensor,
    rejected_ref_logp_B: torch.Tensor,
    chosen_tokens_B: torch.Tensor,
    rejected_tokens_B: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Ours, not the paper's: `dpo` of the mean log-probs a token.

    Raises:
        ValueError: an answer without tokens.
    """
    return dpo(
        _mean(chosen_logp_B, chosen_tokens_B),
        _mean(rejected_logp_B, rejected_tokens_B),
        _mean(chosen_ref_logp_B, chosen_tokens_B),
        _mean(rejected_ref_logp_B, rejected_tokens_B),
        beta,
    )


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


def _mean(logp_B: torch.Tensor, tokens_B: torch.Tensor) -> torch.Tensor:
    if bool((tokens_B < 1).any()):
        row = int((tokens_B < 1).nonzero()[0])
        raise ValueError(f"row {row} has an answer without tokens: no mean of its log-probs")
    logp_B = upcast(logp_B)
    return logp_B / tokens_B.to(logp_B)
