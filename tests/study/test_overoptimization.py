import math

import numpy as np
import pytest

from grm_ray.study.overoptimization import (
    bootstrap_fitted_peak,
    bootstrap_peak,
    fit_curve,
    is_overoptimizing,
    kept_share,
)

D = np.linspace(0.5, 8.0, 12)


def log_curve(d, a=1.2, b=0.5):
    return d * (a - b * np.log(d))


def quadratic(d, a=1.2, b=0.1):
    return d * (a - b * d)


def test_the_log_form_is_recovered_without_noise():
    fit = fit_curve(D**2, 3.0 + log_curve(D), baseline=3.0)
    assert (fit.a, fit.b) == pytest.approx((1.2, 0.5), abs=1e-8)
    assert fit.peak == pytest.approx(4.055200, abs=1e-6)
    assert fit.peak_value == pytest.approx(2.027600, abs=1e-6)
    assert fit.rmse < 1e-8
    assert fit.identified and fit.reason == ""


def test_the_quadratic_form_is_recovered_without_noise():
    fit = fit_curve(D**2, quadratic(D) - 2.0, baseline=-2.0, form="quadratic")
    assert (fit.a, fit.b) == pytest.approx((1.2, 0.1), abs=1e-8)
    assert (fit.peak, fit.peak_value) == pytest.approx((6.0, 3.6), abs=1e-6)
    assert fit.identified


@pytest.mark.parametrize(("form", "curve"), [("log", log_curve), ("quadratic", quadratic)])
def test_the_peak_is_the_highest_point_of_its_curve(form, curve):
    fit = fit_curve(D**2, curve(D), 0.0, form)
    d = np.linspace(0.01, 12, 100_000)
    assert fit.peak == pytest.approx(d[curve(d).argmax()], abs=1e-3)
    assert fit.peak_value == pytest.approx(curve(d).max(), abs=1e-6)


def test_each_form_fits_its_own_data_better():
    rng = np.random.default_rng(0)
    noise = 0.01 * rng.normal(size=D.size)
    for curve, own, other in ((log_curve, "log", "quadratic"), (quadratic, "quadratic", "log")):
        values = curve(D) + noise
        assert 2 * fit_curve(D**2, values, 0, own).rmse < fit_curve(D**2, values, 0, other).rmse


def test_points_at_kl_0_and_of_weight_0_do_not_count():
    plain = fit_curve(D**2, log_curve(D) + 0.1 * np.sin(9 * D), 0.0)
    more = np.concatenate([[0.0], D**2, [4.0]])
    values = np.concatenate([[99.0], log_curve(D) + 0.1 * np.sin(9 * D), [-99.0]])
    assert fit_curve(more, values, 0.0, weights_S=[1.0] * 13 + [0.0]) == plain


def test_weights_count_as_points_do():
    values = log_curve(D) + 0.1 * np.sin(9 * D)
    weights = np.arange(1, 13)
    weighted = fit_curve(D**2, values, 0.0, weights_S=weights)
    repeated = fit_curve(np.repeat(D**2, weights), np.repeat(values, weights), 0.0)
    for name in ("a", "b", "rmse", "peak", "peak_value"):
        assert getattr(weighted, name) == pytest.approx(getattr(repeated, name), rel=1e-10)


def test_the_unit_of_d_does_not_make_a_fit_singular():
    small = 1e-5 * D
    assert fit_curve(small**2, quadratic(small, b=1e4), 0.0, "quadratic").identified


@pytest.mark.parametrize(
    ("kl", "values", "form", "words"),
    [
        ([], [], "log", "0 points"),
        ([0, 1, 4], [0.0, 1.0, 1.5], "log", "2 points"),
        ([4, 4, 4], [1.0, 1.1, 0.9], "log", "the same KL"),
        ([1, 1, 1], [1.0, 1.1, 0.9], "log", "the same KL"),
        ([4, 4, 4], [1.0, 1.1, 0.9], "quadratic", "the same KL"),
        (D**2, log_curve(D, b=-0.5), "log", "b = -0.5 is not above 0: the curve has no peak"),
        (D**2, quadratic(D, b=-0.1), "quadratic", "b = -0.1 is not above 0"),
        (D**2, quadratic(D, a=-1.2), "quadratic", "falls from the start"),
        (D[:4] ** 2, log_curve(D[:4]), "log", "no point beyond the predicted peak at d = 4.06"),
        (D[7:] ** 2, log_curve(D[7:]), "log", "no point before the predicted peak at d = 4.06"),
        (D**2, quadratic(D, b=0.01), "quadratic", "no point beyond the predicted peak at d = 60"),
        (D**2, log_curve(D, b=1e-4), "log", "no point beyond"),
    ],
)
def test_what_the_points_do_not_show_is_said(kl, values, form, words):
    fit = fit_curve(kl, values, 0.0, form)
    assert not fit.identified
    assert words in fit.reason


def test_a_fit_without_peak_keeps_its_coefficients():
    fit = fit_curve(D**2, log_curve(D, b=-0.5), 0.0)
    assert (fit.a, fit.b) == pytest.approx((1.2, -0.5), abs=1e-8)
    assert math.isnan(fit.peak) and math.isnan(fit.peak_value)
    assert math.isnan(fit_curve([1], [1.0], 0.0).a)


def evaluations(curve, prompts, seed, noise=1.0):
    """Values (S, P) about a curve over D, and of the start (P,); prompts differ in level."""
    rng = np.random.default_rng(seed)
    level_P = rng.normal(size=prompts)
    values_SP = curve(D)[:, None] + level_P + noise * rng.normal(size=(D.size, prompts))
    return values_SP, level_P + noise * rng.normal(size=prompts)


@pytest.mark.parametrize(
    ("form", "curve", "peak"), [("log", log_curve, 4.0552), ("quadratic", quadratic, 6.0)]
)
def test_the_interval_of_the_fitted_peak_covers_it(form, curve, peak):
    hits = 0
    for seed in range(60):
        values, baseline = evaluations(curve, 80, seed)
        interval = bootstrap_fitted_peak(D**2, values, baseline, form, n=100, seed=seed)
        hits += interval.low <= peak <= interval.high
    # 95 %, less three standard errors of the count.
    assert hits / 60 >= 0.86


def test_a_curve_that_still_rises_peaks_at_the_end_of_the_data():
    values, baseline = evaluations(lambda d: d, 100, seed=0, noise=0.1)
    interval = bootstrap_fitted_peak(D**2, values, baseline, n=100)
    assert (interval.mean, interval.high) == (8.0, 8.0)
    values, baseline = evaluations(lambda d: -d, 100, seed=0, noise=0.1)
    interval = bootstrap_fitted_peak(D**2, values, baseline, "quadratic", n=100)
    assert (interval.mean, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_too_few_points_give_no_fitted_peak():
    interval = bootstrap_fitted_peak([1, 4], np.ones((2, 5)), np.ones(5), n=10)
    assert all(math.isnan(x) for x in (interval.mean, interval.low, interval.high))


def test_the_highest_evaluation_and_the_fall_since():
    values, _ = evaluations(log_curve, 400, seed=1, noise=0.2)
    peak = bootstrap_peak(D, values)
    true = log_curve(D)
    assert peak.evaluation == values.mean(axis=1).argmax()
    assert peak.at.low <= D[true.argmax()] <= peak.at.high
    assert peak.at.mean == D[peak.evaluation]
    assert peak.fall.low < true[-1] - true.max() < peak.fall.high < 0
    assert (peak.at.rows, peak.fall.rows) == (400, 400)


def test_noise_about_a_flat_curve_is_no_fall():
    falls = 0
    for seed in range(200):
        values = np.random.default_rng(seed).normal(size=(12, 60))
        falls += bootstrap_peak(D, values, n=200, seed=seed).fall.high < 0
    # 2.5 % and three standard errors of the count; the highest mean taken as it is gives over 15 %.
    assert falls / 200 <= 0.06


def test_a_curve_that_rises_to_the_end_has_no_fall():
    values, _ = evaluations(lambda d: d, 50, seed=2, noise=0.01)
    peak = bootstrap_peak(range(12), values, n=100)
    assert (peak.evaluation, peak.at.low, peak.at.high) == (11, 11, 11)
    assert (peak.fall.mean, peak.fall.low, peak.fall.high) == (0, 0, 0)


def test_the_same_seed_gives_the_same_intervals():
    values, baseline = evaluations(log_curve, 30, seed=3)
    assert bootstrap_peak(D, values, n=50, seed=5) == bootstrap_peak(D, values, n=50, seed=5)
    fitted = [bootstrap_fitted_peak(D**2, values, baseline, n=50, seed=s) for s in (5, 5, 6)]
    assert fitted[0] == fitted[1] != fitted[2]


def test_one_prompt_has_a_peak_and_no_interval():
    peak = bootstrap_peak([0, 1, 2], [[1.0], [3.0], [2.5]])
    assert (peak.evaluation, peak.at.mean, peak.fall.mean) == (1, 1.0, -0.5)
    assert math.isnan(peak.at.low) and math.isnan(peak.fall.high)


def test_kept_share_by_hand():
    assert kept_share([1.0, 3.0, 2.0], baseline=0.0).share == pytest.approx(2 / 3)
    assert kept_share([1.0, 2.0, 3.0], baseline=1.0).share == 1
    assert kept_share([1.0, 0.0], baseline=0.5).share == pytest.approx(-1)
    assert kept_share([1.0, 2.0], baseline=0.0).note == ""


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.0, -1.0]])
def test_without_a_gain_there_is_nothing_to_keep(values):
    kept = kept_share(values, baseline=1.0)
    assert math.isnan(kept.share)
    assert "no gain" in kept.note


@pytest.mark.parametrize(
    ("proxy", "gold", "patience", "expected"),
    [
        ([1, 2, 3, 4], [1, 3, 2, 1], 2, True),
        ([1, 2, 3, 4], [1, 3, 2, 1], 3, False),  # gold rose first
        ([1, 2, 3, 4], [4, 3, 2, 1], 3, True),
        ([1, 2, 3, 4], [4, 3, 2, 1], 4, False),  # too few evaluations
        ([1, 5, 3, 4], [4, 3, 2, 1], 2, False),  # proxy fell across the span
        ([1, 2, 1, 4], [4, 3, 2, 1], 2, True),  # a dip of proxy within it
        ([1, 2, 3, 4], [4, 3, 3, 2], 2, False),  # gold stood still
        ([1, 2, 3, 4], [4, 3, 2, 3], 1, False),  # over by now
        ([1, 2, 2, 2], [4, 3, 2, 1], 2, False),  # proxy stood still
        ([], [], 1, False),
    ],
)
def test_overoptimization_is_gold_falling_while_proxy_rises(proxy, gold, patience, expected):
    assert is_overoptimizing(proxy, gold, patience) is expected


TWO = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fit_curve([1, 2], [1], 0.0), "one length, not 2, 1 and 2"),
        (lambda: fit_curve([1, -2], [1, 1], 0.0), "none below 0"),
        (lambda: fit_curve([1, 2], [1, 1], 0.0, weights_S=[1, -1]), "none below 0"),
        (lambda: fit_curve([1, 2], [1, math.nan], 0.0), "values\\[1\\] is not finite"),
        (lambda: fit_curve([1, 2], [1, 1], math.nan), "baseline: a finite number"),
        (lambda: fit_curve([1, 2], [1, 1], 0.0, "cubic"), "form: 'log' or 'quadratic'"),
        (lambda: fit_curve([[1, 2]], [1, 1], 0.0), "kl: numbers in a row"),
        (lambda: bootstrap_peak([1, 2, 3], TWO), "one number an evaluation, not 3 for 2"),
        (lambda: bootstrap_peak([1, 2], np.ones((2, 0))), "one prompt or more"),
        (lambda: bootstrap_peak([1, 2], TWO * math.inf), "finite numbers only"),
        (lambda: bootstrap_peak([1, 2], TWO, level=95), "level"),
        (lambda: bootstrap_peak([1, 2], TWO, n=0), "at least one draw"),
        (lambda: bootstrap_fitted_peak([1, 2], TWO, [1.0]), "one number a prompt, not 1 for 3"),
        (lambda: bootstrap_fitted_peak([1], TWO, [1.0] * 3), "one length"),
        (lambda: kept_share([], 0.0), "at least one evaluation"),
        (lambda: kept_share([1.0], math.inf), "baseline: a finite number"),
        (lambda: is_overoptimizing([1, 2], [1], 1), "one length"),
        (lambda: is_overoptimizing([1], [1], 0), "patience: 1 or more, not 0"),
        (lambda: is_overoptimizing([1, math.nan], [1, 2], 1), "proxy\\[1\\] is not finite"),
    ],
)
def test_wrong_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
