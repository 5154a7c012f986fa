"""Shaping of rewards `(B,)` against the rewards `(B, M)` of reference answers to the same prompts.

The references are M answers a prompt, usually of the policy that training starts from, scored by
the reward model that scores the rows. So a constant that a reward model adds to all answers to a
prompt, which preferences leave free, cancels. Where the reward model changes, the references must
be scored again. fp32, or fp64 where the rewards are.
"""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch.nn import functional as F

from grm_ray.objectives.preference import upcast


def centred(rewards_B: torch.Tensor, references_BM: torch.Tensor) -> torch.Tensor:
    """`r - mean_m r_ref`, in units of reward: worth logging beside a bounded reward.

    Raises:
        ValueError: a row without references, or a reference that is not finite.
    """
    return _differences(rewards_B, references_BM).mean(dim=1)


def par(rewards_B: torch.Tensor, references_BM: torch.Tensor, slope: float = 1.0) -> torch.Tensor:
    """`(1/M) sum_m sigma(slope * (r - r_ref))`, in (0, 1): preference as reward.

    Fu et al. 2025, PAR (arXiv 2502.18770). Under Bradley-Terry and slope 1 it is the chance that
    the answer beats a reference. Bounded, and flat for very good answers, on purpose: see
    `saturation`.

    Args:
        slope: in 1 / units of reward, above 0 (paper: 1; 2 and 3 as variants).

    Raises:
        ValueError: `slope` is not above 0, a row without references, or a reference that is not
            finite.
    """
    if not slope > 0.0:
        raise ValueError(f"the slope must be above 0, not {slope}")
    return torch.sigmoid(slope * _differences(rewards_B, references_BM)).mean(dim=1)


def centred_tanh(rewards_B: torch.Tensor, references_BM: torch.Tensor) -> torch.Tensor:
    """`(1/M) sum_m tanh(r - r_ref)`, in (-1, 1); Fu et al. 2025 compare it to PAR.

    As `tanh(x) = 2 sigma(2x) - 1` this is PAR with slope 2, on another scale.

    Raises:
        ValueError: a row without references, or a reference that is not finite.
    """
    return torch.tanh(_differences(rewards_B, references_BM)).mean(dim=1)


def lsc(
    rewards_B: torch.Tensor,
    references_BM: torch.Tensor,
    quantile: float = 0.85,
    empirical: bool = False,
    floor: float | None = None,
) -> torch.Tensor:
    """`log sigma(r - r_ref)`, with a quantile of the row's references as r_ref; 0 or less.

    Wang et al. 2024, "Transforming and Combining Rewards for Aligning Large Language Models"
    (arXiv 2402.00742), log-sigmoid-centred: the log-chance that the answer is good, where good
    means better than the reference. Linear for bad answers, flat for good ones.

    Args:
        quantile, empirical: as in `quantile_reference`.
        floor: the least reward, in nats, below 0; None: no bound.

    Raises:
        ValueError: a floor or quantile out of range, a row without references, or a reference
            that is not finite.
    """
    if floor is not None and not floor < 0.0:
        raise ValueError(f"the floor must be below 0, not {floor}")
    reference_B = quantile_reference(references_BM, quantile, empirical)
    values_B = _log_sigmoid(centred(rewards_B, reference_B[:, None]))
    return values_B if floor is None else values_B.clamp(min=floor)


def quantile_reference(
    references_BM: torch.Tensor, quantile: float = 0.85, empirical: bool = False
) -> torch.Tensor:
    """What an answer must reach to be called good `(B,)`: a quantile of the row's references.

    Args:
        quantile: above 0, below 1.
        empirical: False: of a normal distribution with the references' mean and sample standard
            deviation, `mean + z std` (z is 1.036433 for 0.85), as in the code of PAR, steady for
            few references; True: of the references themselves, interpolated.

    Raises:
        ValueError: `quantile` out of range, a row without references, or a reference that is not
            finite.
    """
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"a quantile must be above 0 and below 1, not {quantile}")
    references_BM = _checked(references_BM)
    if empirical:
        return torch.quantile(references_BM, quantile, dim=1)
    mean_B = references_BM.mean(dim=1)
    if references_BM.shape[1] == 1:
        return mean_B  # one reference has no spread: it is the quantile
    return mean_B + NormalDist().inv_cdf(quantile) * references_BM.std(dim=1, correction=1)


def conjunction(centred_KB: torch.Tensor, weights_K: torch.Tensor | None = None) -> torch.Tensor:
    """`sum_k w_k log sigma(r_k - r_ref_k)` `(B,)`: how likely all K properties hold, in nats.

    Wang et al. 2024: a log-probability if the properties are independent and the weights 1. The
    worst property dominates: (3, -3) is worse than (0, 0), so none can be bought with another.

    Args:
        centred_KB: rewards of K models, each less its own reference (`quantile_reference`), on
            the scale of Bradley-Terry.
        weights_K: 0 or more; None: 1 each.

    Raises:
        ValueError: not a row a model, not a weight a model, or a negative weight.
    """
    if centred_KB.dim() != 2 or not len(centred_KB):
        raise ValueError(f"centred rewards have shape (K, B), not {tuple(centred_KB.shape)}")
    terms_KB = _log_sigmoid(upcast(centred_KB))
    if weights_K is None:
        return terms_KB.sum(dim=0)
    if weights_K.shape != terms_KB.shape[:1]:
        raise ValueError(f"{len(terms_KB)} reward models, but weights {tuple(weights_K.shape)}")
    if not bool((weights_K >= 0.0).all()):
        raise ValueError(f"weights must be 0 or more, not {weights_K.tolist()}")
    return (weights_K.to(terms_KB)[:, None] * terms_KB).sum(dim=0)


def saturation(rewards_B: torch.Tensor, references_BM: torch.Tensor, bound: float = 8.0) -> float:
    """Share of rows more than `bound` away from each of their references, 0 to 1.

    There PAR is flat (its slope at 8 is 0.0003): it brakes, and no longer tells answers apart.

    Raises:
        ValueError: a row without references, or a reference that is not finite.
    """
    far_BM = _differences(rewards_B, references_BM).abs() > bound
    return float(far_BM.all(dim=1).double().mean())


def _differences(rewards_B: torch.Tensor, references_BM: torch.Tensor) -> torch.Tensor:
    """`(B, M)`: each reward less each of its row's references."""
    references_BM = _checked(references_BM)
    if rewards_B.shape != references_BM.shape[:1]:
        raise ValueError(
            f"rewards of shape {tuple(rewards_B.shape)}, "
            f"but references of shape {tuple(references_BM.shape)}"
        )
    return upcast(rewards_B)[:, None] - references_BM


def _log_sigmoid(x: torch.Tensor) -> torch.Tensor:
    # log(sigma(x)) as written underflows to -inf where the reward is worst.
    return -F.softplus(-x)


def _checked(references_BM: torch.Tensor) -> torch.Tensor:
    if references_BM.dim() != 2 or not references_BM.numel():
        raise ValueError(
            f"references have shape (B, M), with a row and a reference at least, "
            f"not {tuple(references_BM.shape)}"
        )
    bad_B = ~references_BM.isfinite().all(dim=1)
    if bad_B.any():
        raise ValueError(f"row {int(bad_B.nonzero()[0])} has a reference that is not finite")
    return upcast(references_BM)
