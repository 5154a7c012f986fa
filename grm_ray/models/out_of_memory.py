"""When memory runs out: what says so, and how to get back what the failed pass held."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
logger = logging.getLogger(__name__)

# torch on CPUs has no exception of its own for it.
_SAID_ON_CPU = ("can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is torch's for memory that there was not, on a GPU or in the host."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID_ON_CPU)


def release() -> None:
    """Free what a failed pass left behind. Call it after the `except`, which holds the pass."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def fitting(read: Callable[[int], T], budget: int, longest: int) -> tuple[T, int]:
    """`read(budget)`, with half the budget as long as memory runs out; and the budget that did.

    Args:
        read: a pass without gradients, in batches of `budget` tokens.
        longest: tokens of the longest row, which no smaller budget makes shorter.
    """
    while True:
        try:
            return read(budget), budget
        except RuntimeError as error:
            if not is_out_of_memory(error) or budget <= longest:
                raise
        release()
        budget //= 2
        logger.warning("out of memory: passes of %d tokens from now on", budget)
