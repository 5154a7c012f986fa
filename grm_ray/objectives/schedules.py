"""Learning-rate factors: pure functions of the step."""

from __future__ import annotations

import math


def cosine_with_warmup(step: int, total: int, warmup: int, minimum: float = 0.0) -> float:
    """Factor on the peak learning rate for the update after `step` updates are done.

    Linear from `1 / warmup` (the first update is not wasted on a rate of 0) to 1, then half a
    cosine down to `minimum`, kept from `total` on (Loshchilov and Hutter 2017, equation 5).

    Args:
        step: updates done so far, 0 at the first.
        total: updates of the whole run.
        warmup: updates until the peak; 0: none.
        minimum: the last factor, 0 to 1.

    Raises:
        ValueError: `step` or `warmup` below 0, or `minimum` outside [0, 1].
    """
    if step < 0 or warmup < 0 or not 0.0 <= minimum <= 1.0:
        raise ValueError(
            "a schedule needs step >= 0, warmup >= 0 and minimum within [0, 1], "
            f"not {step}, {warmup} and {minimum}"
        )
    if step < warmup:
        return (step + 1) / warmup
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    return minimum + (1.0 - minimum) * 0.5 * (1.0 + math.cos(math.pi * done))
