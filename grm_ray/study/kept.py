"""How much of the highest gain is left at the end, with an interval over prompts and seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from grm_ray.study.intervals import Interval
from grm_ray.study.overoptimization import kept_share

_NAN = float("nan")
# Draws in which the peak is not above the start: with more of them the share has no bounds.
_MOST_WITHOUT_GAIN = 0.025
_NO_GAIN = "the highest gain is not clearly above 0"


@dataclass(frozen=True)
class KeptInterval:
    """The share, and bounds that are NaN where a `note` says why: then it is `kept_share`'s."""

    share: Interval
    note: str


def bootstrap_kept(
    values_SP: ArrayLike, baseline_P: ArrayLike, n: int = 2000, level: float = 0.95, seed: int = 0
) -> KeptInterval:
    """`(end - baseline) / (peak - baseline)` over P prompts, and its interval.

    The highest of S noisy means is too high, and a run that lost nothing would seem to have lost
    some. So the prompts are dealt into two halves, each measured at the peak of the other, as the
    fall of `bootstrap_peak` is; a peak picked wrongly is lower than the true one, so the share errs
    towards 1 and may pass it. Then prompts are drawn with replacement, each with its two gains; the
    peaks stay where they are, so that of simulated plateaus 8 to 10 % of the intervals miss 1.

    Args:
        values_SP: the reward of each prompt at each evaluation after the start, the last row the
            end; or `(R, S, P)`, the same of R repetitions on the same prompts, which are averaged
            and drawn with replacement too. Few repetitions make that part of the interval short.
        baseline_P: the reward of each prompt under the start; or `(R, P)`.

    Raises:
        ValueError: no evaluation or prompt, lengths that differ, a number that is not finite, a
            level outside (0, 1), or n below 1.
    """
    values = np.asarray(values_SP, dtype=np.float64)
    baseline = np.asarray(baseline_P, dtype=np.float64)
    expected = (*values.shape[:-2], *values.shape[-1:])
    if values.ndim not in (2, 3) or values.size == 0 or baseline.shape != expected:
        raise ValueError(
            "values and baseline: evaluations of one prompt or more, and one number a prompt, "
            f"not {values.shape} and {baseline.shape}"
        )
    if not (np.isfinite(values).all() and np.isfinite(baseline).all()):
        raise ValueError("values and baseline: finite numbers only")
    if not 0 < level < 1 or n < 1:
        raise ValueError(f"level between 0 and 1 and n of 1 or more, not {level} and {n}")
    gains_RSP = (values - baseline[..., None, :]).reshape(-1, *values.shape[-2:])
    repetitions, _, prompts = gains_RSP.shape
    means_S = values.mean(axis=-1).reshape(repetitions, -1).mean(axis=0)
    kept = kept_share(means_S, float(baseline.mean()))
    without = Interval(kept.share, _NAN, _NAN, prompts, prompts)
    if kept.note:
        return KeptInterval(without, kept.note)
    if prompts == 1:
        return KeptInterval(without, "there is only one prompt")
    gains_SP = gains_RSP.mean(axis=0)
    rng = np.random.default_rng(seed)
    peak_RP = np.empty((repetitions, prompts))
    halves = np.array_split(rng.permutation(prompts), 2)
    for measured, picking in (halves, halves[::-1]):
        picked = gains_SP[:, picking].mean(axis=1).argmax()
        peak_RP[:, measured] = gains_RSP[:, picked, measured]
    if peak_RP.mean() <= 0:
        return KeptInterval(without, _NO_GAIN)
    times_nP = rng.multinomial(prompts, np.full(prompts, 1 / prompts), n)
    # One repetition is drawn once, whatever chance says.
    times_nR = rng.multinomial(repetitions, np.full(repetitions, 1 / repetitions), n)
    end_n, peak_n = (
        ((times_nR @ gains_RP) * times_nP).sum(axis=1) for gains_RP in (gains_RSP[:, -1], peak_RP)
    )
    known_n = peak_n > 0
    if 1 - known_n.mean() > _MOST_WITHOUT_GAIN:
        return KeptInterval(without, _NO_GAIN)
    low, high = np.quantile(end_n[known_n] / peak_n[known_n], [(1 - level) / 2, (1 + level) / 2])
    share = float(gains_SP[-1].mean() / peak_RP.mean())
    return KeptInterval(Interval(share, float(low), float(high), prompts, prompts), "")
