"""Errors as Ray gives them, and what each is taken for."""

import pytest
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectFetchTimedOutError,
    ObjectLostError,
    ObjectReconstructionFailedError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)

from grm_ray.runtime.failures import Failure, kind_of

LOST = [
    kind("00" * 28, None, "")
    for kind in (ObjectLostError, ObjectFetchTimedOutError, ObjectReconstructionFailedError)
]
GONE = [
    RayActorError(),
    OutOfMemoryError("the node's memory"),
    WorkerCrashedError(),
    NodeDiedError("a node"),
    TaskCancelledError(),
    GetTimeoutError("30 s"),
]


class AcceleratorError(RuntimeError):
    """As PyTorch names it."""


def in_task(cause):
    return RayTaskError("work", "traceback", cause)


@pytest.mark.parametrize("error", [*LOST, *map(in_task, LOST)], ids=str)
def test_what_went_with_a_machine_is_to_be_made_again(error):
    assert kind_of(error) is Failure.LOST_INPUT


@pytest.mark.parametrize(
    "error",
    [
        *GONE,
        in_task(RayActorError()),
        in_task(MemoryError()),
        in_task(AcceleratorError("no device")),
        in_task(RuntimeError("CUDA error: unspecified launch failure")),
    ],
    ids=repr,
)
def test_whoever_is_gone_or_spent_is_replaced(error):
    assert kind_of(error) is Failure.INFRASTRUCTURE


@pytest.mark.parametrize("error", [in_task(ValueError("a bug")), in_task(RuntimeError("shapes"))])
def test_all_else_is_the_programs(error):
    assert kind_of(error) is Failure.PROGRAM
