"""Batches of answers on their way through the scorers, and the answers that scorers die of.

A scorer may die of an answer: of one that a rule of the user's own never ends with, or that a
library crashes on. After two deaths of a batch its answers are scored one by one, and after two
more the one at fault is refused, with the reason, as an answer that a rule fails on is. A death
counts where the scorer was known to live after it was asked for: all those of one machine may have
died while they were idle.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from grm_ray.runtime.pool import Event, Pool, Work

# Scorers that may die of the same rows: chance kills one that is at work, hardly ever two.
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
        since: when it was asked for first, by the pool's clock.
    """

    owner: Any
    batch: Any
    rows: int
    row: int | None = None
    deaths: int = 0
    since: float | None = None

    def submit(self, scorers: Pool) -> None:
        """Have it scored by whoever is free; the result is `SCORES`."""
        asked = self if self.since is not None else replace(self, since=scorers.now())
        refused = asked.row is not None and asked.deaths >= _DEATHS
        call = asked._refuse if refused else asked._score
        scorers.submit(Work(call, asked, hedge=not asked.deaths, news=not refused))

    def _score(self, scorer: Any) -> Any:
        if self.row is None:
            return scorer.score.remote(self.batch)
        return scorer.score.remote(self.batch, self.row)

    def _refuse(self, scorer: Any) -> Any:
        return scorer.refuse.remote(self.batch, self.row)


def again(event: Event, scorers: Pool) -> None:
    """After `event` told that a batch is lost: have it scored again, or what of it can be."""
    asked: ScoredBatch = event.work.payload
    if event.may_be_of(asked.since):
        asked = replace(asked, deaths=asked.deaths + 1)
        if asked.deaths == _DEATHS:
            scorers.pardon()  # they died of the answers
    if asked.row is None and asked.deaths >= _DEATHS:
        for row in range(asked.rows):
            replace(asked, row=row, deaths=0).submit(scorers)
    else:
        asked.submit(scorers)
