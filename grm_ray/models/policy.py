"""The policy with its critic: one backbone, the language head and a value head."""

from __future__ import annotations

import copy

import torch
from torch import nn

from grm_ray.config.schema import Head
from grm_ray.data.packing import Packed
from grm_ray.models.backbone import adapter_off, hidden_states, is_lora, unwrap
from grm_ray.models.heads import ScalarHead
from grm_ray.models.reward_model import answer_logprobs


class Policy(nn.Module):
    """One composite module, so that one DeepSpeed engine trains both heads."""

    def __init__(self, lm: nn.Module, head: Head) -> None:
        super().__init__()
        self.lm = lm
        self.value_head = ScalarHead(unwrap(lm).config.hidden_size, head)
        # The critic starts at 0 everywhere: the first advantages are then the returns themselves.
        for parameter in self.value_head.layers[-1].parameters():
            nn.init.zeros_(parameter)
        self.value_head.to(next(lm.parameters()).dtype)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # with dropout the first ratio pi/pi_old would not be 1

    def forward(
        self, packed: Packed, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`(logp_N, values_N)` of all answer tokens, answer after answer, fp32.

        `values_N[t]` is the value of the state in which token t was chosen.
        """
        hidden_TH = hidden_states(self.lm, packed)
        logp_N, _, hidden_NH = answer_logprobs(self.lm, hidden_TH, packed, temperature)
        return logp_N, self.value_head(hidden_NH)


class Reference:
    """The policy as it was at the start: its adapter off, or a frozen second copy."""

    def __init__(self, policy: Policy) -> None:
        self._lm = policy.lm
        self._copy: nn.Module | None = None
        if not is_lora(policy.lm):
            self._copy = copy.deepcopy(policy.lm).requires_grad_(False)

    def to(self, device: torch.device) -> None:
        if self._copy is not None:
            self._copy.to(device)

    @torch.no_grad()
    def logprobs(self, packed: Packed, temperature: float = 1.0) -> torch.Tensor:
        """`(N,)` log-probs of all answer tokens under the reference, answer after answer."""
        if self._copy is not None:
            return _logprobs(self._copy, packed, temperature)
        with adapter_off(self._lm):
            return _logprobs(self._lm, packed, temperature)


def _logprobs(lm: nn.Module, packed: Packed, temperature: float) -> torch.Tensor:
    return answer_logprobs(lm, hidden_states(lm, packed), packed, temperature)[0]
