"""How fast this machine multiplies and reads memory, from half a second of doing so."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Speed:
    """Of one device: what a plain matrix product and a plain copy reach. No model gets all of it.

    Attributes:
        flops: a second; a multiplication and an addition each count.
        bandwidth: bytes a second.
    """

    flops: float
    bandwidth: float


def measure(dtype: torch.dtype, threads: int, seconds: float = 0.25) -> Speed:
    """Of this machine's CPU with `threads` threads, as busy as it is now."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left, right = (torch.full((1024, 1024), 0.5, dtype=dtype) for _ in range(2))
        product = _a_second(lambda: torch.mm(left, right), seconds)
        source = torch.zeros(1 << 26, dtype=torch.uint8)
        target = torch.empty_like(source)
        copies = _a_second(lambda: target.copy_(source), seconds)
        return Speed(2 * 1024**3 * product, 2 * source.nbytes * copies)
    finally:
        torch.set_num_threads(before)


def _a_second(work: object, seconds: float) -> float:
    """How often `work` is done in a second."""
    assert callable(work)
    work()
    done, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds or not done:
        work()
        done += 1
    return done / passed
