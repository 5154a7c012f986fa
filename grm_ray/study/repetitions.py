"""Means over repetitions of a training, with intervals that count its seeds beside the prompts.

An interval over prompts alone says what other prompts would give these very models. Whether a
method is better is a question about models not yet trained, and they scatter with their seeds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from grm_ray.study.intervals import Interval

# Of Student's law: beyond it the normal one is the same to four digits.
_MANY = 10_000
_GRID = 20_001


@dataclass(frozen=True)
class Repeated:
    """A mean over S repetitions and B rows.

    Attributes:
        interval: of another S repetitions on other prompts; NaN bounds where one prompt is all.
        each: the mean of each repetition.
        detectable: the smallest true mean whose interval leaves out 0 in about four of five cases
            (`power`); NaN where no mean can be as large.
    """

    interval: Interval
    each: tuple[float, ...]
    detectable: float


def mean_over(
    values_SB: ArrayLike,
    clusters: Sequence[object] | NDArray | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    level: float = 0.95,
    power: float = 0.8,
) -> Repeated:
    """The mean of `values_SB`, row b of each of S >= 2 repetitions the same row, and its interval.

    Repetitions s and prompts i are crossed: x = mu + seed_s + prompt_i + both_si. Three estimates
    of a variance of the mean, of S prompt means m_s, and of C prompts' parts (d_si is what prompt i
    takes the mean of repetition s from m_s, 0 on average; d_i its mean over s):

        A  = sum_s (m_s - m)^2 / (S (S - 1))                     seed / S + both / (S C)
        B  = C / (C - 1) sum_i d_i^2                             prompt / C + both / (S C)
        AB = C / (C - 1) sum_si (d_si - d_i)^2 / (S (S - 1))     both / (S C)

    B is what the bootstrap over prompts of the mean repetition finds. A + B would count `both`
    twice, so AB goes off. A rests on S - 1 degrees of freedom: its quantile is Student's, and the
    half-width h adds those of the two parts as squares (Howe 1974, JASA 69, page 789):

        h^2 = max(t_{S-1}^2 A + t_{C-1}^2 max(B - AB, 0),  t_{C-1}^2 B)

    Exact where one part is all, and wider than needed in between; a Welch-Satterthwaite degree
    would be too sure whenever three seeds happen to agree. With S = 2, t_1 = 12.7: such an
    interval is wide, and its width mostly chance.

    Args:
        clusters: the prompt of each row, as `intervals.bootstrap_mean` takes them.
        bounds: what a mean cannot leave; the interval is cut there.

    Raises:
        ValueError: fewer than two repetitions, no rows, a value that is not finite, or labels of
            another length.
    """
    values_SB = np.asarray(values_SB, dtype=np.float64)
    if values_SB.ndim != 2 or values_SB.shape[0] < 2 or values_SB.shape[1] == 0:
        raise ValueError(f"values: two repetitions or more of rows, not {values_SB.shape}")
    if not np.isfinite(values_SB).all():
        raise ValueError("values: finite numbers only")
    count, rows = values_SB.shape
    means_S = values_SB.mean(axis=1)
    mean = float(means_S.mean())
    parts_SC = _parts(values_SB - means_S[:, None], clusters)
    prompts = parts_SC.shape[1]
    if prompts == 1:
        nan = float("nan")
        return Repeated(Interval(mean, nan, nan, rows, 1), tuple(means_S.tolist()), nan)
    parts_C = parts_SC.mean(axis=0)
    few = prompts / (prompts - 1)
    seeds = float(means_S.var(ddof=1)) / count
    over_prompts = few * float(np.square(parts_C).sum())
    both = few * float(np.square(parts_SC - parts_C).sum()) / (count * (count - 1))
    alone = max(over_prompts - both, 0.0)
    t_seeds = student((1 + level) / 2, count - 1)
    t_prompts = student((1 + level) / 2, prompts - 1)
    half = math.sqrt(max(t_seeds**2 * seeds + t_prompts**2 * alone, t_prompts**2 * over_prompts))
    error = math.sqrt(max(seeds + alone, over_prompts))
    low, high = max(mean - half, bounds[0]), min(mean + half, bounds[1])
    shows = half + NormalDist().inv_cdf(power) * error
    return Repeated(
        Interval(mean, low, high, rows, prompts),
        tuple(means_S.tolist()),
        shows if shows <= bounds[1] else float("nan"),
    )


@functools.cache
def student(share: float, degrees: float) -> float:
    """Quantile of Student's t law: with `t = sqrt(v) tan(a)` its density is cos(a)^(v - 1).

    Raises:
        ValueError: a share outside (0, 1) or less than one degree of freedom.
    """
    if not 0 < share < 1 or degrees < 1:
        raise ValueError(f"share in (0, 1) and degrees from 1, not {share} and {degrees}")
    if degrees > _MANY:
        return NormalDist().inv_cdf(share)
    angles = np.linspace(-np.pi / 2, np.pi / 2, _GRID)
    density = np.clip(np.cos(angles), 0, None) ** (degrees - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(degrees) * math.tan(float(np.interp(share, below / below[-1], angles)))


def _parts(
    deviations_SB: NDArray[np.float64], clusters: Sequence[object] | NDArray | None
) -> NDArray[np.float64]:
    """What each prompt adds to each repetition's mean, `(S, C)`."""
    rows = deviations_SB.shape[1]
    if clusters is None:
        return deviations_SB / rows
    if len(clusters) != rows:
        raise ValueError(f"clusters: {len(clusters)} labels for {rows} rows")
    _, index_B = np.unique(np.asarray(clusters), return_inverse=True)
    return np.stack([np.bincount(index_B, weights=row) for row in deviations_SB]) / rows
