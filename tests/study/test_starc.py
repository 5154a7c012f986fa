import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_ray.study.starc import canonical_products, starc_distance, starc_of_products


def rewards(seed, prompts=12, answers=6):
    return np.random.default_rng(seed).normal(size=(prompts, answers))


def test_a_reward_is_at_0_from_itself_and_at_1_from_its_opposite():
    reward = rewards(0)
    assert starc_distance(reward, reward) == 0
    assert starc_distance(reward, -reward) == pytest.approx(1, abs=1e-15)


def test_scale_and_an_offset_for_each_prompt_change_nothing():
    first, second = rewards(1), rewards(2)
    offsets = 50 * np.random.default_rng(3).normal(size=(12, 1))
    distance = starc_distance(first, second)
    assert starc_distance(7.5 * first + offsets, second) == pytest.approx(distance, abs=1e-13)
    assert starc_distance(first, 0.01 * second - offsets) == pytest.approx(distance, abs=1e-13)
    assert starc_distance(first, 3 * first + offsets) == pytest.approx(0, abs=1e-13)


def test_it_is_the_correlation_within_prompts():
    first = rewards(4)
    second = 0.6 * first + rewards(5) + 20 * rewards(6, answers=1)
    one = (first - first.mean(axis=1, keepdims=True)).ravel()
    two = (second - second.mean(axis=1, keepdims=True)).ravel()
    correlation = one @ two / math.sqrt((one @ one) * (two @ two))
    assert starc_distance(first, second) == pytest.approx(
        math.sqrt((1 - correlation) / 2), abs=1e-14
    )


def test_by_hand():
    # S is (-1, 0, 1) / sqrt 2 and (-1, 2, -1) / sqrt 6: at right angles, so sqrt(2) / 2.
    assert starc_distance([[0, 1, 2]], [[0, 3, 0]]) == pytest.approx(math.sqrt(0.5), abs=1e-15)


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(0, 10_000)] * 3))
def test_symmetry_bounds_and_triangle(seeds):
    one, two, three = (rewards(seed, 3, 4) for seed in seeds)
    assert starc_distance(one, two) == starc_distance(two, one)
    assert 0 <= starc_distance(one, two) <= 1
    by_way_of_two = starc_distance(one, two) + starc_distance(two, three)
    assert starc_distance(one, three) <= by_way_of_two + 1e-12


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e17 / 3])
def test_a_reward_that_tells_no_answers_apart_is_zero(constant):
    # One number a prompt, whose mean over answers may differ from it by rounding.
    flat = constant * np.arange(1, 13)[:, None] * np.ones((12, 6))
    assert starc_distance(flat, rewards(7)) == pytest.approx(0.5, abs=1e-15)
    assert starc_distance(flat, 0 * flat) == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: starc_distance([[1.0]], [[1.0]]), "two answers or more"),
        (lambda: starc_distance(np.ones((0, 2)), np.ones((0, 2))), "two answers or more"),
        (lambda: starc_distance([1.0, 2.0], [1.0, 2.0]), "two answers or more"),
        (lambda: starc_distance([[1.0, 2.0]], [[1.0, 2.0, 3.0]]), "one shape"),
        (lambda: starc_distance([[1.0, 2.0]], [[1.0, math.nan]]), "finite numbers only"),
    ],
)
def test_wrong_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_it_can_be_had_part_by_part():
    first, second = rewards(7) + 1e3, rewards(8)
    parts = [canonical_products(first[at], second[at]) for at in (slice(5), slice(5, 12))]
    found = starc_of_products(np.concatenate(parts))
    assert found == pytest.approx(starc_distance(first, second), abs=1e-8)
    still = np.ones_like(first)
    assert starc_of_products(canonical_products(first, still)) == starc_distance(first, still)
    assert starc_of_products(canonical_products(still, still)) == 0
