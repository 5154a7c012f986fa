"""How the ranks of a training group find each other."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import ray
import torch

from grm_ray.training.extensions import keep_own_extensions


def address() -> tuple[str, int]:
    """This machine, and a free port on it: where rank 0 waits for the others."""
    with socket.socket() as free:
        free.bind(("", 0))
        return ray.util.get_node_ip_address(), free.getsockname()[1]


def join_group(rank: int, world: int, host: str, port: int, local: int) -> None:
    """Enter the trainers' process group: NCCL on GPUs, gloo on CPUs.

    Args:
        host, port: where rank 0 waits.
        local: ranks on this machine. DeepSpeed's shared-memory collectives wait for ever for a
            rank that they wrongly take to be on this machine.
    """
    cuda = torch.cuda.is_available()
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK="0",
        LOCAL_SIZE=str(local),
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
    )
    if not cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
    keep_own_extensions()
    import deepspeed

    deepspeed.init_distributed("nccl" if cuda else "gloo", verbose=False)
    _unlink_deepspeed_buffers(host, port)


def _unlink_deepspeed_buffers(host: str, port: int) -> None:
    """Take the names off DeepSpeed's CPU all-reduce buffers, which it never frees itself.

    Every rank of this machine has them mapped by now, so that the memory goes with the processes.
    """
    torch.distributed.barrier()
    for path in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{host}_{port}_*"):
        path.unlink(missing_ok=True)
