"""Which rows come when: seeded orders that a position alone restores."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np


class EpochOrder:
    """Endless pass over `count` rows, shuffled anew each epoch; `position` is rows handed out.

    The order is a function of (seed, epoch), so that a resumed run goes on with the very next row.
    """

    def __init__(self, count: int, seed: int, shuffle: bool = True) -> None:
        if count < 1:
            raise ValueError("an order needs at least one row")
        self._count = count
        self._seed = seed
        self._shuffle = shuffle

    def take(self, position: int, number: int) -> list[tuple[int, int]]:
        """`number` (row, epoch) pairs from `position` on; a batch may cross into the next epoch."""
        taken = []
        cached: tuple[int, np.ndarray] | None = None
        for at in range(position, position + number):
            epoch, within = divmod(at, self._count)
            if cached is None or cached[0] != epoch:
                cached = (epoch, self._epoch(epoch))
            taken.append((int(cached[1][within]), epoch))
        return taken

    def _epoch(self, epoch: int) -> np.ndarray:
        if not self._shuffle:
            return np.arange(self._count)
        return np.random.default_rng([self._seed, epoch]).permutation(self._count)


class MixtureOrder:
    """Endless pass over several sources' rows, numbered through: source 0's first.

    An epoch has each row of a source of weight w floor(w) times, and of the rest of w a share of
    its rows that is drawn anew each epoch, so that each row comes w times an epoch on average. All
    are shuffled together. The order is a function of (seed, epoch), and `position` (rows handed
    out) restores it; with one source of weight 1 it is `EpochOrder`'s.

    Args:
        counts: rows of each source.
        weights: of each source, above 0; None: 1 each.
    """

    def __init__(
        self,
        counts: Sequence[int],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        weights = [1.0] * len(counts) if weights is None else weights
        if len(weights) != len(counts) or any(weight <= 0 for weight in weights):
            raise ValueError(f"{len(counts)} sources need as many weights above 0, not {weights}")
        if sum(counts) < 1:
            raise ValueError("an order needs at least one row")
        self._counts = list(counts)
        self._weights = [Fraction(str(weight)) for weight in weights]
        self._seed = seed
        self._shuffle = shuffle
        self._cached: tuple[int, np.ndarray] | None = None

    def length(self, epochs: float) -> int:
        """Rows handed out in the first `epochs` epochs; of a broken epoch, its share."""
        whole = int(epochs)
        begun = self._before(whole)
        return begun + round((epochs - whole) * (self._before(whole + 1) - begun))

    def take(self, position: int, number: int) -> list[tuple[int, int]]:
        """`number` (row, epoch) pairs from `position` on; a batch may cross into the next epoch."""
        taken: list[tuple[int, int]] = []
        epoch = self._epoch_at(position)
        while len(taken) < number:
            rows = self._epoch(epoch)
            start = position + len(taken) - self._before(epoch)
            taken += [(int(row), epoch) for row in rows[start : start + number - len(taken)]]
            epoch += 1
        return taken

    def _before(self, epoch: int) -> int:
        """Rows handed out before `epoch`; a share that is no whole number is made up for later."""
        return sum(
            int(epoch * weight * count)
            for count, weight in zip(self._counts, self._weights, strict=True)
        )

    def _epoch_at(self, position: int) -> int:
        """The epoch that hands out row `position`."""
        low, high = 0, 1
        while self._before(high) <= position:
            high *= 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._before(middle) <= position else (low, middle)
        return low

    def _epoch(self, epoch: int) -> np.ndarray:
        if self._cached is None or self._cached[0] != epoch:
            self._cached = (epoch, self._rows(epoch))
        return self._cached[1]

    def _rows(self, epoch: int) -> np.ndarray:
        parts, offset = [], 0
        for source, (count, weight) in enumerate(zip(self._counts, self._weights, strict=True)):
            number = int((epoch + 1) * weight * count) - int(epoch * weight * count)
            whole, some = divmod(number, count) if count else (0, 0)
            drawn = np.random.default_rng([self._seed, epoch, 1 + source]).permutation(count)[:some]
            own = np.r_[np.tile(np.arange(count), whole), np.sort(drawn)]
            parts.append(offset + own)
            offset += count
        rows = np.concatenate(parts)
        if self._shuffle:
            rows = rows[np.random.default_rng([self._seed, epoch]).permutation(len(rows))]
        return rows
