"""Rewards that follow from rules, and ways to join rewards."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grm_ray.rewards.rules import (
    gate,
    gated_sum,
    length_penalty,
    matches,
    product,
    repetition,
)
from tests.rewards.properties import near as _near
from tests.rewards.properties import property_test, seeds
from tests.rewards.properties import random as _random

# ----------------------------------------------------------------------- rules


def test_tokens_beyond_the_limit_cost() -> None:
    lengths_B = torch.tensor([0, 300, 301, 400, 1300])
    found_B = length_penalty(torch.ones(5), lengths_B)
    assert found_B.tolist() == _near([1.0, 1.0, 0.99, 0.0, -9.0])
    assert length_penalty(torch.zeros(5), lengths_B, 0, 0.5)[1].item() == -150.0
    assert length_penalty(torch.zeros(5), lengths_B, per_token=0.0).tolist() == [0.0] * 5


def test_repeated_runs_of_words_are_counted() -> None:
    texts = ["a b c d", "a b a b a", "a a a a", "", "a"]
    assert repetition(texts, n=2).tolist() == _near([0.0, 0.5, 2 / 3, 0.0, 0.0])
    assert repetition(texts, n=1).tolist() == _near([0.0, 0.6, 0.75, 0.0, 0.0])
    assert repetition([]).shape == (0,)


def test_one_word_for_ever_is_nearly_all_repetition() -> None:
    words = " ".join(str(number) for number in range(40))
    found_B = repetition(["again " * 1000, words, words + "\n" + words])
    assert found_B.tolist() == _near([980 / 981, 0.0, 21 / 61])


@property_test
@given(st.lists(st.text(alphabet="ab \n", max_size=40), min_size=1, max_size=4), st.integers(1, 4))
def test_shares_lie_between_0_and_1_and_depend_on_their_text_alone(
    texts: list[str], n: int
) -> None:
    found_B = repetition(texts, n)
    assert found_B.shape == (len(texts),) and found_B.dtype == torch.float32
    assert (found_B >= 0).all() and (found_B <= 1).all()
    assert found_B.tolist() == [repetition([text], n).item() for text in texts]


def test_a_pattern_is_found_or_matches_the_whole_text() -> None:
    pattern = re.compile(r"<answer>\d+</answer>")
    texts = ["<answer>42</answer>", "So: <answer>42</answer>", "<answer>42</answer>\n", "42"]
    assert matches(texts, pattern).tolist() == [1.0, 1.0, 1.0, 0.0]
    assert matches(texts, pattern, whole=True).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert matches([], pattern).shape == (0,)


# ----------------------------------------------------------------------- gates


def test_golden_numbers_of_the_gate() -> None:
    found_B = gate(torch.tensor([0.2, 1.0, 0.5]), torch.full((3,), 0.3), threshold=0.5)
    assert found_B.tolist() == _near([0.2, 1.3, 0.8])
    strict_B = gate(torch.tensor([0.2, 1.0, 0.5]), torch.full((3,), 0.3), 0.5, strict=True)
    assert strict_B.tolist() == _near([0.2, 1.3, 0.5])


def test_a_gate_at_infinity_is_open_or_shut_for_good() -> None:
    outcome_B, extras_B = _random(2, 9)
    for strict in (False, True):
        assert torch.equal(gate(outcome_B, extras_B, -math.inf, strict), outcome_B + extras_B)
        assert torch.equal(gate(outcome_B, extras_B, math.inf, strict), outcome_B)


@property_test
@given(seeds, st.floats(-2.0, 2.0), st.booleans())
def test_with_extras_of_0_or_more_the_total_rises_with_the_outcome(
    seed: int, threshold: float, strict: bool
) -> None:
    outcome_B = _random(20, seed=seed).sort().values
    extra = _random(1, seed=seed + 1000).abs()
    total_B = gate(outcome_B, extra.expand(20), threshold, strict)
    assert (total_B.diff() >= 0).all()


def test_a_level_counts_only_where_all_above_it_clear() -> None:
    correct_B = torch.tensor([1.0, 1.0, 0.0, 0.0])
    format_B = torch.tensor([0.5, 0.0, 0.5, 0.0])
    style_B = torch.full((4,), 0.1)
    found_B = gated_sum([correct_B, format_B, style_B], [1.0, 0.5])
    assert found_B.tolist() == _near([1.6, 1.0, 0.0, 0.0])
    plain_B = gated_sum([correct_B, format_B, style_B], [-math.inf, -math.inf])
    assert plain_B.tolist() == _near([1.6, 1.1, 0.6, 0.1])


def test_what_is_behind_a_shut_gate_does_not_matter() -> None:
    outcome_B = torch.zeros(2)
    found_B = gate(outcome_B, torch.tensor([math.inf, math.nan]), threshold=1.0)
    assert found_B.tolist() == [0.0, 0.0] and outcome_B.tolist() == [0.0, 0.0]


def test_one_component_is_its_own_sum() -> None:
    assert gated_sum([torch.tensor([1.0, -2.0])], []).tolist() == [1.0, -2.0]


# ----------------------------------------------------------------------- products


def test_factors_take_shares_away() -> None:
    base_B = torch.tensor([0.8, 0.8, 0.0])
    factors_FB = torch.tensor([[1.0, 0.5, 0.5], [1.0, 0.5, 1.0]])
    assert product(base_B, factors_FB).tolist() == _near([0.8, 0.2, 0.0])


@property_test
@given(seeds)
def test_factors_of_1_and_0_and_the_bounds_between(seed: int) -> None:
    base_B, factors_FB = _random(7, seed=seed).abs(), torch.sigmoid(_random(3, 7, seed=seed + 1))
    assert torch.equal(product(base_B, torch.ones(3, 7)), base_B)
    assert torch.equal(product(base_B, torch.ones(0, 7)), base_B)
    shaped_B = product(base_B, factors_FB)
    assert (shaped_B >= 0).all() and (shaped_B <= base_B).all()
    factors_FB[1] = 0.0
    assert product(base_B, factors_FB).tolist() == [0.0] * 7


# ----------------------------------------------------------------------- refusals

TWO, THREE = torch.zeros(2), torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: length_penalty(TWO, THREE), "2 rewards, but 3 lengths"),
        (lambda: length_penalty(TWO, TWO, limit=-1), "0 or more, not -1 and 0.01"),
        (lambda: length_penalty(TWO, TWO, per_token=-0.1), "0 or more, not 300 and -0.1"),
        (lambda: repetition(["a"], n=0), "1 word or more, not 0"),
        (lambda: gate(TWO, THREE, 0.0), r"components must have the same shape, not \[\(2,\), \(3"),
        (lambda: gated_sum([], []), "0 components need one threshold each except for the last"),
        (lambda: gated_sum([TWO, TWO], [0.0, 0.0]), "2 components .* not 2"),
        (lambda: product(torch.tensor([-0.1]), torch.ones(1, 1)), "0 or more"),
        (lambda: product(torch.tensor([math.nan]), torch.ones(1, 1)), "0 or more"),
        (lambda: product(torch.ones(1), torch.full((1, 1), 1.1)), "between 0 and 1"),
        (lambda: product(torch.ones(1), torch.tensor([[math.nan]])), "between 0 and 1"),
        (lambda: product(TWO, torch.ones(1, 3)), r"shape \(1, 3\) for a base of \(2,\)"),
        (lambda: product(TWO, torch.ones(2)), r"shape \(2,\) for a base of \(2,\)"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
