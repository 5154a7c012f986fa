"""Rewards that follow from rules, not from a model, and ways to join rewards `(B,)`.

Rules look at lengths or at the text of each answer alone. Each is easy to satisfy without a better
answer, so let it take away from a reward, or count only where the answer is good (`gate`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import torch

from grm_ray.objectives.preference import upcast
from grm_ray.study.monitors import repeated_share

# ----------------------------------------------------------------------- rules


def length_penalty(
    rewards_B: torch.Tensor, lengths_B: torch.Tensor, limit: int = 300, per_token: float = 0.01
) -> torch.Tensor:
    """`per_token * max(length - limit, 0)` less, without bound.

    Fu et al. 2025, PAR (arXiv 2502.18770), from whose code the defaults are; applied there to the
    raw reward, before it is shaped. `shape.overlong_penalty` is bounded.

    Args:
        lengths_B: tokens of each answer.
        limit: tokens that cost nothing, 0 or more.
        per_token: units of reward, 0 or more.

    Raises:
        ValueError: a limit or price out of range, or sizes that differ.
    """
    if not (limit >= 0 and per_token >= 0.0):
        raise ValueError(f"limit and price must be 0 or more, not {limit} and {per_token}")
    if rewards_B.shape != lengths_B.shape:
        raise ValueError(f"{len(rewards_B)} rewards, but {len(lengths_B)} lengths")
    rewards_B = upcast(rewards_B)
    return rewards_B - per_token * (lengths_B - limit).clamp(min=0).to(rewards_B.dtype)


def repetition(texts: Sequence[str], n: int = 20) -> torch.Tensor:
    """Share of a text's runs of `n` words that stood in it before, 0 to 1; fp32 `(B,)`.

    Lv et al. 2025, "The Climb Carves Wisdom Deeper Than the Summit" (arXiv 2505.22653), who
    subtract it with n 20. Their code divides the number of *different* runs that recur by that of
    all runs, so that one word a thousand times counts as hardly any repetition; here it counts as
    nearly 1. Words are what stands between white space: in scripts without it nothing is found.

    Args:
        n: 1 or more; a text of fewer words has no run, and gets 0.

    Raises:
        ValueError: `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"a run has 1 word or more, not {n}")
    return torch.tensor([repeated_share(text, n) for text in texts], dtype=torch.float32)


def matches(
    texts: Sequence[str], pattern: str | re.Pattern[str], whole: bool = False
) -> torch.Tensor:
    """1.0 where the regular expression is found in the text, 0.0 elsewhere; fp32 `(B,)`.

    Args:
        whole: the pattern has to match the text from its first to its last character, white space
            at the ends included.

    Raises:
        ValueError: `pattern` is not a regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from None
    found = compiled.fullmatch if whole else compiled.search
    return torch.tensor([1.0 if found(text) else 0.0 for text in texts], dtype=torch.float32)


# ------------------------------------------------------------------ combinations


def gate(
    outcome_B: torch.Tensor, extras_B: torch.Tensor, threshold: float, strict: bool = False
) -> torch.Tensor:
    """`outcome + 1[outcome >= threshold] * extras`: extras count only where the outcome is good.

    `gated_sum` with two components. The reward jumps by `extras` at the threshold, so negative
    extras pay for staying below it.
    """
    return gated_sum([outcome_B, extras_B], [threshold], strict)


def gated_sum(
    components: Sequence[torch.Tensor], thresholds: Sequence[float], strict: bool = False
) -> torch.Tensor:
    """`sum_i r_i * prod_{j above i} 1[r_j >= threshold_j]`: gated reward accumulation.

    G-RA (arXiv 2508.10548): a component counts only where all of higher priority clear their
    thresholds. A threshold of -inf leaves a gate open, one of inf keeps it shut.

    Args:
        components: rewards `(B,)`, the one of highest priority first; it always counts.
        thresholds: one for each component but the last, in units of that component.
        strict: a component must lie above its threshold; False: it may equal it.

    Raises:
        ValueError: no component, not a threshold for each but the last, or shapes that differ.
    """
    if not components or len(thresholds) != len(components) - 1:
        raise ValueError(
            f"{len(components)} components need one threshold each except for the last, not "
            f"{len(thresholds)}"
        )
    shapes = [tuple(component_B.shape) for component_B in components]
    if len(set(shapes)) > 1:
        raise ValueError(f"components must have the same shape, not {shapes}")
    total_B = upcast(components[0])
    open_B = torch.ones_like(total_B, dtype=torch.bool)
    for (above_B, component_B), threshold in zip(pairwise(components), thresholds, strict=True):
        open_B = open_B & (above_B > threshold if strict else above_B >= threshold)
        total_B = total_B + torch.where(open_B, upcast(component_B), 0.0)
    return total_B


def product(base_B: torch.Tensor, factors_FB: torch.Tensor) -> torch.Tensor:
    """`base * prod_f factor_f`: each factor takes away a share of the reward.

    Jaeger et al. 2025, CaRL (arXiv 2504.17838). The base must not be negative, as a factor would
    raise it then: `reference.par` is a base, a raw score is none.

    Args:
        base_B: 0 or more.
        factors_FB: 0 to 1; 1 takes nothing away, 0 everything.

    Raises:
        ValueError: a base or factor out of range or NaN, or not a factor a row.
    """
    if factors_FB.dim() != 2 or factors_FB.shape[1:] != base_B.shape:
        raise ValueError(
            f"factors of shape {tuple(factors_FB.shape)} for a base of {tuple(base_B.shape)}"
        )
    if not bool((base_B >= 0.0).all()):
        raise ValueError("a base that is multiplied must be 0 or more")
    if not bool(((factors_FB >= 0.0) & (factors_FB <= 1.0)).all()):
        raise ValueError("factors must lie between 0 and 1")
    return upcast(base_B) * upcast(factors_FB).prod(dim=0)
