"""Shaping of scalar rewards `(B,)`, one a row: tensors in, tensors out, nothing overwritten."""

from __future__ import annotations

import math

import torch

_ROUNDING = 1e-12  # of sums in fp64, relative


class RunningNormalizer:
    """Mean and standard deviation of all scores so far, merged batch by batch.

    Chan, Golub and LeVeque 1983, equations 2.1a and 2.1b: no difference of large sums, and the same
    result, beyond rounding, for any split into batches. Kept in fp64 as Python numbers, so that a
    state survives JSON bit for bit.

    Attributes:
        count: scores seen.
        mean: their mean; 0 before the first.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0  # sum of squared deviations from the mean

    @property
    def std(self) -> float:
        """Population standard deviation; 1 until two scores differ, so that dividing is safe."""
        return self._spread() if self.spread_known else 1.0

    @property
    def spread_known(self) -> bool:
        """Whether two scores differ, by more than the mean of equal ones is off by rounding."""
        return self._spread() > _ROUNDING * abs(self.mean)

    def update(self, scores_B: torch.Tensor) -> None:
        """Take in a batch, which may be empty.

        Raises:
            ValueError: a score is not finite; the state is then as before.
        """
        if not scores_B.numel():
            return
        bad = int((~scores_B.isfinite()).sum())
        if bad:
            raise ValueError(f"{bad} of {scores_B.numel()} scores are not finite")
        scores_B = scores_B.detach().double()
        mean = float(scores_B.mean())
        self._merge(scores_B.numel(), mean, float((scores_B - mean).square().sum()))

    def normalize(self, scores_B: torch.Tensor) -> torch.Tensor:
        """`(scores - mean) / std`, fp32; changes no state."""
        return ((scores_B.double() - self.mean) / self.std).float()

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "squares": self._squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.count, self.mean = int(state["count"]), float(state["mean"])
        self._squares = float(state["squares"])

    def _spread(self) -> float:
        return math.sqrt(self._squares / self.count) if self.count else 0.0

    def _merge(self, count: int, mean: float, squares: float) -> None:
        delta, total = mean - self.mean, self.count + count
        self._squares += squares + delta * delta * self.count * count / total
        self.mean += delta * count / total
        self.count = total


def clip(scores_B: torch.Tensor, bound: float) -> torch.Tensor:
    """Rewards held within `[-bound, bound]`, in the unit they come in.

    Raises:
        ValueError: `bound` is not above 0.
    """
    if not bound > 0.0:
        raise ValueError(f"a reward bound must be above 0, not {bound}")
    return scores_B.clamp(-bound, bound)


def missing_eos_penalty(
    scores_B: torch.Tensor, finished_B: torch.Tensor, penalty: float
) -> torch.Tensor:
    """`penalty` less for an answer that ran into the length limit instead of ending itself.

    Args:
        finished_B: bool (or 0 and 1): whether the answer ended with its end token.
        penalty: units of reward, 0 or more.

    Raises:
        ValueError: a negative penalty, which would pay for not finishing; or sizes that differ.
    """
    if not penalty >= 0.0:
        raise ValueError(f"a missing-EOS penalty must be 0 or more, not {penalty}")
    if scores_B.shape != finished_B.shape:
        raise ValueError(f"{len(scores_B)} scores, but {len(finished_B)} finished flags")
    return scores_B - penalty * (~finished_B.bool()).to(scores_B.dtype)


def overlong_penalty(
    rewards_B: torch.Tensor, lengths_B: torch.Tensor, longest: int, margin: int, penalty: float
) -> torch.Tensor:
    """`penalty * clip((length - (longest - margin)) / margin, 0, 1)` less for a long answer.

    Yu et al. 2025, DAPO (arXiv 2503.14476), equation 13, "soft overlong punishment": within
    `margin` of the limit the penalty grows evenly, instead of falling on cut answers at once.

    Args:
        lengths_B: tokens of each answer.
        longest: the limit, in tokens.
        margin: 1 to `longest`, in tokens.
        penalty: units of reward at the limit, 0 or more (paper: 1).

    Raises:
        ValueError: a margin or penalty out of range, or sizes that differ.
    """
    if not 1 <= margin <= longest:
        raise ValueError(f"an overlong margin is 1 to {longest} tokens, not {margin}")
    if not penalty >= 0.0:
        raise ValueError(f"an overlong penalty must be 0 or more, not {penalty}")
    if rewards_B.shape != lengths_B.shape:
        raise ValueError(f"{len(rewards_B)} rewards, but {len(lengths_B)} lengths")
    over_B = (lengths_B.to(rewards_B.dtype) - (longest - margin)) / margin
    return rewards_B - penalty * over_B.clamp(0.0, 1.0)


class RunningRange:
    """Lowest and highest of all scores so far; they become 0 and 1.

    One of the rivals of PAR in Fu et al. 2025 (arXiv 2502.18770). A single outlier sets the scale
    for good: `RunningNormalizer` is steadier.

    Attributes:
        low, high: None before the first score.
    """

    def __init__(self) -> None:
        self.low: float | None = None
        self.high: float | None = None

    def update(self, scores_B: torch.Tensor) -> None:
        """Take in a batch, which may be empty.

        Raises:
            ValueError: a score is not finite; the state is then as before.
        """
        if not scores_B.numel():
            return
        low, high = (float(end) for end in scores_B.detach().double().aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"not all of {scores_B.numel()} scores are finite")
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)

    def normalize(self, scores_B: torch.Tensor) -> torch.Tensor:
        """`(scores - low) / (high - low)`, fp32, held within [0, 1]; changes no state.

        0.5 until two scores differ.
        """
        if self.low is None or self.high is None or self.low == self.high:
            return torch.full_like(scores_B, 0.5, dtype=torch.float32)
        return ((scores_B.double() - self.low) / (self.high - self.low)).clamp(0.0, 1.0).float()

    def state_dict(self) -> dict[str, float | None]:
        return {"low": self.low, "high": self.high}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        self.low, self.high = state["low"], state["high"]


def clip_to_spread(
    scores_B: torch.Tensor, seen: RunningNormalizer, width: float = 1.0
) -> torch.Tensor:
    """Scores held within `mean +- width * std` of all scores seen, in the unit they come in.

    Fu et al. 2025 (arXiv 2502.18770), with `width` 1, after `seen` took in the batch. Until two
    scores differ there is no spread, and nothing is clipped.

    Raises:
        ValueError: `width` is not above 0.
    """
    if not width > 0.0:
        raise ValueError(f"a width must be above 0, not {width}")
    if not seen.spread_known:
        return scores_B
    return scores_B.clamp(seen.mean - width * seen.std, seen.mean + width * seen.std)


def tanh(scores_B: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """`scale * tanh(scores / scale)`: like `clip` to `scale`, but smooth; small scores stay.

    Args:
        scale: the bound, in units of reward, above 0.

    Raises:
        ValueError: `scale` is not above 0.
    """
    if not scale > 0.0:
        raise ValueError(f"a scale must be above 0, not {scale}")
    return scale * torch.tanh(scores_B / scale)
