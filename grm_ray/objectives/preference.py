"""Losses on rewards: of pairs, and of single answers with graded attributes.

A loss names what it needs by its parameters, and is called with keywords: `chosen_B`, `rejected_B`,
`margin_B`, `smoothing_B`, or `predicted_BA` and `labels_BA` (A counts attributes).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def bradley_terry(
    chosen_B: torch.Tensor, rejected_B: torch.Tensor, smoothing_B: torch.Tensor | None = None
) -> torch.Tensor:
    """Negative log-likelihood of the preference: `-log sigma(d)`, with d = chosen - rejected.

    Bradley and Terry 1952; as a reward-model loss: Ouyang et al. 2022, equation 1. With label
    smoothing a (Wang et al. 2024, "Secrets of RLHF in Large Language Models Part II"):
    `-(1 - a) log sigma(d) - a log sigma(-d)`, which is smallest where sigma(d) = 1 - a.

    Args:
        chosen_B: rewards of the preferred answers, any float dtype.
        rejected_B: rewards of the others.
        smoothing_B: each pair's chance that its label is wrong, 0 to 1; None: 0.

    Returns:
        `(B,)` fp32, in nats, not reduced.

    Raises:
        ValueError: a pair without its smoothing.
    """
    return _smoothed(upcast(chosen_B) - upcast(rejected_B), smoothing_B)


def margin(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    margin_B: torch.Tensor,
    smoothing_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """Bradley-Terry on `d - m`: a clear preference has to be scored clearly apart.

    Touvron et al. 2023, "Llama 2", equation 2, where m is the strength that people stated. With the
    mean difference of several reward models as m, the adaptive margin of Wang et al. 2024 (Secrets
    of RLHF II).

    Args:
        chosen_B, rejected_B, smoothing_B: as in `bradley_terry`.
        margin_B: m, in units of reward.

    Returns:
        `(B,)` fp32, in nats, not reduced.

    Raises:
        ValueError: a pair without its margin or smoothing.
    """
    difference_B = upcast(chosen_B) - upcast(rejected_B)
    return _smoothed(difference_B - _column("margin", margin_B, difference_B), smoothing_B)


def scaled(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    margin_B: torch.Tensor,
    smoothing_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """Bradley-Terry times the strength: `-m log sigma(d)`, as if the pair stood there m times.

    Wang et al. 2024, "HelpSteer2-Preference", Scaled Bradley-Terry. Multiplied pair by pair, before
    any mean: a product of means would lose which pair is the strong one.

    Args:
        chosen_B, rejected_B, smoothing_B: as in `bradley_terry`.
        margin_B: m, 0 or more (paper: 1, 2, 3 from slightly to much better).

    Returns:
        `(B,)` fp32, not reduced. The paper divides the sum by the number of pairs; divided by the
        sum of m, the learning rate keeps the meaning it has with Bradley-Terry.

    Raises:
        ValueError: a pair without its margin or smoothing, or with a margin below 0.
    """
    difference_B = upcast(chosen_B) - upcast(rejected_B)
    weight_B = _column("margin", margin_B, difference_B)
    if bool((weight_B < 0).any()):
        pair = int((weight_B < 0).nonzero()[0])
        raise ValueError(
            f"pair {pair} has margin {weight_B[pair].item():g}: a scaled loss needs 0 or more"
        )
    return weight_B * _smoothed(difference_B, smoothing_B)


def centering(chosen_B: torch.Tensor, rejected_B: torch.Tensor) -> torch.Tensor:
    """`(chosen + rejected)^2`: holds the level of the rewards, which pairs leave free.

    Eisenstein et al. 2023, "Helping or Herding?", written there for a likelihood that is maximised:
    here it is a penalty, to be added with a coefficient (0.01 is usual).

    Returns:
        `(B,)` fp32, in squared units of reward, not reduced.
    """
    return (upcast(chosen_B) + upcast(rejected_B)).square()


def score_l2(chosen_B: torch.Tensor, rejected_B: torch.Tensor) -> torch.Tensor:
    """`chosen^2 + rejected^2`: keeps every reward small. A penalty to be added (0.005 is usual).

    The baseline "Reg" in Fu et al. 2025, "Reward Shaping to Mitigate Reward Hacking in RLHF".

    Returns:
        `(B,)` fp32, in squared units of reward, not reduced.
    """
    return upcast(chosen_B).square() + upcast(rejected_B).square()


def regression(
    predicted_BA: torch.Tensor, labels_BA: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared error of the attributes that were graded.

    Wang et al. 2024, "HelpSteer2: Open-source dataset for training top-performing reward models".
    The loss is the sum of `squared_B` divided by the sum of `counted_B`, both over the global
    batch: a mean over grades and not over rows, so that each grade weighs the same.

    Args:
        predicted_BA: one output an attribute, any float dtype.
        labels_BA: the grades; NaN: not graded, which gives no loss and no gradient.

    Returns:
        `(squared_B, counted_B)` fp32: sum over the row's grades, and how many there are.

    Raises:
        ValueError: a row without any grade, or shapes that do not fit.
    """
    if predicted_BA.ndim != 2 or predicted_BA.shape != labels_BA.shape:
        raise ValueError(
            f"predictions {tuple(predicted_BA.shape)} for labels {tuple(labels_BA.shape)}: "
            "both must be rows by attributes"
        )
    predicted_BA = upcast(predicted_BA)
    graded_BA = ~labels_BA.isnan().to(predicted_BA.device)
    if bool((~graded_BA.any(dim=1)).any()):
        row = int((~graded_BA.any(dim=1)).nonzero()[0])
        raise ValueError(f"row {row} has no label: give each row at least one attribute's grade")
    # Chosen before it is squared: the gradient of a square times 0 would be NaN * 0, which is NaN.
    error_BA = torch.where(graded_BA, predicted_BA - labels_BA.to(predicted_BA), 0.0)
    return error_BA.square().sum(dim=1), graded_BA.sum(dim=1, dtype=predicted_BA.dtype)


def upcast(x: torch.Tensor) -> torch.Tensor:
    """fp32 where `x` has less; fp64 stays, as numerical checks of gradients need it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _smoothed(difference_B: torch.Tensor, smoothing_B: torch.Tensor | None) -> torch.Tensor:
    # softplus(-z), because log(sigma(z)) underflows to -inf where the loss matters most.
    as_labelled_B = F.softplus(-difference_B)
    if smoothing_B is None:
        return as_labelled_B
    wrong_B = _column("smoothing", smoothing_B, difference_B)
    return (1.0 - wrong_B) * as_labelled_B + wrong_B * F.softplus(difference_B)


def _column(name: str, values_B: torch.Tensor, difference_B: torch.Tensor) -> torch.Tensor:
    """One of the data's own numbers for each pair, as the rewards' dtype and on their device."""
    if values_B.shape != difference_B.shape:
        raise ValueError(
            f"{name} has shape {tuple(values_B.shape)}, "
            f"but the pairs have {tuple(difference_B.shape)}"
        )
    if bool(values_B.isnan().any()):
        raise ValueError(f"pair {int(values_B.isnan().nonzero()[0])} has no {name}")
    return values_B.to(difference_B)
