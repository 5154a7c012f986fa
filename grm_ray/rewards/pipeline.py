"""From a row's raw score to the reward that the learner sees; the raw score is kept as it is."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

Normalize = Literal["none", "first_batch", "running"]


class RewardPipeline:
    """raw score -> normalised -> clipped -> minus a penalty for unfinished answers.

    Args:
        normalize: "first_batch": mean and standard deviation of the first batch, kept for the
            whole run (Yang et al. 2024, PPO set-up); "running": of all rows so far (Chan, Golub
            and LeVeque 1983, merged batch by batch); "none": raw scores.
        clip: bound on the normalised reward, both ways; None: no bound.
        missing_eos_penalty: subtracted where an answer ran into the length limit, after clipping,
            so that a clipped reward still tells finished from unfinished.
    """

    def __init__(self, normalize: Normalize, clip: float | None, missing_eos_penalty: float) -> None:
        self._normalize = normalize
        self._clip = clip
        self._penalty = missing_eos_penalty
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0  # sum of squared deviations from the mean

    def __call__(self, scores_B: np.ndarray, finished_B: np.ndarray) -> np.ndarray:
        """Rewards `(B,)` of one step's rows; updates the normaliser first.

        Raises:
            ValueError: a score is not finite.
        """
        if not np.isfinite(scores_B).all():
            raise ValueError(f"{int((~np.isfinite(scores_B)).sum())} scores are not finite")
        if self._normalize == "running" or (self._normalize == "first_batch" and not self._count):
            self._merge(scores_B)
        rewards_B = scores_B.astype(float)
        if self._normalize != "none":
            rewards_B = (rewards_B - self._mean) / (self.std + 1e-8)
        if self._clip is not None:
            rewards_B = rewards_B.clip(-self._clip, self._clip)
        return rewards_B - self._penalty * (1.0 - finished_B)

    @property
    def std(self) -> float:
        """Population standard deviation of the rows seen; 1 until two differ."""
        std = (self._squares / self._count) ** 0.5 if self._count else 0.0
        return std or 1.0

    def _merge(self, scores_B: np.ndarray) -> None:
        count, mean = len(scores_B), float(scores_B.mean())
        delta, total = mean - self._mean, self._count + count
        self._squares += float(((scores_B - mean) ** 2).sum())
        self._squares += delta * delta * self._count * count / total
        self._mean += delta * count / total
        self._count = total

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._count, "mean": self._mean, "squares": self._squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._count, self._mean = int(state["count"]), float(state["mean"])
        self._squares = float(state["squares"])
