"""A table in pieces that live in Ray's object store, read by row number."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from grm_ray.data.tables import flat


class Chunks:
    """Rows of many tables as if they were one.

    A piece is fetched when a row of it is wanted: on this machine that is a look into shared
    memory, and what does not fit there Ray keeps on disk. So a set may be larger than memory.

    Args:
        refs: references to tables of one schema.
        counts: their rows.
        fetch: reference -> table.
    """

    def __init__(
        self,
        refs: Sequence[Any],
        counts: Sequence[int],
        fetch: Callable[[Any], pa.Table] = ray.get,
    ) -> None:
        self._refs = list(refs)
        self._fetch = fetch
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def take(self, rows: Sequence[int]) -> pa.Table:
        """The rows of these numbers, in this order."""
        if not len(rows):
            return self._fetch(self._refs[0]).slice(0, 0)
        numbers = np.asarray(rows, dtype=np.int64)
        piece_of = np.searchsorted(self._starts, numbers, side="right") - 1
        parts, places = [], []
        for piece in np.unique(piece_of):
            here = np.flatnonzero(piece_of == piece)
            table = self._fetch(self._refs[piece])
            parts.append(table.take(pa.array(numbers[here] - self._starts[piece])))
            places.append(here)
        order = np.argsort(np.concatenate(places))
        return pa.concat_tables(parts).take(pa.array(order)).combine_chunks()


def column_lists(table: pa.Table, name: str) -> list[np.ndarray]:
    """A list column as one array a row."""
    values, offsets = flat(table, name)
    return [values[a:b] for a, b in itertools.pairwise(offsets)]


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """A float column as an array, NaN where it is null."""
    return table.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
