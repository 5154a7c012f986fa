"""Means over repetitions: their intervals hold whichever noise is the larger."""

import math

import numpy as np
import pytest

from grm_ray.study.intervals import bootstrap_mean
from grm_ray.study.repetitions import mean_over, student

STUDIES = 1500


def excluded(repetitions, seed_sd, prompt_sd, both_sd, prompts=500):
    """Share of studies without a true mean whose interval leaves out 0."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(STUDIES):
        values_SB = (
            rng.normal(0, seed_sd, (repetitions, 1))
            + rng.normal(0, prompt_sd, prompts)
            + rng.normal(0, both_sd, (repetitions, prompts))
        )
        found = mean_over(values_SB).interval
        wrong += not found.low <= 0 <= found.high
    return wrong / STUDIES


@pytest.mark.parametrize(
    ("repetitions", "noise"),
    [
        (3, (0.05, 0.0, 0.1)),  # seeds make nearly all of it
        (3, (0.0, 0.45, 0.0)),  # prompts
        (3, (0.0, 0.3, 0.3)),
        (3, (0.0, 0.0, 0.45)),  # each model errs elsewhere
        (3, (0.013, 0.3, 0.3)),  # a study's usual mixture
        (2, (0.05, 0.3, 0.1)),
        (5, (0.013, 0.3, 0.3)),
    ],
)
def test_no_gain_is_seldom_taken_for_one(repetitions, noise):
    assert excluded(repetitions, *noise) < 0.065


def test_prompts_alone_would_have_seen_gains_in_seeds():
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        values_SB = rng.normal(0, 0.018, (3, 1)) + rng.normal(0, 0.3, (3, 500))
        found = bootstrap_mean(values_SB.mean(axis=0), n=300)
        wrong += not found.low <= 0 <= found.high
    assert wrong / 200 > 0.1


def test_where_repetitions_agree_the_interval_is_that_of_the_prompts():
    values_B = np.random.default_rng(0).normal(size=400)
    found = mean_over([values_B, values_B, values_B]).interval
    prompts = bootstrap_mean(values_B, n=20_000)
    assert found.low == pytest.approx(prompts.low, abs=5e-3)
    assert found.high == pytest.approx(prompts.high, abs=5e-3)


def test_where_prompts_agree_the_interval_is_student_s():
    found = mean_over(np.tile([[0.1], [0.2], [0.6]], (1, 10)))
    half = 4.302653 * np.std([0.1, 0.2, 0.6], ddof=1) / math.sqrt(3)
    assert found.interval.high - 0.3 == pytest.approx(half, rel=1e-5)
    assert found.each == pytest.approx((0.1, 0.2, 0.6))
    assert found.detectable > half


def test_rows_of_one_prompt_count_as_one():
    values_SB = np.random.default_rng(0).normal(size=(3, 50))
    once, thrice = mean_over(values_SB), mean_over(np.repeat(values_SB, 3, axis=1))
    names = np.repeat(np.arange(50), 3)
    together = mean_over(np.repeat(values_SB, 3, axis=1), names)
    assert together.interval.high == pytest.approx(once.interval.high)
    assert together.interval.clusters == 50 and together.interval.rows == 150
    assert thrice.interval.high < once.interval.high


def test_an_interval_stays_within_what_is_possible():
    found = mean_over([[1.0, 1, 1, 0], [1, 1, 1, 1]], bounds=(0, 1)).interval
    assert found.high == 1.0 and found.low == 0.0


def test_a_gain_that_cannot_be_is_not_promised():
    values_SB = np.tile([[0.0], [0.5]], (1, 10))
    assert math.isnan(mean_over(values_SB, bounds=(-1, 1)).detectable)
    assert mean_over(values_SB).detectable > 3


def test_a_mean_that_shows_from_here_shows_in_four_of_five_cases():
    rng = np.random.default_rng(3)
    noise = [
        rng.normal(0, 0.01, (4, 1)) + rng.normal(0, 0.3, 400) + rng.normal(0, 0.2, (4, 400))
        for _ in range(300)
    ]
    gain = float(np.mean([mean_over(values_SB).detectable for values_SB in noise]))
    assert 0.7 < np.mean([mean_over(x + gain).interval.low > 0 for x in noise]) < 0.95


def test_one_prompt_has_a_mean_and_no_interval():
    found = mean_over([[1.0, 0.0], [1.0, 1.0]], ["a", "a"])
    assert found.interval.mean == 0.75 and math.isnan(found.interval.low)


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.7062), (2, 4.30265), (4, 2.77645), (30, 2.04227)]
)
def test_quantiles_are_those_of_the_tables(degrees, quantile):
    assert student(0.975, degrees) == pytest.approx(quantile, rel=1e-5)
    assert student(0.025, degrees) == pytest.approx(-quantile, rel=1e-5)
    assert student(0.5, degrees) == pytest.approx(0, abs=1e-9)


def test_many_degrees_are_normal():
    assert student(0.975, 5000) == pytest.approx(1.96044, abs=1e-4)
    assert student(0.975, 10**6) == pytest.approx(1.95996, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "clusters", "words"),
    [
        ([[1.0, 2.0]], None, "two repetitions"),
        ([[], []], None, "two repetitions"),
        ([[1.0], [math.nan]], None, "finite"),
        ([[1.0, 2.0], [1.0, 2.0]], ["a"], "1 labels for 2 rows"),
    ],
)
def test_wrong_input_is_named(values, clusters, words):
    with pytest.raises(ValueError, match=words):
        mean_over(values, clusters)
