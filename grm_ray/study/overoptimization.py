"""Over-optimisation: where does the gold reward peak, what is lost after, is it falling now?

A policy that is trained against a proxy reward gains gold reward at first and loses it later
(Gao et al. 2023, arXiv 2210.10760). S evaluations in the order of training, P prompts; d is
sqrt(KL(policy || start)), KL in nats, rewards in one unit throughout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from grm_ray.study.intervals import Interval, bootstrap_mean

Form = Literal["log", "quadratic"]

_NAN = float("nan")
# Draws are made in blocks, so that memory stays near this many numbers whatever n and P are.
_BLOCK = 4_000_000
# Singular values below this share of the largest: the points do not tell a from b.
_SINGULAR = 1e-10
# The largest exponent before exp overflows, rounded down.
_HIGHEST = 700.0


@dataclass(frozen=True)
class Fit:
    """A curve R(d), the reward above that of the start, fitted by least squares.

    Attributes:
        a: gain per d near the start; NaN, as b and rmse, where the points do not determine it.
        b: how fast the gain is lost.
        rmse: root of the mean squared residual, over the points used, by their weights.
        peak: d of the highest R; NaN where the curve has none above d = 0.
        peak_value: R there, above the baseline.
        identified: the data show the peak; otherwise it is extrapolation at best, and `reason`
            says why.
    """

    form: Form
    a: float
    b: float
    rmse: float
    peak: float
    peak_value: float
    identified: bool
    reason: str


@dataclass(frozen=True)
class Peak:
    """Where the mean over prompts is highest, and how far the last evaluation is from it.

    Attributes:
        evaluation: index of the highest mean, the first of equals.
        at: its place, in the unit of `bootstrap_peak`'s x; `mean` is that of all prompts.
        fall: last evaluation less the peak, in the unit of the values; negative is a loss.
    """

    evaluation: int
    at: Interval
    fall: Interval


@dataclass(frozen=True)
class Kept:
    """The share of the highest gain that the last evaluation still has; NaN with a `note`."""

    share: float
    note: str


def fit_curve(
    kl_S: ArrayLike,
    values_S: ArrayLike,
    baseline: float,
    form: Form = "log",
    weights_S: ArrayLike | None = None,
) -> Fit:
    """The curve R(d) through S evaluations, linear in a and b, so by linear least squares.

        log         R(d) = d (a - b log d)    peak at exp(a / b - 1), value b d*
        quadratic   R(d) = d (a - b d)        peak at a / (2 b),      value a^2 / (4 b)

    Gao et al. 2023 (arXiv 2210.10760, section 1) find the first for RL and the second for
    best-of-n; Rafailov et al. 2024 (arXiv 2406.02900) the first for direct alignment.

    Args:
        kl_S: KL(policy || start) in nats; points at 0 say nothing about a and b and are left out.
        values_S: the reward at each, not yet relative to the start.
        baseline: the reward of the start, at d = 0, which is taken off the values.
        weights_S: of each squared residual, 1 / variance for one; a point of weight 0 is left out.

    Raises:
        ValueError: lengths that differ, a number that is not finite, a KL or weight below 0, or
            an unknown form.
    """
    kl_S, values_S = _rows("kl", kl_S), _rows("values", values_S)
    weights_S = np.ones_like(kl_S) if weights_S is None else _rows("weights", weights_S)
    if not kl_S.shape == values_S.shape == weights_S.shape:
        raise ValueError(
            "kl, values and weights: one length, "
            f"not {kl_S.size}, {values_S.size} and {weights_S.size}"
        )
    if kl_S.size and (kl_S.min() < 0 or weights_S.min() < 0):
        raise ValueError("kl and weights: none below 0")
    if not math.isfinite(baseline):
        raise ValueError(f"baseline: a finite number, not {baseline}")
    used_S = (kl_S > 0) & (weights_S > 0)
    d_S, weights_S = np.sqrt(kl_S[used_S]), weights_S[used_S]
    gains_S = values_S[used_S] - baseline
    columns_S2 = _columns(d_S, form)
    if d_S.size < 3:
        points = f"{d_S.size} point{'s'[: d_S.size != 1]}"
        return _unfitted(form, f"{points} with KL and weight above 0, but 3 are needed")
    roots_S = np.sqrt(weights_S)
    lengths_2 = np.linalg.norm(columns_S2 * roots_S[:, None], axis=0)
    # Columns of length 1, so that "singular" does not hang on the unit of d.
    unit_S2 = columns_S2 * roots_S[:, None] / np.where(lengths_2 > 0, lengths_2, 1)
    solution_2, _, rank, _ = np.linalg.lstsq(unit_S2, gains_S * roots_S, rcond=_SINGULAR)
    if rank < 2:
        return _unfitted(form, "all points have the same KL, so that a and b cannot be determined")
    coefficients_2 = solution_2 / lengths_2
    a, b = (float(number) for number in coefficients_2)
    residuals_S = gains_S - columns_S2 @ coefficients_2
    rmse = math.sqrt(float(np.average(np.square(residuals_S), weights=weights_S)))
    peak, value = _peak(a, b, form)
    reason = _doubt(a, b, peak, d_S)
    return Fit(form, a, b, rmse, peak, value, not reason, reason)


def bootstrap_fitted_peak(
    kl_S: ArrayLike,
    values_SP: ArrayLike,
    baseline_P: ArrayLike,
    form: Form = "log",
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The d at which the fitted curve is highest within the evaluated range, and its interval.

    Prompts are drawn with replacement and the curve is fitted to the means of each draw. A curve
    that still rises at the largest d of the data counts as highest there, one that only falls as
    highest at 0: a bound equal to the largest d means "there or later".

    Args:
        kl_S: as `fit_curve` takes them.
        values_SP: the reward of each prompt at each evaluation.
        baseline_P: the reward of each prompt under the start.

    Raises:
        ValueError: as `fit_curve` and `bootstrap_peak`.
    """
    kl_S, values_SP = _rows("kl", kl_S), _table(values_SP, n, level)
    baseline_P = _rows("baseline", baseline_P)
    if baseline_P.size != values_SP.shape[1]:
        raise ValueError(
            f"baseline: one number a prompt, not {baseline_P.size} for {values_SP.shape[1]}"
        )
    highest = float(np.sqrt(kl_S.max(initial=0.0)))

    def place(means: NDArray[np.float64]) -> float:
        fit = fit_curve(kl_S, means[1:], float(means[0]), form)
        if math.isnan(fit.a):
            return _NAN
        inside = [fit.peak] if 0 < fit.peak < highest else []
        candidates = np.asarray([0.0, highest, *inside])
        curve = _columns(candidates, form) @ np.asarray([fit.a, fit.b])
        return float(candidates[int(np.argmax(curve))])

    rows = np.concatenate([baseline_P[None], values_SP])
    at = place(rows.mean(axis=1))
    places_n = [place(means) for block in _draws(rows, n, seed) for means in block]
    return _percentiles(at, np.asarray(places_n), rows.shape[1], level)


def bootstrap_peak(
    x_S: ArrayLike, values_SP: ArrayLike, n: int = 2000, level: float = 0.95, seed: int = 0
) -> Peak:
    """The evaluation with the highest mean over prompts, without a curve, and the fall since.

    Its place: prompts are drawn with replacement, and the highest mean of each draw is looked up.

    The fall: the highest of S noisy means is too high, and a fall from it would show for a flat
    curve as well. So the prompts are dealt into two halves, each measured at the peak of the
    other. A peak picked wrongly is lower than the true one, so the fall errs towards 0.

    Args:
        x_S: place of each evaluation, any unit: step, d.
        values_SP: the reward of each prompt at each evaluation, the last row the end.

    Raises:
        ValueError: no evaluation or prompt, lengths that differ, a number that is not finite, a
            level outside (0, 1), or n below 1.
    """
    x_S, values_SP = _rows("x", x_S), _table(values_SP, n, level)
    if x_S.size != values_SP.shape[0]:
        raise ValueError(f"x: one number an evaluation, not {x_S.size} for {values_SP.shape[0]}")
    prompts = values_SP.shape[1]
    evaluation = int(np.argmax(values_SP.mean(axis=1)))
    draws = np.concatenate([block.argmax(axis=1) for block in _draws(values_SP, n, seed)])
    at = _percentiles(float(x_S[evaluation]), x_S[draws], prompts, level)
    if prompts == 1:
        fall = float(values_SP[-1, 0] - values_SP[evaluation, 0])
        return Peak(evaluation, at, Interval(fall, _NAN, _NAN, 1, 1))
    falls_P = np.empty(prompts)
    halves = np.array_split(np.random.default_rng(seed).permutation(prompts), 2)
    for measured, picking in (halves, halves[::-1]):
        peak = int(np.argmax(values_SP[:, picking].mean(axis=1)))
        falls_P[measured] = values_SP[-1, measured] - values_SP[peak, measured]
    return Peak(evaluation, at, bootstrap_mean(falls_P, n=n, level=level, seed=seed))


def kept_share(values_S: ArrayLike, baseline: float) -> Kept:
    """`(end - baseline) / (peak - baseline)` of S evaluations: 1 nothing lost, below 0 a harm.

    Args:
        baseline: the reward of the start, in the unit of the values.

    Raises:
        ValueError: no evaluation, or a number that is not finite.
    """
    values_S = _rows("values", values_S)
    if values_S.size == 0:
        raise ValueError("values: at least one evaluation")
    if not math.isfinite(baseline):
        raise ValueError(f"baseline: a finite number, not {baseline}")
    gain = float(values_S.max()) - baseline
    if gain <= 0:
        return Kept(_NAN, "it is never above the baseline: there is no gain to keep")
    return Kept((float(values_S[-1]) - baseline) / gain, "")


def is_overoptimizing(proxy_S: ArrayLike, gold_S: ArrayLike, patience: int) -> bool:
    """Whether gold fell at each of the last `patience` evaluations while proxy rose across them.

    Both changes are taken from the evaluation before those to the last one, so that it is False
    until there are `patience + 1`. The proxy may dip in between; standing still is no fall.

    Raises:
        ValueError: lengths that differ, a number that is not finite, or patience below 1.
    """
    proxy_S, gold_S = _rows("proxy", proxy_S), _rows("gold", gold_S)
    if proxy_S.size != gold_S.size:
        raise ValueError(f"proxy and gold: one length, not {proxy_S.size} and {gold_S.size}")
    if patience < 1:
        raise ValueError(f"patience: 1 or more, not {patience}")
    if gold_S.size <= patience:
        return False
    before = -patience - 1
    return bool((np.diff(gold_S[before:]) < 0).all() and proxy_S[-1] > proxy_S[before])


def _columns(d_S: NDArray[np.float64], form: Form) -> NDArray[np.float64]:
    """`(S, 2)`: what a and b are multiplied with in R(d); 0 at d = 0."""
    if form == "log":
        return np.stack([d_S, -d_S * np.log(np.where(d_S > 0, d_S, 1))], axis=1)
    if form == "quadratic":
        return np.stack([d_S, -(d_S**2)], axis=1)
    raise ValueError(f"form: 'log' or 'quadratic', not {form!r}")


def _peak(a: float, b: float, form: Form) -> tuple[float, float]:
    """d* and R(d*), NaN where no d above 0 is a maximum."""
    if b <= 0 or (form == "quadratic" and a <= 0):
        return _NAN, _NAN
    if form == "quadratic":
        return a / (2 * b), a**2 / (4 * b)
    exponent = a / b - 1
    peak = math.exp(exponent) if exponent < _HIGHEST else math.inf
    return peak, b * peak


def _doubt(a: float, b: float, peak: float, d_S: NDArray[np.float64]) -> str:
    """Why the data do not show the peak; empty where they do."""
    if b <= 0:
        return f"b = {b:.3g} is not above 0: the curve has no peak"
    if math.isnan(peak):
        return f"a = {a:.3g} is not above 0: the curve falls from the start"
    if not (d_S > peak).any():
        return f"no point beyond the predicted peak at d = {peak:.3g}"
    if not (d_S < peak).any():
        return f"no point before the predicted peak at d = {peak:.3g}"
    return ""


def _unfitted(form: Form, reason: str) -> Fit:
    return Fit(form, _NAN, _NAN, _NAN, _NAN, _NAN, False, reason)


def _draws(values_SP: NDArray[np.float64], n: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """n rows of S means in blocks, each over P prompts drawn with replacement."""
    rng = np.random.default_rng(seed)
    prompts = values_SP.shape[1]
    step = max(1, _BLOCK // prompts)
    for start in range(0, n, step):
        times_nP = rng.multinomial(prompts, np.full(prompts, 1 / prompts), min(step, n - start))
        yield times_nP @ values_SP.T / prompts


def _percentiles(
    place: float, places_n: NDArray[np.float64], prompts: int, level: float
) -> Interval:
    """Bounds that are themselves places drawn; NaN where one prompt is all there is."""
    if prompts == 1 or math.isnan(place):
        return Interval(place, _NAN, _NAN, prompts, prompts)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(places_n, tails, method="inverted_cdf")
    return Interval(place, float(low), float(high), prompts, prompts)


def _rows(name: str, numbers: ArrayLike) -> NDArray[np.float64]:
    numbers = np.asarray(numbers, dtype=np.float64)
    if numbers.ndim != 1:
        raise ValueError(f"{name}: numbers in a row, not {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name}[{int(np.argmin(np.isfinite(numbers)))}] is not finite")
    return numbers


def _table(values_SP: ArrayLike, n: int, level: float) -> NDArray[np.float64]:
    values_SP = np.asarray(values_SP, dtype=np.float64)
    if values_SP.ndim != 2 or values_SP.size == 0:
        raise ValueError(f"values: evaluations of one prompt or more, not {values_SP.shape}")
    if not np.isfinite(values_SP).all():
        raise ValueError("values: finite numbers only")
    if not 0 < level < 1:
        raise ValueError(f"level: between 0 and 1, not {level}")
    if n < 1:
        raise ValueError(f"n: at least one draw, not {n}")
    return values_SP
