"""Bringing up the ranks of one training group."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from grm_ray.config.errors import ConfigError, RunStopped
from grm_ray.runtime.failures import DEATHS, Failure, kind_of
from grm_ray.training.checkpoint import CheckpointMismatch


def fetch(ref: Any) -> Any:
    """`ray.get`, with what a worker found wrong with the config or a checkpoint raised as itself.

    Raises:
        ConfigError: something that only the worker could see.
        RunStopped: an end that the worker knows how to tell; it is alive.
    """
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ConfigError | CheckpointMismatch):
            raise ConfigError(str(error.cause)) from error
        if isinstance(error.cause, RunStopped):
            raise error.cause from error
        raise


# How long to look for a dead rank when another one failed: those that wait for it in a collective
# often fail first.
_LOOK_FOR_DEAD_S = 10.0


class RankFailed(RuntimeError):
    """A training rank failed, and would again; the run can be resumed from its last checkpoint."""


class RankDied(RankFailed):
    """A training rank died, hangs, or lost what it worked on: a new group may go on."""


class InputLost(RankDied):
    """What a rank was asked to work on went with a machine; the rank is well."""


class Group:
    """The actors of one ZeRO group, called in lockstep."""

    def __init__(self, make: Callable[[int], Any], world: int, timeout_s: float) -> None:
        self._make, self._timeout = make, timeout_s
        self.ranks = [make(rank) for rank in range(world)]
        self._setup: list[Any] = []

    def restart(self) -> None:
        """New ranks in the place of all of them, loaded as at the start of a run.

        Raises:
            RankDied: one of the new ones died as well.
        """
        self.kill()
        self.ranks = [self._make(rank) for rank in range(len(self.ranks))]
        self.begin_setup()
        self.end_setup()

    def begin_setup(self) -> None:
        """Let the ranks find each other (rank 0 says where it waits) and load, meanwhile."""
        addresses = self.call("address")
        hosts = [host for host, _ in addresses]
        self._setup = [
            rank.setup.remote((*addresses[0], hosts.count(host)))
            for rank, host in zip(self.ranks, hosts, strict=True)
        ]

    def end_setup(self) -> None:
        """Wait for what `begin_setup` began."""
        self.gather(self._setup)

    def call(self, method: str, *args: Any) -> list[Any]:
        """`method` with equal arguments on every rank; results in rank order."""
        return self.gather([getattr(rank, method).remote(*args) for rank in self.ranks])

    def gather(self, refs: list[Any]) -> list[Any]:
        """Results of one call a rank; the first failure ends the wait for all.

        Raises:
            ConfigError: a rank found that the config cannot work.
            InputLost, RankDied: with the cause; other ranks may hang in a collective and are not
                waited for.
            RankFailed: an error of the program, with the cause.
        """
        pending = list(refs)
        while pending:
            done, pending = ray.wait(pending, num_returns=1, timeout=self._timeout)
            if not done:
                raise RankDied(f"no training rank answered for {self._timeout} s")
            self._get(done[0])
        return ray.get(refs)

    def _get(self, ref: Any) -> Any:
        try:
            return fetch(ref)
        except ray.exceptions.RayError as error:
            kind = kind_of(error)
            if kind is Failure.LOST_INPUT:
                raise InputLost(
                    f"rows were lost with the machine that held them: {error}"
                ) from error
            if kind is not Failure.PROGRAM:
                raise RankDied(f"a training rank died: {error}") from error
            if self._someone_died():
                raise RankDied(f"a training rank died, another one reported: {error}") from error
            raise RankFailed(f"a training rank failed: {error}") from error

    def _someone_died(self) -> bool:
        """A dead rank answers any call at once, with its death; one that hangs does not."""
        pending = [rank.__ray_ready__.remote() for rank in self.ranks]
        until = time.monotonic() + _LOOK_FOR_DEAD_S
        while pending and (left := until - time.monotonic()) > 0:
            done, pending = ray.wait(pending, num_returns=1, timeout=left)
            for ref in done:
                try:
                    ray.get(ref)
                except DEATHS:
                    return True
        return False

    def kill(self) -> None:
        """End every rank; those that are dead already stay so."""
        for rank in self.ranks:
            ray.kill(rank)
