"""Several steps under way at once: what comes from workers goes to the step that asked for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from grm_ray.drivers.groups import RankDied
from grm_ray.drivers.ppo.step import Gathering
from grm_ray.drivers.ppo.workers import PpoCast
from grm_ray.runtime.pool import Event, PoolFailed
from grm_ray.runtime.transport import AT_ONCE


class Stream:
    """The driver's only loop over events.

    Args:
        timeout_s: seconds without a word from anyone that end the run, or the learner's group;
            scorers and engines that are silent are the pools' concern.

    Attributes:
        learners_busy_s: seconds in which the driver waited, and learner ranks owed it something.
    """

    def __init__(self, cast: PpoCast, timeout_s: float) -> None:
        self._cast, self._timeout = cast, timeout_s
        self._active: list[Gathering] = []
        self.learners_busy_s = 0.0

    @property
    def idle(self) -> bool:
        """Whether the engines have written all that they were asked for, the second of two who were
        at the same rows included."""
        return self._cast.rollouts.idle and all(g.generated for g in self._active)

    def begin(self, gathering: Gathering) -> None:
        self._active.append(gathering)
        gathering.begin()

    def gather(
        self,
        gathering: Gathering,
        progress: Callable[[int], None] = lambda scored: None,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        """Until every row of `gathering` has all it needs; it is then forgotten here.

        Args:
            progress: told how many of its rows are scored.
            between: called after every event.

        Raises:
            PoolFailed: no worker answered in time, or they die faster than they serve.
            RankDied: a learner rank died or hangs, or rows went with a machine again and again.
        """

        def done() -> bool:
            progress(gathering.scored)
            return gathering.complete

        self._until(done, [], between)
        self._active.remove(gathering)

    def wait(self, refs: list[Any], between: Callable[[], None] = lambda: None) -> None:
        """Until the learner ranks answered `refs`; raises as `gather` does."""
        pending = list(refs)
        self._until(lambda: not pending, pending, between)

    def forget(self) -> None:
        """All that is under way will be asked for again."""
        self._active.clear()

    def settle(self) -> None:
        """Until the engines are idle; raises as `gather` does."""
        self._until(lambda: self.idle, [], lambda: None)

    def _until(
        self, done: Callable[[], bool], others: list[Any], between: Callable[[], None]
    ) -> None:
        rollouts, scorers = self._cast.rollouts, self._cast.scorers
        transport = self._cast.transport
        heard = transport.now()
        while not done():
            # A rank evaluates in the order in which it was asked: the first ones tell enough.
            evaluations = itertools.chain.from_iterable(g.evaluations for g in self._active)
            of_learners = [*itertools.islice(evaluations, AT_ONCE), *others]
            waiting = [*rollouts.waitables(), *scorers.waitables(), *of_learners]
            began = transport.now()
            ready = transport.wait(waiting, 1.0)
            self.learners_busy_s += transport.now() - began if of_learners else 0.0
            if ready or rollouts.busy or scorers.busy:
                heard = transport.now()
            elif transport.now() - heard > self._timeout:
                self._silent(bool(of_learners))
            for ref in ready:
                if rollouts.owns(ref):
                    _tell(rollouts.handle(ref), Gathering.on_generated)
                elif scorers.owns(ref):
                    _tell(scorers.handle(ref), Gathering.on_scored)
                elif any(ref is other for other in others):
                    others.remove(ref)
                    self._cast.learners.gather([ref])  # others may hang where this one died
                else:
                    for gathering in self._active:
                        if ref in gathering.evaluations:
                            gathering.on_evaluated(ref)
            _tell(rollouts.look_after(), Gathering.on_generated)
            _tell(scorers.look_after(), Gathering.on_scored)
            between()

    def _silent(self, learners_owe: bool) -> None:
        if learners_owe:
            raise RankDied(f"no training rank answered for {self._timeout} s")
        lacking = [gathering.lacking() for gathering in self._active]
        raise PoolFailed(
            f"no worker could be started for {self._timeout} s; rows missing: {lacking}"
        )


def _tell(events: list[Event], what: Callable[[Gathering, Event], None]) -> None:
    """Each event to the gathering whose work it is of."""
    for event in events:
        what(event.work.payload.owner, event)
