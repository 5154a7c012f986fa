"""Early signs that a reward model is not learning what it should; each is told once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

# Steps of training accuracy that are looked at together.
WINDOW = 40
LEAST_PAIRS = 200
# Share of its first length that a head has moved by the time a tenth of the run is over.
LEAST_MOVED = 1e-3
MOST_LENGTH = 0.6
RATIOS = (1e-3, 1.0)


class Alarms:
    """Reads the metrics of a run as they come.

    Args:
        pairs_per_step: for the chance that an accuracy is 50 % after all.
        total: steps of the whole run.
    """

    def __init__(self, pairs_per_step: int, total: int) -> None:
        self._per_step, self._total = pairs_per_step, total
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._told: set[str] = set()

    def after(self, metrics: Mapping[str, float]) -> list[str]:
        """What the metrics of one step give reason to say, one line each."""
        found = {
            "accuracy": self._accuracy(metrics),
            "head": self._head(metrics),
            "length": self._length(metrics),
            "ratio": self._ratio(metrics),
        }
        new = {name: text for name, text in found.items() if text and name not in self._told}
        self._told |= set(new)
        return list(new.values())

    def _accuracy(self, metrics: Mapping[str, float]) -> str | None:
        """Training accuracy of the last steps lies within two standard errors of 50 %."""
        if "accuracy" in metrics:
            self._recent.append(metrics["accuracy"])
        pairs = len(self._recent) * self._per_step
        enough = pairs >= LEAST_PAIRS and len(self._recent) >= min(WINDOW, self._total // 2)
        if not enough:
            return None
        mean = sum(self._recent) / len(self._recent)
        error = 2 * math.sqrt(0.25 / pairs)
        if mean > 0.5 + error:
            return None
        how = "below" if mean < 0.5 - error else "not clearly different from"
        return (
            f"training accuracy {mean:.2f} over the last {pairs} pairs is {how} 50 %: check the "
            "learning rate, and whether chosen and rejected are swapped"
        )

    def _head(self, metrics: Mapping[str, float]) -> str | None:
        moved, step = metrics.get("head_moved"), metrics.get("step", 0)
        if moved is None or step < 0.1 * self._total or moved > LEAST_MOVED:
            return None
        return (
            f"the reward head has moved by {moved:.1e} of its length after {step} steps: is it "
            "frozen, or is the learning rate too small?"
        )

    def _length(self, metrics: Mapping[str, float]) -> str | None:
        correlation = metrics.get("eval/length_correlation")
        if correlation is None or not abs(correlation) > MOST_LENGTH:
            return None
        way = "longer" if correlation > 0 else "shorter"
        return (
            f"scores follow length (rank correlation {correlation:+.2f} on held-out answers): the "
            f"model may have learned that {way} is better"
        )

    def _ratio(self, metrics: Mapping[str, float]) -> str | None:
        ratio = metrics.get("loss/gradient_ratio")
        if ratio is None or RATIOS[0] <= ratio <= RATIOS[1]:
            return None
        if ratio > RATIOS[1]:
            return (
                f"the gradient of the regulariser on the hidden states is {ratio:.1f} times that "
                "of the preference loss: lower loss.alpha"
            )
        return (
            f"the gradient of the regulariser on the hidden states is only {ratio:.1e} times that "
            "of the preference loss, so that it has no effect: raise loss.alpha"
        )
