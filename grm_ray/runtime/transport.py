"""The few calls by which pools and drivers reach Ray, in one place.

The simulation of large clusters (`benchmarks/scale_simulation.py`) puts another one in its place,
so that the pools and the ledger that it measures are those that run.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import ray

# Of what is ready, so much is taken at once: a wait goes through all references, and costs as much
# for one as for many.
AT_ONCE = 512
MOMENT_S = 0.25


class RayTransport:
    """Ray, and this machine's clock."""

    def now(self) -> float:
        """Seconds of a clock that never goes back."""
        return time.monotonic()

    def wait(self, refs: list[Any], timeout_s: float) -> list[Any]:
        """The references of which there is news, some at a time; none when there is none in time.

        Nothing is fetched: batches stay where they are. Where there is nothing to wait for, because
        all places of a pool are empty, a moment passes: whoever waits in a loop shall not spin.
        """
        if not refs:
            time.sleep(min(timeout_s, MOMENT_S))
            return []
        ready, others = ray.wait(refs, num_returns=1, timeout=timeout_s, fetch_local=False)
        if ready and others:
            most = min(AT_ONCE, len(others))
            ready += ray.wait(others, num_returns=most, timeout=0, fetch_local=False)[0]
        return ready

    def all_ready(self, refs: list[Any]) -> bool:
        """Whether nobody need wait for any of them."""
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        return len(ready) == len(refs)

    def get(self, ref: Any) -> Any:
        return ray.get(ref)

    def kill(self, handle: Any) -> None:
        ray.kill(handle)

    def cancel(self, ref: Any) -> None:
        """Tell whoever works at it that nobody waits any more; what has begun may still end."""
        with contextlib.suppress(Exception):  # it ended meanwhile, or its worker did
            ray.cancel(ref)
