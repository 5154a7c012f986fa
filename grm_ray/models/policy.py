"""The policy with its critic: one backbone, the language head and a value head."""

from __future__ import annotations

import copy

import torch
from torch import nn

from grm_ray.config.schema import Head
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
        self,
        input_ids_BL: torch.Tensor,
        lengths_B: torch.Tensor,
        answer_starts_B: torch.Tensor,
        temperature: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`(logp_T, values_T)` of all answer tokens, flat in row order, fp32.

        `values_T[t]` is the value of the state in which token t was chosen.
        """
        hidden_BLH = hidden_states(self.lm, input_ids_BL)
        logp_T, _, hidden_TH = answer_logprobs(
            self.lm, hidden_BLH, input_ids_BL, lengths_B, answer_starts_B, temperature
        )
        return logp_T, self.value_head(hidden_TH)


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
    def logprobs(
        self,
        input_ids_BL: torch.Tensor,
        lengths_B: torch.Tensor,
        answer_starts_B: torch.Tensor,
        temperature: float = 1.0,
    ) -> torch.Tensor:
        """`(T,)` log-probs of the answer tokens under the reference, flat in row order."""
        if self._copy is not None:
            return self._forward(self._copy, input_ids_BL, lengths_B, answer_starts_B, temperature)
        with adapter_off(self._lm):
            return self._forward(self._lm, input_ids_BL, lengths_B, answer_starts_B, temperature)

    @staticmethod
    def _forward(
        lm: nn.Module,
        input_ids_BL: torch.Tensor,
        lengths_B: torch.Tensor,
        answer_starts_B: torch.Tensor,
        temperature: float,
    ) -> torch.Tensor:
        hidden_BLH = hidden_states(lm, input_ids_BL)
        return answer_logprobs(
            lm, hidden_BLH, input_ids_BL, lengths_B, answer_starts_B, temperature
        )[0]
