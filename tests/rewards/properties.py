"""What the property tests of rewards share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

property_test = settings(deadline=None, max_examples=50)
seeds = st.integers(0, 99)


def near(value: object) -> object:
    return pytest.approx(value, abs=1e-6)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
