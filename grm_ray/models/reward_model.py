"""The generalisable reward model: one backbone, a reward head and the language head kept."""

from __future__ import annotations

import torch
from torch import nn

from grm_ray.config.schema import Head
from grm_ray.models.backbone import hidden_states, unwrap
from grm_ray.models.heads import ScalarHead
from grm_ray.models.logprobs import token_logprobs


class RewardModel(nn.Module):
    """Scores conversations, and gives the log-probs that GRM's regulariser needs.

    Yang et al. 2024, "Regularizing Hidden States Enables Learning Generalizable Reward Model for
    LLMs", section 3: the same hidden states serve both heads.
    """

    def __init__(self, lm: nn.Module, head: Head) -> None:
        super().__init__()
        self.lm = lm
        self.head = ScalarHead(unwrap(lm).config.hidden_size, head)
        self.head.to(next(lm.parameters()).dtype)

    def forward(
        self,
        input_ids_BL: torch.Tensor,
        lengths_B: torch.Tensor,
        answer_starts_C: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores `(B,)` fp32, and summed answer log-probs `(C,)` of the first C rows.

        Args:
            input_ids_BL: rows padded on the right.
            lengths_B: true lengths; a row is scored at position `length - 1`.
            answer_starts_C: where the answers of the first C rows begin; None: no log-probs.
        """
        hidden_BLH = hidden_states(self.lm, input_ids_BL)
        rows_B = torch.arange(len(lengths_B), device=input_ids_BL.device)
        scores_B = self.head(hidden_BLH[rows_B, lengths_B - 1])
        if answer_starts_C is None:
            return scores_B, None
        logp_T, rows_T, _ = answer_logprobs(
            self.lm, hidden_BLH, input_ids_BL, lengths_B[: len(answer_starts_C)], answer_starts_C
        )
        sums_C = torch.zeros(len(answer_starts_C), dtype=logp_T.dtype, device=logp_T.device)
        return scores_B, sums_C.index_add(0, rows_T, logp_T)


def answer_positions(
    lengths_B: torch.Tensor, starts_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(row, position) of every answer token, flat over rows: `(T,)` each."""
    counts_B = lengths_B - starts_B
    rows_T = torch.repeat_interleave(torch.arange(len(lengths_B), device=counts_B.device), counts_B)
    ends_B = torch.cumsum(counts_B, 0)
    within_T = torch.arange(len(rows_T), device=counts_B.device) - (ends_B - counts_B)[rows_T]
    return rows_T, starts_B[rows_T] + within_T


def answer_logprobs(
    lm: nn.Module,
    hidden_BLH: torch.Tensor,
    input_ids_BL: torch.Tensor,
    lengths_B: torch.Tensor,
    starts_B: torch.Tensor,
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probs of the answer tokens only: `(logp_T, rows_T, hidden_TH)`.

    The language head sees the hidden states that predict an answer token and no other; the
    `(tokens, vocabulary)` array never exists as a whole.
    """
    rows_T, at_T = answer_positions(lengths_B, starts_B)
    hidden_TH = hidden_BLH[rows_T, at_T - 1]
    head = unwrap(lm).get_output_embeddings()
    logp_T = token_logprobs(
        hidden_TH, head.weight, input_ids_BL[rows_T, at_T], temperature=temperature, bias=head.bias
    )
    return logp_T, rows_T, hidden_TH
