"""One DeepSpeed ZeRO engine for reward-model trainer and learner.

What it adds to DeepSpeed: micro-batch counts may differ between ranks (short ranks run dummies of
weight zero, or the collective reductions would wait for ever), losses are normalised over the
*global* batch, and checkpoints fit any ZeRO stage and number of ranks (`checkpoint.py`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from torch import nn

from grm_ray.config.schema import Optimizer
from grm_ray.objectives.schedules import cosine_with_warmup
from grm_ray.training import checkpoint
from grm_ray.training.checkpoint import CheckpointMismatch
from grm_ray.training.state import TrainedState

Batch = TypeVar("Batch")


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


def keep_own_extensions() -> None:
    """Keep what torch compiles in this environment, unless TORCH_EXTENSIONS_DIR says where.

    In the user's cache folder, two environments that take turns would compile DeepSpeed's
    operators anew each time, for 45 s.
    """
    if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))


def _unlink_deepspeed_buffers(host: str, port: int) -> None:
    """Take the names off DeepSpeed's CPU all-reduce buffers, which it never frees itself.

    Every rank of this machine has them mapped by now, so that the memory goes with the processes.
    """
    torch.distributed.barrier()
    for path in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{host}_{port}_*"):
        path.unlink(missing_ok=True)


class ZeroEngine:
    """`module` under ZeRO with AdamW; its learning rate follows a cosine over `total_steps`.

    At stage 3 every rank holds a part of each weight, and a forward pass is a meeting of all ranks:
    call the engine, never a part of `module`, and equally often everywhere (`rounds`). Modules
    that read other modules' parameters name them in a method `external_parameters`.
    """

    def __init__(self, module: nn.Module, config: Optimizer, dtype: str, total_steps: int) -> None:
        import deepspeed

        self._config = config
        self._total_steps = total_steps
        self.steps = 0
        parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters,
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,  # one pass over the weights; the default on CPUs makes ten
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=self._deepspeed_config(dtype)
        )
        if config.zero_stage == 3:
            for part in module.modules():
                for parameter in getattr(part, "external_parameters", list)():
                    deepspeed.zero.register_external_parameter(part, parameter)
        self._state = TrainedState(self._engine, config.zero_stage)
        self.device = self._engine.device
        self.world = torch.distributed.get_world_size()
        self.rank = torch.distributed.get_rank()

    def _deepspeed_config(self, dtype: str) -> dict[str, Any]:
        cuda = torch.cuda.is_available()
        zero: dict[str, Any] = {
            "stage": self._config.zero_stage,
            "overlap_comm": cuda,
            "contiguous_gradients": True,
        }
        host = {"device": "cpu", "pin_memory": cuda}
        if self._config.offload != "none":
            zero["offload_optimizer"] = host
        if self._config.offload == "all":
            zero["offload_param"] = host
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,  # the boundary is set by hand in `update`
            "gradient_clipping": self._config.max_grad_norm,
            "bf16": {"enabled": dtype == "bfloat16"},
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # one AdamW for all, or their steps would differ
            "steps_per_print": 10**9,
            "wall_clock_breakdown": False,
        }

    @property
    def module(self) -> nn.Module:
        return self._engine.module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._engine(*args, **kwargs)

    def update(
        self,
        batches: Sequence[Any],
        loss: Callable[[Any], torch.Tensor],
        dummy: Callable[[], torch.Tensor],
    ) -> dict[str, float]:
        """One optimizer step over this rank's micro-batches.

        Args:
            batches: micro-batches of this rank; their number may differ from other ranks'.
            loss: batch -> scalar, already divided by the *global* count it is a mean over.
            dummy: scalar that depends on every parameter, for ranks with less to do.

        Returns:
            `lr` and `grad_norm` (before clipping) of the step.
        """
        rounds = int(self.all_reduce([float(len(batches))], torch.distributed.ReduceOp.MAX)[0])
        for i in range(max(rounds, 1)):
            last = i == max(rounds, 1) - 1
            self._engine.set_gradient_accumulation_boundary(last)
            value = loss(batches[i]) if i < len(batches) else dummy() * 0.0
            # DeepSpeed averages gradients over ranks; the loss is a share of a global mean.
            self._engine.backward(value * self.world)
        lr = self._config.learning_rate * cosine_with_warmup(
            self.steps,
            self._total_steps,
            round(self._config.warmup_ratio * self._total_steps),
            self._config.minimum_ratio,
        )
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)  # at stage 0, the only one that is known
        self._engine.step()
        self.steps += 1
        known = self._engine.get_global_grad_norm()
        return {"lr": lr, "grad_norm": float(norm if known is None else known)}

    def move_moments(self, device: torch.device) -> None:
        """Adam's moments, two numbers a weight, to `device`; an update needs them on this one's."""
        adam = getattr(self._optimizer, "optimizer", self._optimizer)  # inside ZeRO's
        for state in adam.state.values():
            for name, value in state.items():
                if torch.is_tensor(value) and value.dim():  # the step count stays where it is
                    state[name] = value.to(device)

    def all_reduce(
        self, values: Sequence[float], op: Any = torch.distributed.ReduceOp.SUM
    ) -> list[float]:
        """Sum (or another `op`) of each number over the ranks, in double precision."""
        if self.world == 1:
            return [float(v) for v in values]
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor, op)
        return tensor.tolist()

    def rounds(self, batches: Sequence[Batch]) -> Iterator[Batch | None]:
        """This rank's `batches`; at stage 3 then None, until every rank has had equally many.

        For passes without gradients. None stands for a forward pass on whatever there is. Below
        stage 3 no rank waits for another, and there is no None.
        """
        rounds = len(batches)
        if self._config.zero_stage == 3:
            rounds = int(self.all_reduce([float(rounds)], torch.distributed.ReduceOp.MAX)[0])
        for i in range(rounds):
            yield batches[i] if i < len(batches) else None

    @contextlib.contextmanager
    def gathered(self, part: nn.Module | None = None) -> Iterator[None]:
        """Inside, `part` (None: `module`) has whole weights, to be read only. All ranks enter."""
        import deepspeed

        whole = deepspeed.zero.GatheredParameters(
            list((part or self.module).parameters()), enabled=self._config.zero_stage == 3
        )
        with whole:
            yield

    # ------------------------------------------------------------ checkpoints

    def save(self, folder: Path, extra: dict[str, Any]) -> dict[str, str]:
        """Write this rank's share to `folder` with hashes of the live state; returns them.

        Args:
            extra: plain values for `load` to give back, equal on every rank.
        """
        return checkpoint.save(self._state, folder, self._facts(extra))

    def load(self, folder: Path, seed: int = 0) -> dict[str, Any]:
        """Restore what `save` wrote, under any stage, on any number of ranks; returns `extra`.

        Args:
            seed: of random states on ranks that the checkpoint has none for.

        Raises:
            CheckpointMismatch: what was saved is damaged, or is another model's or schedule's.
        """
        facts = checkpoint.load(self._state, folder, seed)
        if facts["total_steps"] != self._total_steps:
            raise CheckpointMismatch(
                f"{folder} is of a run of {facts['total_steps']} steps, not {self._total_steps}"
            )
        self.steps = facts["steps"]
        return facts["extra"]

    def hashes(self, extra: dict[str, Any]) -> dict[str, str]:
        """Fingerprints of weights, optimizer, schedule, random states and `extra`.

        Those of the random states are this rank's; the others do not depend on stage and ranks.
        """
        return checkpoint.hashes(self._state, self._facts(extra))

    def _facts(self, extra: dict[str, Any]) -> dict[str, Any]:
        return {"steps": self.steps, "total_steps": self._total_steps, "extra": extra}
