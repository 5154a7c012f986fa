"""The generalisable reward model: one backbone, a reward head and the language head kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from grm_ray.config.schema import Head
from grm_ray.data.packing import Packed
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
        packed: Packed | None,
        logprobs_of: Sequence[int] | None = None,
        features_AH: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores of all answers, and the summed log-probs of some.

        Args:
            packed: prompts with their A answers; an answer is scored at its last token.
            logprobs_of: the C answers whose log-probs are wanted; None: no language head at all.
            features_AH: hidden states at the answers' last tokens, where a frozen backbone made
                them before; `packed` may then be None.

        Returns:
            `scores_A` (with attributes or members `(A, outputs)`) and `logprobs_C` (nats, or None),
            fp32.
        """
        if features_AH is not None:
            return self.head(features_AH), None
        assert packed is not None
        return self.heads(self.hidden(packed), packed, logprobs_of)

    def external_parameters(self) -> list[nn.Parameter]:
        """Parameters of other modules that `forward` reads: ZeRO-3 has to be told of them."""
        speaks = any(True for _ in unwrap(self.lm).get_output_embeddings().parameters())
        return head_parameters(self.lm) if speaks else []  # a classifier has no language head

    def hidden(self, packed: Packed) -> torch.Tensor:
        """Hidden states `(T, H)` that both heads read."""
        return hidden_states(self.lm, packed)

    def heads(
        self, hidden_TH: torch.Tensor, packed: Packed, logprobs_of: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What `forward` gives, from hidden states."""
        scores_A = self.head(hidden_TH[packed.last_A])
        if logprobs_of is None:
            return scores_A, None
        logp_N, owner_N, _, _ = answer_logprobs(self.lm, hidden_TH, packed, answers=logprobs_of)
        sums_C = torch.zeros(len(logprobs_of), dtype=logp_N.dtype, device=logp_N.device)
        return scores_A, sums_C.index_add(0, owner_N, logp_N)


def head_parameters(lm: nn.Module) -> list[nn.Parameter]:
    """What `answer_logprobs` reads of the language head, without calling it."""
    head = unwrap(lm).get_output_embeddings()
    return [head.weight] if head.bias is None else [head.weight, head.bias]


def answer_logprobs(
    lm: nn.Module,
    hidden_TH: torch.Tensor,
    packed: Packed,
    temperature: float = 1.0,
    answers: Sequence[int] | None = None,
    with_entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Log-probs of the tokens of `answers` (None: of all).

    The language head sees the hidden states that predict an answer token and no other; the
    `(tokens, vocabulary)` array never exists as a whole.

    Returns:
        `(logp_N, owner_N, hidden_NH, entropy_N)`: the N tokens' log-probs, the entry of `answers`
        that each belongs to, the hidden states that predict them, and the entropy of the laws that
        they were drawn from (None unless `with_entropy`).
    """
    at_N, before_N, owner_N = packed.answer_tokens(answers)
    hidden_NH = hidden_TH[before_N]
    head = unwrap(lm).get_output_embeddings()
    found = token_logprobs(
        hidden_NH,
        head.weight,
        packed.input_ids_T[at_N],
        temperature,
        bias=head.bias,
        with_entropy=with_entropy,
    )
    logp_N, entropy_N = found if with_entropy else (found, None)
    return logp_N, owner_N, hidden_NH, entropy_N
