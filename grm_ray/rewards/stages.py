"""Stages of a reward pipeline that remember, and those that bring in rules.

A stage is called with the rewards `(B,)` so far, and by keyword with what it names of the answers:
`finished_B`, `lengths_B`, `longest`, `references_BM` (`pipeline.PipelineInput`); the stages `rule`
and `factor` have `rule_B` too. Other parameters come from the config.
"""

from __future__ import annotations

from typing import Literal

import torch

from grm_ray.rewards.rules import gate, product
from grm_ray.rewards.shape import RunningNormalizer, RunningRange, clip_to_spread


class Normalize:
    """`(r - mean) / std`.

    Args:
        by: "first_batch": moments of the first batch, kept for the whole run (Yang et al. 2024,
            PPO set-up); "running": of all rows so far.
    """

    def __init__(self, by: Literal["first_batch", "running"] = "first_batch") -> None:
        if by not in ("first_batch", "running"):
            raise ValueError(f"by: must be first_batch or running, not {by}")
        self._running = by == "running"
        self._moments = RunningNormalizer()

    def __call__(self, rewards_B: torch.Tensor) -> torch.Tensor:
        if self._running or not self._moments.count:
            self._moments.update(rewards_B)
        return self._moments.normalize(rewards_B)

    def state_dict(self) -> dict[str, float]:
        return self._moments.state_dict()

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._moments.load_state_dict(state)


class Range:
    """Between the lowest and the highest reward so far, 0 to 1 (`shape.RunningRange`)."""

    def __init__(self) -> None:
        self._range = RunningRange()

    def __call__(self, rewards_B: torch.Tensor) -> torch.Tensor:
        self._range.update(rewards_B)
        return self._range.normalize(rewards_B)

    def state_dict(self) -> dict[str, float | None]:
        return self._range.state_dict()

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        self._range.load_state_dict(state)


class ClipToSpread:
    """Held within `width` standard deviations of the mean of all rewards so far."""

    def __init__(self, width: float = 1.0) -> None:
        self._width, self._moments = width, RunningNormalizer()
        clip_to_spread(torch.zeros(1), self._moments, width)  # refuses a bad width now

    def __call__(self, rewards_B: torch.Tensor) -> torch.Tensor:
        self._moments.update(rewards_B)
        return clip_to_spread(rewards_B, self._moments, self._width)

    def state_dict(self) -> dict[str, float]:
        return self._moments.state_dict()

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._moments.load_state_dict(state)


def rule(
    rewards_B: torch.Tensor,
    rule_B: torch.Tensor,
    weight: float,
    above: float | None = None,
    strict: bool = False,
) -> torch.Tensor:
    """`r + weight * rule`, or with `above` only where the reward so far reaches it (`rules.gate`).

    Args:
        weight: units of reward; below 0 for what is to be avoided.
    """
    extras_B = weight * rule_B
    return gate(rewards_B, extras_B, float("-inf") if above is None else above, strict)


def factor(rewards_B: torch.Tensor, rule_B: torch.Tensor) -> torch.Tensor:
    """`r * rule`, for rewards of 0 or more and rules between 0 and 1 (`rules.product`)."""
    return product(rewards_B, rule_B[None])
