import numpy as np
import pytest

from grm_ray.study.kept import bootstrap_kept
from grm_ray.study.overoptimization import kept_share


def rewards(means, prompts=200, noise=0.3, seed=0):
    """Paired rewards whose means over prompts are exactly `means`, the start's 0."""
    rng = np.random.default_rng(seed)
    drawn_SP = rng.normal(0, noise, (len(means), prompts))
    return drawn_SP - drawn_SP.mean(axis=1, keepdims=True) + np.asarray(means)[:, None]


def test_where_the_peak_is_plain_the_share_is_that_of_the_means():
    values_SP = rewards([0.5, 1.0, 0.4])
    found = bootstrap_kept(values_SP, np.zeros(200))
    assert found.share.mean == pytest.approx(0.4)
    assert found.share.mean == pytest.approx(kept_share(values_SP.mean(axis=1), 0.0).share)
    assert 0.3 < found.share.low < 0.4 < found.share.high < 0.5
    assert found.note == "" and found.share.clusters == 200


def test_what_a_prompt_adds_to_all_evaluations_is_paired_away():
    easy_P = np.random.default_rng(1).normal(0, 50, 200)
    values_SP = rewards([0.5, 1.0, 0.4])
    plain = bootstrap_kept(values_SP, np.zeros(200)).share
    shifted = bootstrap_kept(values_SP + easy_P, easy_P).share
    assert (shifted.low, shifted.high) == pytest.approx((plain.low, plain.high))


def test_a_run_that_is_highest_at_its_end_kept_all():
    found = bootstrap_kept(rewards([0.2, 0.5, 1.0]), np.zeros(200))
    assert (found.share.mean, found.share.low, found.share.high) == (1.0, 1.0, 1.0)


def test_a_plateau_is_not_taken_for_a_loss():
    # The plain share is below 1 on nearly every plateau: the highest of ten noisy means is high.
    rng = np.random.default_rng(0)
    plain, inside = [], []
    for seed in range(100):
        values_SP = 1 + rng.normal(0, 0.5, (10, 120))
        plain.append(kept_share(values_SP.mean(axis=1), 0.0).share)
        found = bootstrap_kept(values_SP, np.zeros(120), n=300, seed=seed).share
        inside.append(found.low <= 1 <= found.high)
    assert max(plain) <= 1 and np.mean(plain) < 0.95 and np.mean(inside) >= 0.85


@pytest.mark.parametrize(
    ("means", "prompts", "note"),
    [
        ([-0.1, -0.2], 200, "never above the baseline"),
        ([0.001, 0.0005], 200, "not clearly above 0"),
        ([1.0, 0.5], 1, "one prompt"),
    ],
)
def test_without_a_gain_to_speak_of_there_is_a_reason_and_no_bounds(means, prompts, note):
    found = bootstrap_kept(rewards(means, prompts, noise=0.8), np.zeros(prompts))
    assert note in found.note
    assert np.isnan(found.share.low) and np.isnan(found.share.high)


@pytest.mark.parametrize(
    ("values", "baseline", "more"),
    [
        ([[1.0, 2.0]], [1.0], {}),
        ([], [], {}),
        ([[1.0, np.nan]], [0.0, 0.0], {}),
        ([[1.0, 2.0]], [0.0, 0.0], {"level": 1.0}),
        ([[1.0, 2.0]], [0.0, 0.0], {"n": 0}),
    ],
)
def test_wrong_input_is_refused(values, baseline, more):
    with pytest.raises(ValueError, match="values and baseline|level between"):
        bootstrap_kept(values, baseline, **more)


def test_repetitions_are_averaged_and_drawn():
    one = rewards([0.5, 1.0, 0.4])
    alone = bootstrap_kept(one, np.zeros(200))
    twice = bootstrap_kept(np.stack([one, one]), np.zeros((2, 200)))
    assert twice.share.mean == pytest.approx(alone.share.mean)
    assert (twice.share.low, twice.share.high) == pytest.approx(
        (alone.share.low, alone.share.high), abs=0.02
    )
    # Seeds that differ add their scatter to that of the prompts.
    apart = np.stack([rewards([0.5, 1.0, end], seed=i) for i, end in enumerate((0.1, 0.4, 0.7))])
    found = bootstrap_kept(apart, np.zeros((3, 200)))
    assert found.share.mean == pytest.approx(0.4)
    assert found.share.high - found.share.low > 2 * (alone.share.high - alone.share.low)


def test_repetitions_have_a_baseline_each():
    with pytest.raises(ValueError, match=r"not \(2, 3, 200\) and \(200,\)"):
        bootstrap_kept(np.ones((2, 3, 200)), np.zeros(200))
