"""A pool of workers of one role: work goes to whoever is free, the dead are replaced.

The pool knows nothing of what its workers do. It pulls: each worker that serves holds at most
`depth` pieces of work, the rest waits in one line, so that a slow worker never sits on work that
another could do. A worker that died is spawned anew and serves again only after its `ready` call
came back and `admit` was content; its unfinished work is handed back to the caller, who knows what
of it is still lacking. Work in the hands of a worker that is silent for too long is given to an
idle one as well (a hedge): who ends first counts, the other one's is forgotten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from grm_ray.runtime.failures import DEATHS, Failure, kind_of
from grm_ray.runtime.health import SERVES, Patience, Sign, State
from grm_ray.runtime.pool_members import Event, Member, Members, Piece, Work
from grm_ray.runtime.transport import RayTransport

__all__ = ["Event", "Pool", "PoolFailed", "Work", "must_show"]

# Seconds between two looks for silent workers: each look goes through all of them.
LOOK_EVERY_S = 0.25
# Seconds for which a place stays empty after a start that failed, and twice as long each time: Ray
# needs half a minute to notice that a machine is gone, and until then starts workers there that
# never run; and what is broken may be mended.
PAUSE_S, LONGEST_PAUSE_S = 15.0, 3600.0
# Pardons in a row: a role that dies of everything is not to be pardoned for ever.
MOST_PARDONS = 16


class PoolFailed(RuntimeError):
    """A role cannot be kept alive; the message carries the last cause."""


def must_show(wanted: Any) -> Callable[[Any, Any], None]:
    """An `admit` for workers whose ready call tells what they hold, which must be `wanted`."""

    def admit(_: Any, found: Any) -> None:
        if found != wanted:
            raise PoolFailed(
                f"a worker holds {found}, not {wanted}: a model's folder was overwritten since "
                "the start; start the job again"
            )

    return admit


class Pool:
    """Workers of one role.

    Args:
        role: for messages.
        spawn: slot -> (actor handle, reference that resolves when it may serve).
        count: number of workers.
        depth: pieces of work a worker may hold at once.
        max_replacements: a place whose workers die more often than this in a row stays empty for
            a while, as one does in which a start fails. The pool gives up when nobody got anything
            done between as many deaths, and two more for each place but the first: those of one
            machine may all have died while they were idle, and those after them of their work.
        admit: (handle, what its ready call gave) -> None when it may serve, or a reference to
            wait for and ask about again: a worker that was long in starting is brought up to date.
            It may raise `PoolFailed`: it will never serve.
        say: told of every replacement, in one line.
        dead_s: a worker with work that is silent for so long counts as dead.
        patience: when it is suspect before that.
        transport: by which workers are reached.

    Attributes:
        at_rest: workers must not start now: places that are empty stay so.
    """

    def __init__(
        self,
        role: str,
        spawn: Callable[[int], tuple[Any, Any]],
        count: int,
        depth: int = 2,
        max_replacements: int = 3,
        admit: Callable[[Any, Any], Any] = lambda handle, value: None,
        say: Callable[[str], None] = lambda message: None,
        dead_s: float = float("inf"),
        patience: Patience | None = None,
        transport: RayTransport | None = None,
    ) -> None:
        self.role = role
        self.replaced = self.hedged = self.retried = 0
        self.at_rest = False
        self._spawn, self._admit, self._say = spawn, admit, say
        self._max, self._dead_s = max_replacements, dead_s
        self._patience = patience or Patience()
        self._transport = transport or RayTransport()
        self._deaths = self._pardons = 0
        self._started = False  # whether all had their first start
        self._line: deque[Work] = deque()
        self._looked = self._transport.now()
        self._members = Members(depth, count, self._transport.now)
        for member in self._members:
            self._members.spawned(member, *spawn(member.slot))

    # ----------------------------------------------------------------- what there is

    def now(self) -> float:
        """Seconds of the transport's clock."""
        return self._transport.now()

    @property
    def handles(self) -> list[Any]:
        """Of the workers in all places that are not empty, ready or not."""
        return [m.handle for m in self._members if m.state != State.RETIRED]

    @property
    def ready_handles(self) -> list[Any]:
        return [member.handle for member in self._members if member.state in SERVES]

    @property
    def states(self) -> list[State]:
        """Of each place."""
        return [member.state for member in self._members]

    @property
    def busy(self) -> list[Any]:
        """Handles of those who have work in hand."""
        return [member.handle for member in self._members if member.pieces]

    @property
    def idle(self) -> bool:
        """Whether nobody has work in hand, and none is in the line."""
        return not self._line and not self._members.at_work

    def works(self) -> list[Work]:
        """What is not finished, given out or not; once, however many are at it."""
        held = {id(p.work): p.work for m in self._members for p in m.pieces if not p.void}
        return [*held.values(), *self._line]

    def waitables(self) -> list[Any]:
        """What the transport should wait for."""
        return self._members.waitables()

    def wait(self, timeout_s: float) -> list[Any]:
        """Those of `waitables` of which there is news; none when there is none in time."""
        return self._transport.wait(self.waitables(), timeout_s)

    def owns(self, ref: Any) -> bool:
        return self._members.find(ref) is not None

    def figures(self) -> dict[str, float]:
        """What to show of the role, and how busy it was since this was asked last."""
        return {
            f"{self.role}/queue": float(len(self._line)),
            f"{self.role}/busy_share": self._members.busy_share(),
            f"{self.role}/retries": float(self.retried),
            f"{self.role}/hedged": float(self.hedged),
            f"{self.role}/deaths": float(self.replaced),
        }

    # ------------------------------------------------------------------- what is done

    def submit(self, work: Work) -> None:
        self._line.append(work)
        self._dispatch()

    def forget(self) -> None:
        """Nobody waits for any of the work any more."""
        self._line.clear()
        for member in self._members:
            for piece in list(member.pieces):
                self._void(member, piece)

    def pardon(self) -> None:
        """The deaths so far were not the workers' fault: they do not count any more, unless this is
        said again and again and nothing gets done between."""
        self._pardons += 1
        if self._pardons > MOST_PARDONS:
            return
        self._deaths = 0
        for member in self._members:
            if member.state is not State.RETIRED:
                member.deaths = 0

    def handle(self, ref: Any) -> list[Event]:
        """Turn one ready reference into events; replaces the worker when it turns out dead.

        Raises:
            PoolFailed: the role died too often, or a call raised an error of the program.
        """
        found = self._members.find(ref)
        if found is None:
            return []
        member, piece = found
        return self._became_ready(member) if piece is None else self._progress(member, piece)

    def look_after(self) -> list[Event]:
        """Hedge the work of suspects, replace those who are silent beyond hope, and fill places
        that have been empty for long enough.

        Cheap enough to be called after every wait; it looks some times a second.

        Raises:
            PoolFailed: the role died too often.
        """
        now = self._transport.now()
        if now - self._looked < LOOK_EVERY_S:
            return []
        self._looked = now
        events: list[Event] = []
        for member in self._members:
            if member.state is State.RETIRED and now >= member.empty_until and not self.at_rest:
                self._fill(member)
            if not member.pieces or member.state not in SERVES:
                continue
            silent = now - member.heard
            if silent > self._dead_s:
                cause = TimeoutError(f"it has been silent for {silent:.0f} s")
                events += self._replace(member, cause)
            elif silent > self._patience.allowed_s:
                member.learn(Sign.SILENT)
                self._members.sort_in(member)
        if not self._line:
            self._hedge()
        return events

    def wait_ready(self, timeout_s: float) -> list[Any]:
        """Block until every worker may serve, or its place is empty; returns what the ready calls
        of those who serve gave.

        Raises:
            PoolFailed: workers died too often, cannot start, or were silent for `timeout_s`.
        """
        values = []
        for member in self._members:
            while member.state not in (*SERVES, State.RETIRED):
                if not self._transport.wait([member.ready_ref], timeout_s):
                    raise PoolFailed(f"{self.role} {member.slot} did not start in {timeout_s} s")
                self._became_ready(member)
            if member.state in SERVES:
                values.append(self._transport.get(member.ready_ref))
        self._started = True
        return values

    def replace_dead(self, handle: Any, cause: BaseException) -> list[Event]:
        """The caller found `handle` dead by a call of its own."""
        for member in self._members:
            if member.handle is handle:
                return self._replace(member, cause)
        return []

    # ------------------------------------------------------------------ inside

    def _became_ready(self, member: Member) -> list[Event]:
        try:
            value = self._transport.get(member.ready_ref)
        except Exception as error:
            # A role that could start can do so again: what keeps it from that now may pass.
            if self._started or kind_of(error) is not Failure.PROGRAM:
                return self._replace(member, error)
            cause = getattr(error, "cause", error)
            raise PoolFailed(f"{self.role} {member.slot} cannot start: {cause}") from error
        if member.state is State.RESTARTING:
            member.learn(Sign.READY)
        not_yet = self._admit(member.handle, value)
        if not_yet is not None:
            self._members.watch_ready(member, not_yet)
            return []
        member.learn(Sign.CURRENT)
        member.proved = self._transport.now()
        self._members.serves(member)
        self._dispatch()
        return []

    def _progress(self, member: Member, piece: Piece) -> list[Event]:
        try:
            if hasattr(piece.ref, "__next__"):
                kind, value = self._streamed(piece)
            else:
                kind, value = "result", self._transport.get(piece.ref)
        except Exception as error:
            return self._failed(member, piece, error)
        self._heard(member)
        self._deaths = member.deaths = 0
        if piece.work.news:
            self._pardons = 0
        events = [] if piece.void else [Event(kind, piece.work, value)]
        if kind != "item":
            self._finished(member, piece)
        return events

    def _streamed(self, piece: Piece) -> tuple[Any, Any]:
        """Workers stream pairs: a batch, kept as a reference, then its small metadata, read here.

        In this order an error in place of either comes to light when the metadata is read.
        """
        try:
            batch_ref = next(piece.ref)
        except StopIteration:
            return "end", None
        try:
            return "item", (batch_ref, self._transport.get(next(piece.ref)))
        except StopIteration:
            self._transport.get(batch_ref)  # a lone item is the worker's error: raise it
            raise AssertionError("a stream ended between a batch and its metadata") from None

    def _heard(self, member: Member) -> None:
        now = self._transport.now()
        self._patience.note(member.slot, now - member.heard)
        member.heard = member.proved = now
        member.learn(Sign.HEARD)
        self._members.sort_in(member)

    def _finished(self, member: Member, piece: Piece) -> None:
        self._members.drop(member, piece)
        if not piece.void:
            for other, twin in self._members.twins(piece):
                self._void(other, twin)
        self._dispatch()

    def _failed(self, member: Member, piece: Piece, error: Exception) -> list[Event]:
        """A call gave an error instead of what was asked."""
        kind = kind_of(error)
        if kind is Failure.INFRASTRUCTURE and not piece.void:
            return self._replace(member, error)
        if isinstance(error, DEATHS):
            return self._replace(member, error)
        if kind is Failure.PROGRAM and not piece.void:
            raise PoolFailed(f"{self.role} {member.slot} failed: {error}") from error
        void = piece.void
        self._heard(member)
        self._finished(member, piece)  # its input went with a machine, or nobody waits for it
        return [] if void else [Event("gone", piece.work)]

    def _void(self, member: Member, piece: Piece) -> None:
        """Nobody waits for `piece` any more. A stream ends at once; whoever is at work on another
        call has to end it before the next."""
        piece.void = True
        self._transport.cancel(piece.ref)
        if hasattr(piece.ref, "__next__"):
            self._members.drop(member, piece)

    def _replace(self, member: Member, cause: BaseException) -> list[Event]:
        member.learn(Sign.DIED)
        lost = self._members.clear(member)
        # Work that another one is at as well is not lost; who else dies of it is counted then.
        alone = [(piece, place) for piece, place in lost if not self._members.twins(piece)]
        member.deaths += 1
        proved = member.proved  # of the one that died
        if proved is not None:  # a start that fails says nothing of the others
            self._deaths += bool(alone or not lost)
        self.replaced += 1
        if self._deaths > self._max + 2 * (len(self.states) - 1):
            raise PoolFailed(f"{self.role} died {self._deaths} times in a row: {cause}") from cause
        self._patience.forget(member.slot)
        self._transport.kill(member.handle)
        if member.deaths > self._max or (self._started and proved is None):
            self._empty(member, cause)
        else:
            self._say(f"{self.role} {member.slot} died and is being replaced")
            self._fill(member)
        self.retried += len(alone)
        return [Event("lost", piece.work, None if place else proved) for piece, place in alone]

    def _empty(self, member: Member, cause: BaseException) -> None:
        """Nobody for the place for now."""
        member.learn(Sign.GIVEN_UP)
        if all(m.state is State.RETIRED and m.deaths > self._max for m in self._members):
            raise PoolFailed(f"every {self.role} died too often: {cause}") from cause
        pause = min(PAUSE_S * 2 ** max(0, member.deaths - 2), LONGEST_PAUSE_S)
        member.empty_until = self._transport.now() + pause
        times = f"died {member.deaths} times in a row"
        self._say(f"{self.role} {member.slot} {times}: no new one is started for {pause:.0f} s")

    def _fill(self, member: Member) -> None:
        member.learn(Sign.SPAWNED)
        self._members.spawned(member, *self._spawn(member.slot))

    def _dispatch(self) -> None:
        while self._line:
            member = self._members.free()
            if member is None:
                return
            work = self._line.popleft()
            self._members.give(member, Piece(work.call(member.handle), work))

    def _hedge(self) -> None:
        """Give suspects' work to the idle as well."""
        for suspect in self._members.suspects():
            for piece in suspect.pieces:
                if piece.void or not piece.work.hedge or self._members.twins(piece):
                    continue
                idle = self._members.idle()
                if idle is None:
                    return
                self.hedged += 1
                self._members.give(idle, Piece(piece.work.call(idle.handle), piece.work))
