"""Bootstrap intervals of a mean, for rows that stand alone and for rows that come in clusters.

The percentile bootstrap (Efron and Tibshirani 1993, chapter 13), drawing whole clusters where
rows share a prompt: rows of one prompt resemble each other, and an interval that took them for
independent would be too short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

SHARE = (0.0, 1.0)  # bounds of a mean of shares
# Draws are made in blocks, so that memory stays near this many numbers whatever n and C are.
_BLOCK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its interval; the bounds are NaN where one cluster is all there is.

    `rows` and `clusters` say what it rests on.
    """

    mean: float
    low: float
    high: float
    rows: int
    clusters: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def bootstrap_mean(
    values: ArrayLike,
    clusters: Sequence[object] | NDArray | None = None,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """The mean of `values` (shape (B,), any unit) over rows, and its bootstrap interval.

    With `clusters` (B labels, hashable and sortable among themselves) whole clusters are drawn,
    and each draw's mean is its sum over its row count. Draws are stretched about the mean by
    sqrt(C / (C - 1)), C the number of clusters: resampling C clusters gives the variance with
    divisor C, which is too small by that factor. What a mean cannot leave, `bounds`, cuts the
    interval, which the stretching could carry beyond.

    Raises:
        ValueError: no rows, a value that is not finite, labels of another length, a level
            outside (0, 1), or n below 1.
    """
    values_B = np.asarray(values, dtype=np.float64)
    if values_B.ndim != 1 or values_B.size == 0:
        raise ValueError(f"values: one number a row and at least one row, not {values_B.shape}")
    if not np.isfinite(values_B).all():
        raise ValueError(f"values: row {int(np.argmin(np.isfinite(values_B)))} is not finite")
    if not 0 < level < 1:
        raise ValueError(f"level: between 0 and 1, not {level}")
    if n < 1:
        raise ValueError(f"n: at least one draw, not {n}")
    sums_C, counts_C = _cluster_sums(values_B, clusters)
    count = sums_C.size
    mean = float(values_B.mean())
    if count == 1:
        return Interval(mean, float("nan"), float("nan"), values_B.size, 1)
    means_n = _draw_means(sums_C, counts_C, n, np.random.default_rng(seed))
    stretched_n = mean + (means_n - mean) * np.sqrt(count / (count - 1))
    low, high = np.clip(np.quantile(stretched_n, [(1 - level) / 2, (1 + level) / 2]), *bounds)
    return Interval(mean, float(low), float(high), values_B.size, count)


def paired_difference(
    before: ArrayLike,
    after: ArrayLike,
    clusters: Sequence[object] | NDArray | None = None,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The interval of mean(after - before), row i of one belonging to row i of the other.

    Pairing takes out what the two share (an easy prompt is easy both times), so that the
    interval is shorter than that of two independent means.

    Raises:
        ValueError: as `bootstrap_mean`, and where the two differ in length.
    """
    before_B = np.asarray(before, dtype=np.float64)
    after_B = np.asarray(after, dtype=np.float64)
    if before_B.shape != after_B.shape:
        raise ValueError(f"before and after: one length, not {before_B.shape} and {after_B.shape}")
    return bootstrap_mean(after_B - before_B, clusters, n, level, seed)


def _cluster_sums(
    values_B: NDArray[np.float64], clusters: Sequence[object] | NDArray | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and row count of each cluster, both (C,); without labels every row is its own."""
    if clusters is None:
        return values_B, np.ones_like(values_B)
    if len(clusters) != values_B.size:
        raise ValueError(f"clusters: {len(clusters)} labels for {values_B.size} values")
    _, index_B = np.unique(np.asarray(clusters), return_inverse=True)
    sums_C = np.bincount(index_B, weights=values_B).astype(np.float64)
    return sums_C, np.bincount(index_B).astype(np.float64)


def _draw_means(
    sums_C: NDArray[np.float64],
    counts_C: NDArray[np.float64],
    n: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """n means (n,), each over C clusters drawn with replacement."""
    clusters = sums_C.size
    step = max(1, _BLOCK // clusters)
    means = []
    for start in range(0, n, step):
        drawn = rng.integers(clusters, size=(min(step, n - start), clusters))
        means.append(sums_C[drawn].sum(axis=1) / counts_C[drawn].sum(axis=1))
    return np.concatenate(means)
