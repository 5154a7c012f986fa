"""The learning rate's factor."""

from __future__ import annotations

import pytest

from grm_ray.objectives.schedules import cosine_with_warmup


def test_warms_up_to_the_peak_without_an_update_at_rate_0() -> None:
    assert [cosine_with_warmup(s, 100, 4) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_falls_along_half_a_cosine_to_the_minimum_and_stays() -> None:
    factors = [cosine_with_warmup(s, 110, 10, 0.1) for s in range(10, 130)]
    assert factors == sorted(factors, reverse=True)
    assert factors[50] == pytest.approx(0.55)
    assert factors[100:] == pytest.approx([0.1] * 20)


def test_without_warmup_starts_at_the_peak() -> None:
    assert cosine_with_warmup(0, 10, 0) == 1.0


def test_a_warmup_as_long_as_the_run_is_only_a_warmup() -> None:
    assert [cosine_with_warmup(s, 2, 2) for s in range(2)] == [0.5, 1.0]


def test_impossible_numbers_are_refused() -> None:
    for step, warmup, minimum in ((-1, 0, 0.0), (0, -1, 0.0), (0, 0, 1.5)):
        with pytest.raises(ValueError, match="schedule needs"):
            cosine_with_warmup(step, 10, warmup, minimum)
