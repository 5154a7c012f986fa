"""fp32 weights and Adam's moments as whole tensors, wherever DeepSpeed keeps the pieces of them."""

from __future__ import annotations

from typing import Any

import torch

Shape = tuple[int, ...]
KEYS = ("weight", "exp_avg", "exp_avg_sq")


class TrainedState:
    """What AdamW trains in a DeepSpeed engine, parameter by parameter, for every ZeRO stage.

    The stages keep the fp32 weights flat and cut them in their own ways (stage 0: every rank has
    all; 1 and 2: one long row over all parameters, cut into equal parts; 3: each parameter cut).
    Here a parameter is its shape, and this rank's piece of it a span of the flattened whole.
    """

    def __init__(self, engine: Any, stage: int) -> None:
        self._optimizer, self._adam = engine.optimizer, engine.basic_optimizer
        self._stage, self._device = stage, engine.device
        self._rank = torch.distributed.get_rank()
        self._parameters = {
            name: p for name, p in engine.module.named_parameters() if p.requires_grad
        }
        # ZeRO-3 leaves an empty tensor where a parameter was, with the shape as an attribute.
        self.shapes: dict[str, Shape] = {
            name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in self._parameters.items()
        }
        self._masters = self._parameters if stage == 0 else {}
        if hasattr(self._optimizer, "fp32_groups"):  # stage 0 in bf16
            self._masters = self._fresh_masters()

    @property
    def adam_steps(self) -> int:
        """Updates that Adam has made, which are fewer than asked for if one was not finite."""
        return max((int(state["step"]) for state in self._adam.state.values() if state), default=0)

    @torch.no_grad()
    def whole(self, name: str, at: int) -> dict[str, torch.Tensor] | None:
        """The parameter's `KEYS` in its own shape on rank `at`; None on others. All ranks call."""
        shape = self.shapes[name]
        start, pieces = self._pieces(name)
        found = {}
        for key in KEYS:
            if self._stage == 0:
                tensor = pieces[key]
            else:
                # No two pieces overlap: a sum of integers lays them together, every bit as it was.
                numel = torch.Size(shape).numel()
                bits = torch.zeros(numel, dtype=torch.int32, device=self._device)
                piece = pieces.get(key, bits[:0])
                bits[start : start + len(piece)] = piece.view(torch.int32).to(self._device)
                torch.distributed.reduce(bits, at)
                tensor = bits.view(torch.float32)
            found[key] = tensor.view(shape)
        return found if self._rank == at else None

    @torch.no_grad()
    def put(self, name: str, whole: dict[str, torch.Tensor]) -> None:
        """Lay this rank's piece of `whole` into place; the model sees it after `publish`."""
        start, pieces = self._pieces(name)
        for key, piece in pieces.items():
            piece.copy_(whole[key].reshape(-1)[start : start + len(piece)])

    @torch.no_grad()
    def publish(self, adam_steps: int) -> None:
        """Give the model the fp32 weights in its own dtype, and Adam its count. All ranks call."""
        for parameter, state in self._adam.state.items():
            # Fused, Adam reads its count where the weights are.
            state["step"] = torch.tensor(float(adam_steps), device=parameter.device)
        if self._stage == 0:
            for name, parameter in self._parameters.items():
                parameter.copy_(self._masters[name])
        elif self._stage == 3:
            self._optimizer.checkpoint_event_prologue()
            for group in range(len(self._optimizer.fp16_groups)):
                self._optimizer._reassign_or_swap_out_partitioned_parameters(group)
            self._optimizer.checkpoint_event_epilogue()
        else:
            self._optimizer.update_lp_params()

    @torch.no_grad()
    def _fresh_masters(self) -> dict[str, torch.Tensor]:
        """The fp32 weights beside bf16 ones, and Adam as it is before its first step.

        DeepSpeed lets Adam make a step on zero gradients here, which decays weights, and counts.
        """
        masters = {}
        groups = zip(self._optimizer.fp16_groups, self._optimizer.fp32_groups, strict=True)
        for low, high in groups:
            for parameter, master in zip(low, high, strict=True):
                masters[id(parameter)] = master.copy_(parameter)
        self._adam.state.clear()
        return {name: masters[id(p)] for name, p in self._parameters.items()}

    def _pieces(self, name: str) -> tuple[int, dict[str, torch.Tensor]]:
        """Where this rank's piece begins in the flattened whole, and flat views of what lives."""
        parameter, optimizer = self._parameters[name], self._optimizer
        if self._stage == 0:
            flat = self._masters[name]
            start, offset, length = 0, 0, flat.numel()
        elif self._stage == 3:
            group, offset, numel = optimizer.grad_position[parameter.ds_id]
            flat = optimizer.fp32_partitioned_groups_flat[group]
            start = self._rank * numel
            length = min(max(parameter.ds_numel - start, 0), numel)  # the last ones are padded
        else:
            mapping = parameter._hp_mapping
            if mapping is None:  # all of it is with other ranks
                return 0, {}
            flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
            start = mapping.lp_fragment_address.start
            offset, length = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
        state = self._adam.state[flat]
        if "exp_avg" not in state:  # as Adam's first step would make it
            state["step"] = torch.tensor(0.0, device=flat.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(flat), torch.zeros_like(flat)
        tensors = {"weight": flat, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        return start, {
            key: tensor.detach().view(-1)[offset : offset + length]
            for key, tensor in tensors.items()
        }
