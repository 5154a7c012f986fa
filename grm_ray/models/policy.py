"""The policy with critic and reference: one backbone, the language head and a value head."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from grm_ray.config.schema import Head
from grm_ray.data.packing import Packed
from grm_ray.models.backbone import adapter_off, hidden_states, is_lora, unwrap
from grm_ray.models.heads import ScalarHead
from grm_ray.models.reward_model import answer_logprobs, head_parameters


class Said(NamedTuple):
    """Of all N answer tokens, answer after answer, fp32.

    Attributes:
        logp_N: log-prob of the token, in nats.
        values_N: value of the state in which it was chosen.
        entropy_N: entropy of the law that it was drawn from, in nats; None unless asked for.
        ref_logp_N: its log-prob under the reference, without gradient; None unless asked for.
    """

    logp_N: torch.Tensor
    values_N: torch.Tensor
    entropy_N: torch.Tensor | None
    ref_logp_N: torch.Tensor | None


class Policy(nn.Module):
    """One composite module, so that one DeepSpeed engine holds all of it.

    Args:
        lm: the policy, with or without an adapter.
        reference: a frozen model of the same vocabulary to stay near to; None: the policy as it is
            now, which is its adapter switched off, or else a frozen copy.
        ema: the reference is an average of the policy's weights instead, moved by `follow`, which
            keeps this share of it.
    """

    def __init__(
        self,
        lm: nn.Module,
        head: Head,
        reference: nn.Module | None = None,
        ema: float | None = None,
    ) -> None:
        super().__init__()
        self._ema = ema
        # In fp32: in bf16, small steps would be rounded off.
        self.average: dict[str, torch.Tensor] = {}
        if ema is not None:
            self.average = {name: p.detach().float().clone() for name, p in _learning(lm)}
        self.lm = lm
        self.value_head = ScalarHead(unwrap(lm).config.hidden_size, head)
        # The critic starts at 0 everywhere: the first advantages are then the returns themselves.
        for parameter in self.value_head.layers[-1].parameters():
            nn.init.zeros_(parameter)
        self.value_head.to(next(lm.parameters()).dtype)
        if reference is None and ema is None and not is_lora(lm):
            reference = copy.deepcopy(lm)
        self.reference = None if reference is None else reference.requires_grad_(False)
        _draw_nothing(self)

    def forward(
        self,
        packed: Packed,
        temperature: float = 1.0,
        with_entropy: bool = False,
        with_reference: bool = False,
        critic_alone: bool = False,
        reference_alone: bool = False,
    ) -> Said:
        """What policy, critic and reference say of the answers.

        Args:
            critic_alone: the value head learns on hidden states as they are.
            reference_alone: the policy's own pass is spared: `logp_N` and `values_N` are empty.
        """
        if reference_alone:
            ref_logp_N = self._reference(packed, temperature)
            return Said(ref_logp_N[:0], ref_logp_N[:0], None, ref_logp_N)
        logp_N, _, hidden_NH, entropy_N = answer_logprobs(
            self.lm, hidden_states(self.lm, packed), packed, temperature, with_entropy=with_entropy
        )
        values_N = self.value_head(hidden_NH.detach() if critic_alone else hidden_NH)
        ref_logp_N = self._reference(packed, temperature) if with_reference else None
        return Said(logp_N, values_N, entropy_N, ref_logp_N)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average towards the policy: `ema * average + (1 - ema) * policy`."""
        for name, parameter in _learning(self.lm) if self._ema is not None else ():
            average = self.average[name].to(parameter.device)
            self.average[name] = average.lerp_(parameter.float(), 1.0 - self._ema)

    @torch.no_grad()
    def _reference(self, packed: Packed, temperature: float) -> torch.Tensor:
        lm, standing_in = self.lm, contextlib.nullcontext()
        if self._ema is not None:
            standing_in = self._averaged()
        elif self.reference is not None:
            lm = self.reference
        else:
            standing_in = adapter_off(lm)
        with standing_in:
            return answer_logprobs(lm, hidden_states(lm, packed), packed, temperature)[0]

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the policy's weights are the average; DeepSpeed's buffers are left alone."""
        own = {name: (p, p.data) for name, p in _learning(self.lm)}
        try:
            for name, (parameter, data) in own.items():
                parameter.data = self.average[name].to(data.device, data.dtype)
            yield
        finally:
            for parameter, data in own.values():
                parameter.data = data

    def external_parameters(self) -> list[nn.Parameter]:
        """Parameters of other modules that `forward` reads: ZeRO-3 has to be told of them."""
        return [
            p for lm in (self.lm, self.reference) if lm is not None for p in head_parameters(lm)
        ]


def _learning(lm: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in lm.named_parameters() if p.requires_grad]


def _draw_nothing(model: nn.Module) -> None:
    """Make `model` say in train mode what it says in eval mode.

    With dropout the first ratio pi/pi_old would not be 1, and a model without an adapter would
    begin away from its reference. Models keep it as modules or as numbers (`attention_dropout`,
    `layerdrop`), and routers may shake what they read (`jitter_noise`).
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(module, name, 0.0)
