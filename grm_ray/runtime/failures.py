"""What kind of failure an error is, which decides what becomes of the work.

Infrastructure: the worker or its machine is at fault; the work is done elsewhere. Lost input: what
the work was to be done on went with a machine; it has to be made again. Program: whoever did the
work would fail, so that the run stops and says why.
"""

from __future__ import annotations

from enum import StrEnum

from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)


class Failure(StrEnum):
    """What a failure is of, which decides how the run goes on."""

    INFRASTRUCTURE = "infrastructure"
    LOST_INPUT = "lost input"
    PROGRAM = "program"


# The worker is gone, by its own fault or because the node's memory ran out.
DEATHS = (RayActorError, OutOfMemoryError, WorkerCrashedError, NodeDiedError)
# A process whose device or memory is spent, though it answers: a new one may do better. By name,
# because this file is imported where torch is not: PyTorch's out of memory and lost devices.
_SPENT = ("OutOfMemoryError", "AcceleratorError", "MemoryError")


def kind_of(error: BaseException) -> Failure:
    """How to go on after `error`, as `ray.get` raised it."""
    if isinstance(error, ObjectLostError):
        return Failure.LOST_INPUT
    if isinstance(error, (*DEATHS, TaskCancelledError, GetTimeoutError)):
        return Failure.INFRASTRUCTURE
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, ObjectLostError):
            return Failure.LOST_INPUT
        if isinstance(cause, DEATHS) or type(cause).__name__ in _SPENT:
            return Failure.INFRASTRUCTURE
        # Errors of a device come as RuntimeError; PyTorch names the library in the message.
        if isinstance(cause, RuntimeError) and "CUDA error" in str(cause):
            return Failure.INFRASTRUCTURE
    return Failure.PROGRAM
