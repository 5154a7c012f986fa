import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_ray.study.best_of_n import (
    best_of_n,
    best_of_n_weights,
    kl_of_best_of_n,
    soft_best_of_n,
)


@pytest.mark.parametrize(
    ("n", "nats"),
    [
        (1, 0.0),
        (2, 0.193147),
        (4, 0.636294),
        (16, 1.835089),
        (64, 3.174508),
        (256, 4.549084),
        (12500, 8.433564),
    ],
)
def test_kl_of_the_best_of_n(n, nats):
    assert kl_of_best_of_n(n) == pytest.approx(nats, abs=1e-6)


def test_the_kl_is_a_bound_where_answers_are_few():
    # Four equally likely answers, each standing 10,000 times in the sample.
    weights = best_of_n_weights(40_000, 2).reshape(4, -1).sum(axis=1)
    np.testing.assert_allclose(weights, np.array([1, 3, 5, 7]) / 16, atol=1e-4)
    kl = math.log(4) + (weights * np.log(weights)).sum()
    assert kl == pytest.approx(0.173980, abs=1e-4)
    assert kl < kl_of_best_of_n(2)


def test_weights_by_hand():
    np.testing.assert_allclose(best_of_n_weights(4, 2), [0, 1 / 6, 1 / 3, 1 / 2], atol=1e-15)
    np.testing.assert_allclose(best_of_n_weights(5, 1), np.full(5, 0.2), atol=1e-15)
    np.testing.assert_array_equal(best_of_n_weights(5, 5), [0, 0, 0, 0, 1])


@pytest.mark.parametrize(("count", "n"), [(64, 7), (64, 63), (1000, 300), (100_000, 12_500)])
def test_weights_are_shares_of_binomials(count, n):
    weights = best_of_n_weights(count, n)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert (weights[: n - 1] == 0).all() and weights.min() >= 0
    # The best is among those drawn with chance n / N; the second best is taken if it is not.
    assert weights[-1] == pytest.approx(n / count)
    assert weights[-2] == pytest.approx(n / count * (count - n) / (count - 1))
    if count <= 1000:
        for i in (n, (n + count) // 2, count):
            share = math.comb(i - 1, n - 1) / math.comb(count, n)
            assert weights[i - 1] == pytest.approx(share, rel=1e-11)


def brute_force(proxy_N, gold_N, n):
    """Mean over all choices of n answers; equal best ones share their mean gold."""
    proxies, golds = [], []
    for chosen in itertools.combinations(range(len(proxy_N)), n):
        best = max(proxy_N[i] for i in chosen)
        proxies.append(best)
        golds.append(np.mean([gold_N[i] for i in chosen if proxy_N[i] == best]))
    return np.mean(proxies), np.mean(golds)


@pytest.mark.parametrize("levels", [1000, 3, 1])
def test_it_equals_brute_force_with_and_without_ties(levels):
    rng = np.random.default_rng(levels)
    proxy = rng.integers(levels, size=(4, 9)) / 7
    gold = rng.normal(size=(4, 9))
    ns = list(range(1, 10))
    expected_proxy, expected_gold = best_of_n(proxy, gold, ns)
    assert expected_proxy.shape == expected_gold.shape == (9, 4)
    for s, p in itertools.product(range(9), range(4)):
        by_hand = brute_force(proxy[p], gold[p], ns[s])
        assert (expected_proxy[s, p], expected_gold[s, p]) == pytest.approx(by_hand, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_brute_force_on_any_small_sample(data):
    count = data.draw(st.integers(1, 6))
    n = data.draw(st.integers(1, count))
    numbers = st.lists(st.integers(-3, 3), min_size=count, max_size=count)
    proxy, gold = data.draw(numbers), data.draw(numbers)
    expected_proxy, expected_gold = best_of_n([proxy], [gold], [n])
    by_hand = brute_force(proxy, gold, n)
    assert (expected_proxy[0, 0], expected_gold[0, 0]) == pytest.approx(by_hand, abs=1e-12)


def test_the_ends_are_the_mean_and_the_top():
    proxy, gold = np.array([[0.0, 1.0, 2.0, 3.0]]), np.array([[5.0, -1.0, 0.0, 2.5]])
    expected_proxy, expected_gold = best_of_n(proxy, gold, [1, 2, 4])
    np.testing.assert_allclose(expected_proxy[:, 0], [1.5, 7 / 3, 3.0], atol=1e-14)
    np.testing.assert_allclose(expected_gold[[0, 2], 0], [gold.mean(), 2.5], atol=1e-14)


def test_the_order_of_answers_does_not_matter():
    rng = np.random.default_rng(0)
    proxy, gold = rng.integers(4, size=(3, 12)), rng.normal(size=(3, 12))
    shuffled = rng.permutation(12)
    before = best_of_n(proxy, gold, [1, 3, 8])
    after = best_of_n(proxy[:, shuffled], gold[:, shuffled], [1, 3, 8])
    np.testing.assert_allclose(before, after, atol=1e-13)


def test_it_is_unbiased_for_the_law_that_the_answers_come_from():
    rng = np.random.default_rng(1)
    proxy = rng.uniform(size=(20_000, 8))
    expected_proxy, _ = best_of_n(proxy, proxy, [3])
    # The best of three uniform numbers has mean 3/4; the error of the mean is about 0.0008.
    assert expected_proxy.mean() == pytest.approx(0.75, abs=0.004)


def test_ten_thousand_prompts_with_64_answers_take_seconds_at_most():
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(2, 10_000, 64))
    start = time.perf_counter()
    results = best_of_n(proxy, gold, [1, 2, 4, 8, 16, 32, 64])
    assert time.perf_counter() - start < 10
    assert np.isfinite(results).all()


def test_soft_best_of_n_on_three_kinds_of_answers():
    # Probabilities 0.5, 0.3, 0.2 as ten answers of one weight.
    proxy = np.array([[0.0] * 5 + [1.0] * 3 + [2.0] * 2])
    kinds = [(proxy == kind).astype(float) for kind in (0, 1, 2)]
    law = [soft_best_of_n(proxy, kind, [1.0])[1][0, 0] for kind in kinds]
    np.testing.assert_allclose(law, [0.179000, 0.291944, 0.529056], atol=1e-6)
    expected, _, kl = (result[0, 0] for result in soft_best_of_n(proxy, proxy, [1.0]))
    assert expected == pytest.approx(1.350056, abs=1e-6)
    assert kl == pytest.approx(0.322834, abs=1e-6)
    log_z = math.log(np.exp(proxy).mean())
    assert expected / 1.0 - kl == pytest.approx(log_z, abs=1e-12)
    assert log_z == pytest.approx(1.027222, abs=1e-6)


def test_soft_best_of_n_goes_from_the_mean_to_the_top():
    rng = np.random.default_rng(2)
    proxy, gold = rng.normal(size=(2, 5, 16))
    betas = [1e9, 3.0, 1.0, 0.3, 1e-9, 1e-320]
    expected_proxy, expected_gold, kl = soft_best_of_n(proxy, gold, betas)
    assert expected_proxy.shape == expected_gold.shape == kl.shape == (6, 5)
    np.testing.assert_allclose(expected_proxy[0], proxy.mean(axis=1), atol=1e-8)
    np.testing.assert_allclose(kl[0], 0, atol=1e-12)
    top = gold[np.arange(5), proxy.argmax(axis=1)]
    for s in (4, 5):
        np.testing.assert_allclose(expected_proxy[s], proxy.max(axis=1), atol=1e-12)
        np.testing.assert_allclose(expected_gold[s], top, atol=1e-12)
        np.testing.assert_allclose(kl[s], math.log(16), atol=1e-12)
    assert (np.diff(expected_proxy, axis=0) >= -1e-12).all()
    assert (np.diff(kl, axis=0) >= -1e-12).all()


def test_an_offset_of_the_proxy_changes_no_weight():
    rng = np.random.default_rng(3)
    proxy, gold = rng.normal(size=(2, 3, 8))
    _, before, kl_before = soft_best_of_n(proxy, gold, [0.5])
    _, after, kl_after = soft_best_of_n(proxy + 1e4, gold, [0.5])
    np.testing.assert_allclose(before, after, atol=1e-9)
    np.testing.assert_allclose(kl_before, kl_after, atol=1e-9)


def test_soft_and_hard_choice_earn_alike_for_long_answers():
    """Answers of fair coins, reward their share of heads, 0.1 nats a coin (arXiv 2404.01730)."""
    low, high = 1e-3, 1e3
    for _ in range(200):
        beta = math.sqrt(low * high)
        rate, _, kl = soft_best_of_n([[0.0, 1.0]], [[0.0, 1.0]], [beta])
        low, high = (beta, high) if kl[0, 0] > 0.1 else (low, beta)
    assert rate[0, 0] == pytest.approx(0.719795, abs=1e-6)
    # The best of e^(0.1 * 50) answers of 50 coins, from 20,000 that stand for their law.
    heads = np.arange(51)
    chances = np.cumsum([math.comb(50, k) / 2**50 for k in heads])
    sample = np.searchsorted(chances, (np.arange(20_000) + 0.5) / 20_000)[None] / 50
    rate_of_50, _ = best_of_n(sample, sample, [round(math.exp(5))])
    assert rate_of_50[0, 0] == pytest.approx(0.6850, abs=5e-4)


ONE = [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: kl_of_best_of_n(0), "n: 1 or more, not 0"),
        (lambda: best_of_n_weights(4, 5), "from 1 to the 4 answers of a prompt, not 5"),
        (lambda: best_of_n_weights(4, 0), "from 1 to the 4 answers of a prompt, not 0"),
        (lambda: best_of_n(ONE, ONE, [1, 3]), "from 1 to the 2 answers of a prompt, not 3"),
        (lambda: best_of_n(ONE, ONE, []), "at least one size"),
        (lambda: best_of_n([], [], [1]), "prompts with one answer or more"),
        (lambda: best_of_n(np.ones((2, 0)), np.ones((2, 0)), [1]), "prompts with one answer"),
        (lambda: best_of_n(ONE, [[1.0]], [1]), "one shape"),
        (lambda: best_of_n([[1.0, 2.0], [0.0, math.nan]], np.ones((2, 2)), [1]), "proxy: prompt 1"),
        (lambda: best_of_n(ONE, [[1.0, math.inf]], [1]), "gold: prompt 0 is not all finite"),
        (lambda: soft_best_of_n(ONE, ONE, []), "at least one temperature"),
        (lambda: soft_best_of_n(ONE, ONE, [0.0]), "finite and above 0"),
        (lambda: soft_best_of_n(ONE, ONE, [math.nan]), "finite and above 0"),
    ],
)
def test_wrong_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
