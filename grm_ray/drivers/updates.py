"""What the user is told of updates that did not go as planned, and when a run ends for it."""

from __future__ import annotations

from typing import Any

from grm_ray.config.errors import RunStopped

# Updates in a row without a finite loss and gradient, after which more of them are in vain.
MOST_SKIPPED = 3


class Updates:
    """Reads what the ranks say of each step's updates.

    Args:
        key: of the config, where the optimizer is.
        budget: tokens of a micro-batch that the config asks for.
    """

    def __init__(self, key: str, budget: int) -> None:
        self._key, self._budget = key, budget

    def after(self, step: int, metrics: dict[str, Any]) -> list[str]:
        """Lines to show. Takes `skipped_in_a_row` out of `metrics`.

        Raises:
            RunStopped: `MOST_SKIPPED` updates in a row were left out.
        """
        lines: list[str] = []
        tokens = metrics.get("micro_batch_tokens", self._budget)
        if tokens < self._budget:
            self._budget = int(tokens)
            lines.append(
                f"step {step}: out of memory; micro-batches have {tokens:.0f} tokens from now on "
                f"({self._key}.tokens_per_micro_batch)"
            )
        skipped, in_a_row = metrics.get("skipped_updates"), metrics.pop("skipped_in_a_row", 0)
        if in_a_row >= MOST_SKIPPED:
            raise RunStopped(
                f"step {step}: loss or gradient was not finite in the last {in_a_row:.0f} "
                f"updates, and no weight was changed; lower {self._key}.learning_rate or "
                ".max_grad_norm, or look for unusual rows in the data of this step"
            )
        if skipped:
            lines.append(
                f"warning: step {step}: loss or gradient was not finite in {skipped:.0f} of the "
                "step's updates, which were skipped"
            )
        return lines
