"""Whether a worker can be relied on: a state machine that knows neither Ray nor a clock.

A worker is spawned (RESTARTING), is ready but may hold the wrong weights or model (STALE), serves
(HEALTHY), is silent for longer than its like need (SUSPECT), is gone (DEAD), or its place is empty
for a while because whoever took it died (RETIRED).
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from enum import StrEnum
from statistics import median_low


class State(StrEnum):
    """What a worker is good for at the moment."""

    RESTARTING = "restarting"
    STALE = "stale"
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DEAD = "dead"
    RETIRED = "retired"


class Sign(StrEnum):
    """What is learned of a worker."""

    READY = "ready"  # its `ready` call came back
    CURRENT = "current"  # it was shown to hold the weights, or the model, that it must
    SILENT = "silent"  # it has work and has said nothing for too long
    HEARD = "heard"
    DIED = "died"
    SPAWNED = "spawned"  # a new one is on its way into its place
    GIVEN_UP = "given up"


ALIVE = (State.RESTARTING, State.STALE, State.HEALTHY, State.SUSPECT)
SERVES = (State.HEALTHY, State.SUSPECT)

_NEXT = {
    (State.RESTARTING, Sign.READY): State.STALE,
    (State.STALE, Sign.CURRENT): State.HEALTHY,
    (State.HEALTHY, Sign.SILENT): State.SUSPECT,
    (State.SUSPECT, Sign.SILENT): State.SUSPECT,
    (State.SUSPECT, Sign.HEARD): State.HEALTHY,
    (State.HEALTHY, Sign.HEARD): State.HEALTHY,
    **{(state, Sign.DIED): State.DEAD for state in ALIVE},
    (State.DEAD, Sign.SPAWNED): State.RESTARTING,
    (State.DEAD, Sign.GIVEN_UP): State.RETIRED,
    (State.RETIRED, Sign.SPAWNED): State.RESTARTING,
}


def after(state: State, sign: Sign) -> State:
    """The state that follows.

    Raises:
        ValueError: nothing of the kind can be learned of a worker in that state.
    """
    found = _NEXT.get((state, sign))
    if found is None:
        raise ValueError(f"a {state} worker cannot be {sign}")
    return found


class Patience:
    """How long a worker with work may be silent before it is SUSPECT.

    Some times what its like need: the median, over workers, of each one's longest recent silence.
    A minority of slow workers does not move it. The first silence of a worker does not count: what
    it does first takes longer than all that follows.

    Args:
        factor: how many times.
        at_least_s: seconds that are never too long.
        recent: silences of each worker that count.
    """

    def __init__(self, factor: float = 2.0, at_least_s: float = 2.0, recent: int = 16) -> None:
        self._factor, self._least = factor, at_least_s
        self._silences: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=recent))
        self._allowed: float | None = math.inf
        self._warm: set[int] = set()

    def note(self, slot: int, seconds: float) -> None:
        """The worker in `slot` was silent for so long, and then said something."""
        if slot not in self._warm:
            self._warm.add(slot)
            return
        self._silences[slot].append(seconds)
        self._allowed = None

    def forget(self, slot: int) -> None:
        """Another worker takes that place."""
        self._warm.discard(slot)
        self._silences.pop(slot, None)
        self._allowed = None

    @property
    def allowed_s(self) -> float:
        """Infinite while nothing is known."""
        if self._allowed is None:
            longest = [max(silences) for silences in self._silences.values()]
            known = self._factor * median_low(longest) if longest else math.inf
            self._allowed = max(self._least, known)
        return self._allowed
