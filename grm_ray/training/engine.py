"""One DeepSpeed ZeRO engine for reward-model trainer and learner.

What it adds to DeepSpeed: micro-batch counts may differ between ranks (short ranks run dummies of
weight zero, or the collective reductions would wait for ever), losses are normalised over the
*global* batch, micro-batches shrink where memory runs out, updates that are no numbers are left
out, and checkpoints fit any ZeRO stage and number of ranks (`checkpoint.py`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from grm_ray.config.schema import Optimizer
from grm_ray.objectives.schedules import cosine_with_warmup
from grm_ray.training import checkpoint, gradients
from grm_ray.training.checkpoint import CheckpointMismatch
from grm_ray.training.micro_batch_budget import FITS, Memory
from grm_ray.training.state import TrainedState

Batch = TypeVar("Batch")


class ZeroEngine:
    """`module` under ZeRO with AdamW; its learning rate follows a cosine over `total_steps`.

    At stage 3 every rank holds a part of each weight, and a forward pass is a meeting of all ranks:
    call the engine, never a part of `module`, and equally often everywhere (`read`). Modules
    that read other modules' parameters name them in a method `external_parameters`.
    """

    def __init__(self, module: nn.Module, config: Optimizer, dtype: str, total_steps: int) -> None:
        import deepspeed

        self._config = config
        self._total_steps = total_steps
        self.steps = 0
        self._skipped_in_a_row = 0
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
        self._memory = Memory(config.tokens_per_micro_batch, config.zero_stage, self.all_reduce)

    def _deepspeed_config(self, dtype: str) -> dict[str, Any]:
        cuda = torch.cuda.is_available()
        zero: dict[str, Any] = {
            "stage": self._config.zero_stage,
            # At stage 1 the reduction waits until every rank has been through its micro-batches.
            "overlap_comm": cuda and self._config.zero_stage > 1,
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
        plan: Callable[[int], Sequence[Batch]],
        loss: Callable[[Batch], tuple[torch.Tensor, Any]],
        dummy: Callable[[], torch.Tensor],
    ) -> tuple[dict[str, float], list[Any]]:
        """One optimizer step over this rank's micro-batches.

        Where one does not fit memory, on any rank, the step begins anew on all of them, from zeroed
        gradients and with half the tokens a micro-batch: nothing counts twice.

        Args:
            plan: tokens -> micro-batches of this rank (lists, of so many tokens where rows can be
                parted); their number may differ from other ranks'.
            loss: batch -> scalar, already divided by the *global* count it is a mean over; and what
                the caller wants to know of it.
            dummy: scalar that depends on every parameter, for ranks with less to do.

        Returns:
            Of the step: `lr`, `grad_norm` (before clipping), `micro_batch_tokens`,
            `skipped_updates` (1: loss or gradient were no number, and the weights are as they
            were) and `skipped_in_a_row`, equal on all ranks. And what `loss` told, batch by batch.

        Raises:
            RunStopped: memory ran out where nothing smaller can be tried.
        """
        self._memory.agree()
        while True:
            told: list[Any] = []
            trouble = self._accumulate(plan, loss, dummy, told)
            if trouble == FITS:
                return self._step(), told
            gradients.forget(self._engine, self._config.zero_stage)
            self._memory.shrink(trouble)

    def _accumulate(
        self,
        plan: Callable[[int], Sequence[Batch]],
        loss: Callable[[Batch], tuple[torch.Tensor, Any]],
        dummy: Callable[[], torch.Tensor],
        told: list[Any],
    ) -> float:
        """Gradients of all micro-batches, reduced over the ranks unless one had trouble."""
        stage, batches = self._config.zero_stage, plan(self._memory.budget)
        most = torch.distributed.ReduceOp.MAX
        rounds = max(1, int(self.all_reduce([float(len(batches))], most)[0]))
        # From stage 2 on ranks meet in every backward pass: they go through it together or not.
        meet = stage >= 2 and self.world > 1
        trouble = FITS
        for i in range(rounds):
            batch = batches[i] if i < len(batches) else None
            self._engine.set_gradient_accumulation_boundary(stage >= 2 and i == rounds - 1)
            try:
                value, said = (dummy() * 0.0, None) if batch is None else loss(batch)
                # DeepSpeed averages gradients over ranks; the loss is a share of a global mean.
                # One that is no number makes all gradients none, also where its own would be some.
                value = value * self.world * (1 + 0 * value.detach())
                if not meet:
                    self._engine.backward(value)
            except RuntimeError as error:
                trouble = self._memory.trouble(error, batch, plan)
            if meet:
                trouble = self._memory.worst(trouble)
                if trouble == FITS:
                    with self._memory.all_or_none():
                        self._engine.backward(value)
            if trouble != FITS:
                break
            if batch is not None:
                told.append(said)
        if not meet:
            trouble = self._memory.worst(trouble)
        if stage < 2 and trouble == FITS:
            self._engine.set_gradient_accumulation_boundary(True)
            self._engine.allreduce_gradients()
        return trouble

    def _step(self) -> dict[str, float]:
        lr = self._config.learning_rate * cosine_with_warmup(
            self.steps,
            self._total_steps,
            round(self._config.warmup_ratio * self._total_steps),
            self._config.minimum_ratio,
        )
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        found = [p.grad for p in self.module.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(found))  # of all of them at stage 0 alone
        if self._config.zero_stage == 0 and not math.isfinite(norm):
            gradients.forget(self._engine, 0)
            applied = False
        else:
            self._engine.step()  # from stage 1 on it leaves out by itself what is no number
            applied = self._engine.was_step_applied()
            known = self._engine.get_global_grad_norm()
            norm = norm if known is None else float(known)
        self.steps += 1
        self._skipped_in_a_row = 0 if applied else self._skipped_in_a_row + 1
        return {
            "lr": lr,
            "grad_norm": norm if applied else math.nan,
            "micro_batch_tokens": self._memory.budget,
            "skipped_updates": float(not applied),
            "skipped_in_a_row": self._skipped_in_a_row,
        }

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

    def read(
        self, plan: Callable[[int], Sequence[Batch]], read: Callable[[Batch | None], None]
    ) -> None:
        """A pass without gradients: `read` gets this rank's batches, one by one.

        Where one does not fit memory, the pass begins anew with half the tokens a batch.

        Args:
            plan: as of `update`.
            read: keeps what it finds by row. At stage 3 it then gets None, until every rank has had
                equally many, for a forward pass on whatever there is; below, no rank waits for
                another, and there is no None.

        Raises:
            RunStopped: memory ran out where nothing smaller can be tried.
        """
        while True:
            trouble = self._read_all(plan, read)
            if trouble == FITS:
                return
            if self._config.zero_stage == 3:
                gradients.forget(self._engine, 3)
            self._memory.shrink(trouble)

    def _read_all(
        self, plan: Callable[[int], Sequence[Batch]], read: Callable[[Batch | None], None]
    ) -> float:
        batches = plan(self._memory.budget)
        rounds = len(batches)
        if self._config.zero_stage == 3:
            rounds = int(self.all_reduce([float(rounds)], torch.distributed.ReduceOp.MAX)[0])
        for i in range(rounds):
            batch = batches[i] if i < len(batches) else None
            try:
                read(batch)
            except RuntimeError as error:
                return self._memory.trouble(error, batch, plan)
        return FITS

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

    def save(
        self, folder: Path, extra: dict[str, Any], also: dict[str, dict[str, torch.Tensor]]
    ) -> dict[str, str]:
        """Write this rank's share to `folder` with hashes of the live state; returns them.

        Args:
            extra: plain values for `load` to give back, equal on every rank.
            also: files of tensors that this rank writes beside, by name.

        Raises:
            NotWritten: a rank could not write; all raise it, and can go on.
        """
        return checkpoint.save(self._state, folder, self._facts(extra), also)

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
                f"{folder} is from a run of {facts['total_steps']} steps, not {self._total_steps}"
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
