import math
import time

import numpy as np
import pytest

from grm_ray.study.intervals import SHARE, bootstrap_mean, paired_difference


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    trials = 400
    hits = 0
    for seed in range(trials):
        interval = bootstrap_mean(rng.exponential(1.0, size=60), n=500, seed=seed)
        hits += interval.low <= 1.0 <= interval.high
    # 95 % less what a skewed law takes off at 60 rows, and three standard errors of the count.
    assert 0.90 <= hits / trials <= 0.985


def test_it_covers_with_clusters_where_rows_alone_would_not():
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(40), 5)
    clustered = alone = 0
    for seed in range(200):
        values = rng.normal(size=40)[labels] + 0.1 * rng.normal(size=200)
        with_labels = bootstrap_mean(values, labels, n=400, seed=seed)
        without = bootstrap_mean(values, n=400, seed=seed)
        clustered += with_labels.low <= 0 <= with_labels.high
        alone += without.low <= 0 <= without.high
    assert clustered / 200 >= 0.89
    assert alone / 200 <= 0.75


def test_clusters_widen_the_interval_and_keep_the_mean():
    values = np.repeat(np.random.default_rng(0).normal(size=20), 4)
    labels = [f"prompt {i}" for i in range(20) for _ in range(4)]
    wide, narrow = bootstrap_mean(values, labels), bootstrap_mean(values)
    assert wide.mean == pytest.approx(narrow.mean) == pytest.approx(values.mean())
    assert wide.high - wide.low > 1.6 * (narrow.high - narrow.low)
    assert (wide.rows, wide.clusters) == (80, 20)


def test_clusters_of_one_row_change_nothing_but_the_order_of_draws():
    values = np.random.default_rng(3).normal(size=50)
    assert bootstrap_mean(values, np.arange(50)) == bootstrap_mean(values)


def test_pairing_takes_out_what_rows_share():
    rng = np.random.default_rng(4)
    hard = 10 * rng.normal(size=30)
    before, after = hard + rng.normal(size=30), hard + 1.0 + rng.normal(size=30)
    gain = paired_difference(before, after)
    assert 0 < gain.low < 1 < gain.high
    lone = bootstrap_mean(after)
    assert gain.high - gain.low < (lone.high - lone.low) / 3


def test_the_same_seed_gives_the_same_interval():
    values = np.arange(30.0)
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(values, seed=5)
    assert bootstrap_mean(values, seed=5) != bootstrap_mean(values, seed=6)


def test_one_cluster_has_a_mean_and_no_interval():
    interval = bootstrap_mean([1.0, 3.0], ["a", "a"])
    assert interval.mean == 2.0
    assert math.isnan(interval.low) and math.isnan(interval.high)


def test_a_share_s_interval_stays_between_none_and_all():
    won = [1.0, 1.0, 1.0, 0.0]
    assert bootstrap_mean(won).high > 1
    found = bootstrap_mean(won, bounds=SHARE)
    assert (found.high, found.low) == (1.0, bootstrap_mean(won).low)


def test_ten_thousand_rows_take_no_more_than_some_seconds():
    start = time.perf_counter()
    bootstrap_mean(np.random.default_rng(0).normal(size=10_000))
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bootstrap_mean([]), "at least one row"),
        (lambda: bootstrap_mean([1.0, math.nan]), "row 1 is not finite"),
        (lambda: bootstrap_mean([1.0, 2.0], ["a"]), "1 labels for 2 values"),
        (lambda: bootstrap_mean([1.0, 2.0], level=95), "level"),
        (lambda: paired_difference([1.0], [1.0, 2.0]), "one length"),
    ],
)
def test_wrong_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
