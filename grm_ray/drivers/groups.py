"""Bringing up the ranks of one training group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from grm_ray.config.load import ConfigError
from grm_ray.training.checkpoint import CheckpointMismatch


def fetch(ref: Any) -> Any:
    """`ray.get`, with what a worker found wrong with the config or a checkpoint raised as itself.

    Raises:
        ConfigError: something that only the worker could see.
    """
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ConfigError | CheckpointMismatch):
            raise ConfigError(str(error.cause)) from error
        raise


class RankFailed(RuntimeError):
    """A training rank died or failed; the run can be resumed from its last checkpoint."""


class Group:
    """The actors of one ZeRO group, called in lockstep."""

    def __init__(self, make: Callable[[int], Any], world: int, timeout_s: float) -> None:
        self._timeout = timeout_s
        self.ranks = [make(rank) for rank in range(world)]
        self._setup: list[Any] = []

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
            RankFailed: with the cause; other ranks may hang in a collective and are not waited for.
        """
        pending = list(refs)
        while pending:
            done, pending = ray.wait(pending, num_returns=1, timeout=self._timeout)
            if not done:
                raise RankFailed(f"no training rank answered for {self._timeout} s")
            self._get(done[0])
        return ray.get(refs)

    @staticmethod
    def _get(ref: Any) -> Any:
        try:
            return fetch(ref)
        except ray.exceptions.RayError as error:
            raise RankFailed(f"a training rank failed: {error}") from error

    def kill(self) -> None:
        for rank in self.ranks:
            ray.kill(rank)
