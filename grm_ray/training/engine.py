"""One DeepSpeed ZeRO engine for reward-model trainer and learner.

What it adds to DeepSpeed: micro-batch counts may differ between ranks (short ranks run dummies of
weight zero, or the collective reductions would wait for ever), losses are normalised over the
*global* batch, and a checkpoint carries the hashes of what it saved, checked on restore.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import xxhash
from torch import nn

from grm_ray.config.schema import Optimizer
from grm_ray.objectives.schedules import cosine_with_warmup


class CheckpointMismatch(ValueError):
    """What was read back is not what the live process had when it saved."""


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
    """`module` under ZeRO with AdamW; its learning rate follows a cosine over `total_steps`."""

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
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=self._deepspeed_config(dtype)
        )
        self.device = self._engine.device
        self.world = torch.distributed.get_world_size()
        self.rank = torch.distributed.get_rank()

    def _deepspeed_config(self, dtype: str) -> dict[str, Any]:
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,  # the boundary is set by hand in `update`
            "gradient_clipping": self._config.max_grad_norm,
            "bf16": {"enabled": dtype == "bfloat16"},
            "zero_optimization": {
                "stage": self._config.zero_stage,
                "overlap_comm": torch.cuda.is_available(),
                "contiguous_gradients": True,
            },
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
            "wall_clock_breakdown": False,
        }
        return config

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
        self._engine.step()
        self.steps += 1
        norm = self._engine.get_global_grad_norm()
        return {"lr": lr, "grad_norm": float(norm) if norm is not None else float("nan")}

    def all_reduce(
        self, values: Sequence[float], op: Any = torch.distributed.ReduceOp.SUM
    ) -> list[float]:
        """Sum (or another `op`) of each number over the ranks, in double precision."""
        if self.world == 1:
            return [float(v) for v in values]
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor, op)
        return tensor.tolist()

    # ------------------------------------------------------------ checkpoints

    def save(self, folder: Path, extra: dict[str, Any]) -> dict[str, str]:
        """Write this rank's share to `folder` with hashes of the live state; returns them."""
        folder.mkdir(parents=True, exist_ok=True)
        self._engine.save_checkpoint(str(folder), tag="state", exclude_frozen_parameters=True)
        hashes = self.hashes(extra)
        rng = {"torch": torch.get_rng_state(), "numpy": np.random.get_state()}
        if torch.cuda.is_available():
            rng["cuda"] = torch.cuda.get_rng_state()
        torch.save(rng, folder / f"rng-{self.rank}.pt")
        state = {
            "steps": self.steps,
            "world": self.world,
            "python_rng": _jsonable(random.getstate()),
            "extra": extra,
            "hashes": hashes,
        }
        (folder / f"rank-{self.rank}.json").write_text(json.dumps(state), encoding="utf-8")
        torch.distributed.barrier()
        return hashes

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore what `save` wrote, bit for bit; returns `extra`.

        Raises:
            CheckpointMismatch: other number of ranks, or a hash that differs from the live one.
        """
        path = folder / f"rank-{self.rank}.json"
        if not path.exists():
            raise CheckpointMismatch(f"{folder} was written by fewer ranks than the {self.world}")
        state = json.loads(path.read_text(encoding="utf-8"))
        if state["world"] != self.world:
            raise CheckpointMismatch(
                f"{folder} was written by {state['world']} ranks, this run has {self.world}"
            )
        self._engine.load_checkpoint(str(folder), tag="state", load_module_strict=False)
        rng = torch.load(folder / f"rng-{self.rank}.pt", weights_only=False)
        torch.set_rng_state(rng["torch"])
        np.random.set_state(rng["numpy"])
        if "cuda" in rng:
            torch.cuda.set_rng_state(rng["cuda"])
        version, internal, gauss = state["python_rng"]
        random.setstate((version, tuple(internal), gauss))
        self.steps = state["steps"]
        here = self.hashes(state["extra"])
        wrong = [name for name, value in state["hashes"].items() if here.get(name) != value]
        if wrong:
            raise CheckpointMismatch(f"{folder}: restored {', '.join(wrong)} differ from the save")
        return state["extra"]

    def hashes(self, extra: dict[str, Any]) -> dict[str, str]:
        """Fingerprints of weights, optimizer, schedule, random states and `extra`, this rank."""
        inner = getattr(self._optimizer, "optimizer", self._optimizer)
        moments: list[torch.Tensor] = []
        for group in inner.param_groups:
            for parameter in group["params"]:
                moments.append(parameter.detach())
                state = inner.state.get(parameter, {})
                moments += [torch.as_tensor(state[k]) for k in sorted(state)]
        trained = [p.detach() for p in self.module.parameters() if p.requires_grad]
        return {
            "weights": _hash_tensors(trained),
            "optimizer": _hash_tensors(moments),
            "schedule": _hash_text(json.dumps([self.steps, self._total_steps])),
            "random": _hash_text(
                _hash_tensors([torch.get_rng_state()])
                + repr(random.getstate())
                + repr([np.asarray(x).tolist() for x in np.random.get_state()])
            ),
            "normalizers": _hash_text(json.dumps(extra, sort_keys=True)),
        }


def _hash_tensors(tensors: Sequence[torch.Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for tensor in tensors:
        digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def _hash_text(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


def _jsonable(state: Any) -> list[Any]:
    version, internal, gauss = state
    return [version, list(internal), gauss]
