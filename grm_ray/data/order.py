"""Which rows come when: a seeded order that a position alone restores."""

from __future__ import annotations

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
