"""Batches of answers on their way through the scorers, and the answers that scorers die of.

A scorer may die of an answer: of one that a rule of the user's own never ends with, or that a
library crashes on. After the second death of a batch its answers are scored one by one, and after
two more the one at fault is refused, with the reason, as an answer that a rule fails on is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from grm_ray.runtime.pool import Event, Pool, Work

# Scorers that may die of the same rows: chance kills one, hardly ever two.
_DEATHS = 2


@dataclass(frozen=True)
class ScoredBatch:
    """What a scorer is asked for: the payload of its work.

    Attributes:
        owner: whoever waits for the scores.
        batch: reference to `ROLLOUTS`.
        rows: how many.
        row: the only one that is asked for; None: all.
        deaths: of scorers that were at it.
    """

    owner: Any
    batch: Any
    rows: int
    row: int | None = None
    deaths: int = 0

    def submit(self, scorers: Pool) -> None:
        """Have it scored by whoever is free; the result is `SCORES`."""
        scorers.submit(Work(self._call, self, hedge=not self.deaths))

    def _call(self, scorer: Any) -> Any:
        if self.row is None:
            return scorer.score.remote(self.batch)
        if self.deaths < _DEATHS:
            return scorer.score.remote(self.batch, self.row)
        return scorer.refuse.remote(self.batch, self.row)


def again(event: Event, scorers: Pool) -> None:
    """After `event` told that a batch is lost: have it scored again, or what of it can be."""
    asked: ScoredBatch = event.work.payload
    asked = replace(asked, deaths=asked.deaths + bool(event.value))
    if asked.deaths < _DEATHS:
        asked.submit(scorers)
    elif asked.row is None and asked.rows > 1:
        for row in range(asked.rows):
            replace(asked, row=row, deaths=0).submit(scorers)
    else:
        scorers.pardon()  # they died of the answer
        replace(asked, row=asked.row or 0).submit(scorers)
