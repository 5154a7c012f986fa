"""A pool of workers of one role: work goes to whoever is free, the dead are replaced.

The pool knows nothing of what its workers do. It pulls: each ready worker holds at most `depth`
pieces of work, the rest waits in one line, so that a slow worker never sits on work that another
could do. A worker that died is spawned anew and serves again only after its `ready` call came back;
its unfinished work is handed back to the caller, who knows what of it is still lacking.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

# The worker is gone, by its own fault or because the node's memory ran out.
DEATHS = (RayActorError, OutOfMemoryError)


class PoolFailed(RuntimeError):
    """A role cannot be kept alive; the message carries the last cause."""


@dataclass(frozen=True)
class Work:
    """One piece of work: `call(handle)` gives a reference, or a streaming generator."""

    call: Callable[[Any], Any]
    payload: Any


@dataclass(frozen=True)
class Event:
    """What happened: a streamed `item`, a `result`, the `end` of a stream, or `lost` work, whose
    value says whether it was at work, not only at hand, when the worker died."""

    kind: Literal["item", "result", "end", "lost"]
    work: Work
    value: Any = None


@dataclass
class _Member:
    slot: int
    handle: Any
    ready_ref: Any
    ready: bool = False
    work: list[tuple[Any, Work]] = field(default_factory=list)
    last: int = 0  # when work was last given to it, in pieces handed out


class Pool:
    """Workers of one role.

    Args:
        role: for messages.
        spawn: slot -> (actor handle, reference that resolves when it may serve).
        count: number of workers.
        depth: pieces of work a worker may hold at once.
        max_replacements: consecutive deaths without finished work after which the pool gives up.
        admit: (handle, what its ready call gave) -> None when it may serve, or a reference to
            wait for and ask about again: a worker that was long in starting is brought up to date.
        say: told of every replacement, in one line.
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
    ) -> None:
        self.role = role
        self.replaced = 0
        self._spawn = spawn
        self._depth = depth
        self._max = max_replacements
        self._admit = admit
        self._say = say
        self._deaths = 0
        self._given = 0
        self._line: deque[Work] = deque()
        self._members = [_Member(slot, *spawn(slot)) for slot in range(count)]

    @property
    def handles(self) -> list[Any]:
        return [member.handle for member in self._members]

    @property
    def ready_handles(self) -> list[Any]:
        return [member.handle for member in self._members if member.ready]

    def submit(self, work: Work) -> None:
        self._line.append(work)
        self._dispatch()

    def waitables(self) -> list[Any]:
        """What `ray.wait` should watch for this pool."""
        refs = [m.ready_ref for m in self._members if not m.ready]
        return refs + [ref for member in self._members for ref, _ in member.work]

    def works(self) -> list[Work]:
        """What is not finished, given out or not."""
        return [w for member in self._members for _, w in member.work] + list(self._line)

    @property
    def busy(self) -> list[Any]:
        """Handles of those who have work in hand."""
        return [member.handle for member in self._members if member.work]

    def pardon(self) -> None:
        """The deaths so far were not the workers' fault: they do not count any more."""
        self._deaths = 0

    def owns(self, ref: Any) -> bool:
        return any(ref is own for own in self.waitables())

    def handle(self, ref: Any) -> list[Event]:
        """Turn one ready reference into events; replaces the worker when it turns out dead.

        Raises:
            PoolFailed: the role died too often, or a call raised an error of the program.
        """
        for member in self._members:
            if not member.ready and ref is member.ready_ref:
                return self._became_ready(member)
            for held, work in member.work:
                if held is ref:
                    return self._progress(member, held, work)
        return []

    def wait_ready(self, timeout_s: float) -> list[Any]:
        """Block until every worker may serve; returns what their ready calls gave.

        Raises:
            PoolFailed: a worker died too often, or was silent for `timeout_s`.
        """
        values = []
        for member in self._members:
            while not member.ready:
                if not ray.wait([member.ready_ref], timeout=timeout_s)[0]:
                    raise PoolFailed(f"{self.role} {member.slot} did not start in {timeout_s} s")
                self._became_ready(member)
            values.append(ray.get(member.ready_ref))
        return values

    def replace_dead(self, handle: Any, cause: BaseException) -> list[Event]:
        """The caller found `handle` dead by a call of its own."""
        for member in self._members:
            if member.handle is handle:
                return self._replace(member, cause)
        return []

    # ------------------------------------------------------------------ inside

    def _became_ready(self, member: _Member) -> list[Event]:
        try:
            value = ray.get(member.ready_ref)
        except DEATHS as error:
            return self._replace(member, error)
        except RayTaskError as error:
            raise PoolFailed(f"{self.role} {member.slot} cannot start: {error.cause}") from error
        not_yet = self._admit(member.handle, value)
        if not_yet is not None:
            member.ready_ref = not_yet
            return []
        member.ready = True
        self._dispatch()
        return []

    def _progress(self, member: _Member, held: Any, work: Work) -> list[Event]:
        try:
            if isinstance(held, ray.ObjectRefGenerator):
                return self._streamed(member, held, work)
            value = ray.get(held)
        except DEATHS as error:
            return self._replace(member, error)
        except RayTaskError as error:
            raise PoolFailed(f"{self.role} {member.slot} failed: {error}") from error
        self._finished(member, held)
        return [Event("result", work, value)]

    def _streamed(self, member: _Member, held: Any, work: Work) -> list[Event]:
        """Workers stream pairs: a batch, kept as a reference, then its small metadata, read here.

        In this order an error in place of either comes to light when the metadata is read.
        """
        try:
            batch_ref = next(held)
        except StopIteration:
            self._finished(member, held)
            return [Event("end", work)]
        try:
            metadata = ray.get(next(held))
        except StopIteration:
            ray.get(batch_ref)  # a lone item is the worker's error: raise it
            raise AssertionError("a stream ended between a batch and its metadata") from None
        return [Event("item", work, (batch_ref, metadata))]

    def _finished(self, member: _Member, held: Any) -> None:
        member.work = [(ref, work) for ref, work in member.work if ref is not held]
        self._deaths = 0
        self._dispatch()

    def _replace(self, member: _Member, cause: BaseException) -> list[Event]:
        self._deaths += 1
        self.replaced += 1
        if self._deaths > self._max:
            raise PoolFailed(f"{self.role} died {self._deaths} times in a row: {cause}") from cause
        self._say(f"{self.role} {member.slot} died and is replaced")
        lost = [Event("lost", work, place == 0) for place, (_, work) in enumerate(member.work)]
        member.work = []
        member.ready = False
        ray.kill(member.handle)
        member.handle, member.ready_ref = self._spawn(member.slot)
        return lost

    def _dispatch(self) -> None:
        while self._line:
            free = [m for m in self._members if m.ready and len(m.work) < self._depth]
            if not free:
                return
            # Among the least busy the one that waited longest: a dead worker is only found out by
            # giving it work, and the first of two idle ones would otherwise get all of it.
            member = min(free, key=lambda m: (len(m.work), m.last))
            self._given += 1
            member.last = self._given
            work = self._line.popleft()
            member.work.append((work.call(member.handle), work))
