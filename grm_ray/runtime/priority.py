"""Who goes first where roles share cores."""

from __future__ import annotations

import os

import torch

_STEP = 4  # Ray starts workers at niceness 15; 19 is the end of the scale


def yield_to_engines() -> None:
    """On a machine without GPUs, let this process run where generation leaves the cores free.

    Generation is a long row of small parallel steps, each as slow as its slowest thread; scoring
    and evaluation can use any gap, and the step waits for all three anyway.
    """
    if not torch.cuda.is_available():
        os.nice(_STEP)
