"""Who is in a pool and what each holds: found by reference, by load, and by work, in constant time.

With thousands of workers the driver cannot afford to go through all of them for every event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from grm_ray.runtime.health import SERVES, Sign, State, after


@dataclass(frozen=True, eq=False)
class Work:
    """One piece of work: `call(handle)` gives a reference, or a streaming generator.

    Attributes:
        hedge: it may be done twice at once, where the first to do it is slow.
        news: that it is done shows that the role can work.
    """

    call: Callable[[Any], Any]
    payload: Any
    hedge: bool = True
    news: bool = True


@dataclass(frozen=True)
class Event:
    """What happened: a streamed `item`, a `result`, the `end` of a stream; `lost` work; or work
    whose input is `gone` with a machine.

    The value of `lost`: None where the work was only at hand when the worker died; else, by the
    pool's clock, when the worker was last known to live. One that died while it was idle is found
    out by the next work that it is given, which is not to blame.
    """

    kind: Literal["item", "result", "end", "lost", "gone"]
    work: Work
    value: Any = None

    def may_be_of(self, since: float) -> bool:
        """Of `lost` work that was first asked for at `since`: whether the worker may have died of
        it."""
        return self.kind == "lost" and self.value is not None and self.value >= since


@dataclass(eq=False)
class Piece:
    """Work in a worker's hands; `void`: nobody waits for it any more."""

    ref: Any
    work: Work
    void: bool = False


@dataclass(eq=False)
class Member:
    """One place of the pool.

    Attributes:
        heard: when it last said something, or was idle and got work.
        proved: when it last said something, or became ready; None: it has not started yet.
        deaths: in a row, of workers in this place.
        empty_until: when a place that is empty is to be filled again.
    """

    slot: int
    handle: Any = None
    ready_ref: Any = None
    state: State = State.RESTARTING
    pieces: list[Piece] = field(default_factory=list)
    heard: float = 0.0
    proved: float | None = None
    deaths: int = 0
    empty_until: float = 0.0

    def learn(self, sign: Sign) -> None:
        self.state = after(self.state, sign)


class Members:
    """The places of a pool.

    Args:
        depth: pieces that each may hold.
        now: seconds of the clock.
    """

    def __init__(self, depth: int, count: int, now: Callable[[], float]) -> None:
        self._depth, self._now = depth, now
        self._all = [Member(slot) for slot in range(count)]
        # References are told apart by what they are, not by what they equal: generators have no
        # equality of their own. They are held here, so that no id is used again.
        # They stand apart from whose they are, since the list of all is wanted for every wait.
        self._refs: dict[int, Any] = {}
        self._owner: dict[int, tuple[Member, Piece | None]] = {}
        self._at: dict[int, list[tuple[Member, Piece]]] = {}  # work -> who is at it
        # Those who serve, by pieces in hand, each in the order in which it came to hold so many.
        # Suspects stand behind all others.
        self._by_load: list[dict[int, Member]] = [{} for _ in range(2 * depth + 2)]
        self._place: dict[int, int] = {}
        self._since, self._busy_s = now(), 0.0
        self._busy_from: dict[int, float] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(self._all)

    def waitables(self) -> list[Any]:
        return list(self._refs.values())

    def find(self, ref: Any) -> tuple[Member, Piece | None] | None:
        """Whose reference it is, and of which piece; None: of the worker's start."""
        return self._owner.get(id(ref))

    def free(self) -> Member | None:
        """Of the least busy the one that has been so for longest; suspects come last.

        A dead worker is only found out by giving it work: were it always the same one of two that
        gets all of it, the other could be dead for long.
        """
        for load in (*range(self._depth), *range(self._depth + 1, 2 * self._depth + 1)):
            if self._by_load[load]:
                return next(iter(self._by_load[load].values()))
        return None

    def idle(self) -> Member | None:
        """One that holds nothing and can be relied on."""
        return next(iter(self._by_load[0].values()), None)

    def suspects(self) -> list[Member]:
        return [m for load in self._by_load[self._depth + 2 :] for m in load.values()]

    def twins(self, piece: Piece) -> list[tuple[Member, Piece]]:
        """Others who are at the same work, and whose result somebody waits for."""
        at = self._at.get(id(piece.work), [])
        return [x for x in at if x[1] is not piece and not x[1].void]

    @property
    def at_work(self) -> bool:
        """Whether anyone holds a piece."""
        return bool(self._busy_from)

    def busy_share(self) -> float:
        """Mean share of the time since the last call in which a worker had work."""
        now = self._now()
        for slot, began in self._busy_from.items():
            self._busy_s += now - began
            self._busy_from[slot] = now
        there = sum(member.state is not State.RETIRED for member in self._all)
        share = self._busy_s / max(1e-9, (now - self._since) * there)
        self._since, self._busy_s = now, 0.0
        return share

    # ---------------------------------------------------------------- what happens to one

    def spawned(self, member: Member, handle: Any, ready_ref: Any) -> None:
        """A new worker is on its way into the place."""
        member.handle, member.proved = handle, None
        self.watch_ready(member, ready_ref)

    def watch_ready(self, member: Member, ref: Any) -> None:
        """It serves at the earliest when `ref` is there."""
        self._unwatch(member.ready_ref)
        member.ready_ref = ref
        self._watch(ref, member, None)

    def serves(self, member: Member) -> None:
        self._unwatch(member.ready_ref)
        self.sort_in(member)

    def give(self, member: Member, piece: Piece) -> None:
        if not member.pieces:
            member.heard = self._now()
            self._busy_from[member.slot] = member.heard
        member.pieces.append(piece)
        self._watch(piece.ref, member, piece)
        self._at.setdefault(id(piece.work), []).append((member, piece))
        self.sort_in(member)

    def drop(self, member: Member, piece: Piece) -> None:
        """The piece is done, or nobody waits for it."""
        member.pieces.remove(piece)
        self._forget(piece)
        if not member.pieces:
            self._busy_s += self._now() - self._busy_from.pop(member.slot)
        self.sort_in(member)

    def clear(self, member: Member) -> list[tuple[Piece, int]]:
        """The worker is gone: (piece, place in its line) of what somebody waits for."""
        lost = [(piece, place) for place, piece in enumerate(member.pieces) if not piece.void]
        for piece in member.pieces:
            self._forget(piece)
        if member.pieces:
            self._busy_s += self._now() - self._busy_from.pop(member.slot)
        member.pieces = []
        self._unwatch(member.ready_ref)
        self.sort_in(member)
        return lost

    def sort_in(self, member: Member) -> None:
        """Among those with as many pieces, where it does not stand there already."""
        place = None
        if member.state in SERVES:
            behind = self._depth + 1 if member.state is State.SUSPECT else 0
            place = min(len(member.pieces), self._depth) + behind
        if self._place.get(member.slot) == place:
            return
        if member.slot in self._place:
            del self._by_load[self._place.pop(member.slot)][member.slot]
        if place is not None:
            self._by_load[place][member.slot] = member
            self._place[member.slot] = place

    def _forget(self, piece: Piece) -> None:
        self._unwatch(piece.ref)
        others = [x for x in self._at[id(piece.work)] if x[1] is not piece]
        if others:
            self._at[id(piece.work)] = others
        else:
            del self._at[id(piece.work)]

    def _watch(self, ref: Any, member: Member, piece: Piece | None) -> None:
        self._refs[id(ref)] = ref
        self._owner[id(ref)] = member, piece

    def _unwatch(self, ref: Any) -> None:
        self._refs.pop(id(ref), None)
        self._owner.pop(id(ref), None)
