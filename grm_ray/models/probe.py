"""Whether log-probs that are computed here are those of the model, found out on a few tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from grm_ray.data.packing import WORTH_SHARING, pack
from grm_ray.models import attention
from grm_ray.models.backbone import hidden_states

# What rounding may change of hidden states and of logits, as a share of their norm. Of SmolLM2's 30
# layers it changes 2e-6 and 4e-6 in fp32, 0.02 and 0.05 in bf16; deeper models more.
IN_FP32, IN_BF16 = (1e-3, 1e-3), (0.1, 0.2)
NO_PLUG = "its attention cannot be replaced through transformers"


def difference(lm: nn.Module) -> str | None:
    """What comes out otherwise here than in transformers; None: nothing.

    A layer that mixes tokens without our attention (a state-space layer, an attention of a model's
    own) would read over the seams of a packed sequence, a bidirectional model would be made a
    causal one, a head that is more than one matrix would be cut short; nothing else would say so.
    """
    try:
        return _difference(lm.eval())
    except Exception as error:  # each architecture fails in a way of its own
        return f"a pass through it fails here ({reason(error)})"


def reason(error: Exception) -> str:
    """What a model's own code says, in one line."""
    said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return NO_PLUG if attention.NAME in said else said


@torch.no_grad()
def _difference(lm: nn.Module) -> str | None:
    rough = any(p.dtype == torch.bfloat16 for p in lm.parameters())
    of_hidden, of_logits = IN_BF16 if rough else IN_FP32
    # Spread over the vocabulary and off its ends: its special tokens, never trained on as a rule,
    # lead to states in which rounding alone changes what a model says.
    parts = np.arange(WORTH_SHARING + 7) + 0.5
    ids = (parts / len(parts) * lm.get_input_embeddings().weight.shape[0]).astype(np.int64)
    shared, own, one, other = np.split(ids, WORTH_SHARING + np.array([0, 2, 4]))
    prompt, turned = np.append(shared, own), np.append(shared, own[::-1])
    packed = pack([(prompt, [one, other]), (turned, [one, other])])
    assert packed.shared, "the check is to cover a shared start too"
    together = hidden_states(lm, packed)
    width = lm.config.hidden_size
    if together.shape[1] != width:
        return (
            f"its hidden states have {together.shape[1]} entries, its config's hidden_size {width}"
        )
    groups = [(which, [answer]) for which in (prompt, turned) for answer in (one, other)]
    for (start, end), group in zip(packed.answers, groups, strict=True):
        alone = hidden_states(lm, pack([group]))[start - end :]
        if not _close(together[start:end], alone, of_hidden):
            return (
                "answers that share their prompt get different hidden states from those of the "
                f"same answers alone ({NO_PLUG})"
            )
    _, before, _ = packed.answer_tokens([len(groups) - 1])
    head = lm.get_output_embeddings()
    here = F.linear(together[before], head.weight, head.bias)
    there = _logits(lm, np.append(turned, other))[-len(other) - 1 : -1]
    # Less what is the same for all tokens, which no softmax sees.
    here, there = (x.float() - x.float().mean(1, keepdim=True) for x in (here, there))
    if not _close(here, there, of_logits):
        return (
            "its log-probs are not those of transformers (its attention is not causal, or its "
            "logits are more than hidden states times the language head)"
        )
    return None


def _close(here: torch.Tensor, there: torch.Tensor, slack: float) -> bool:
    here, there = here.float(), there.float()
    return bool((here - there).norm() <= slack * there.norm())  # not where one is no number


def _logits(lm: nn.Module, ids_T: np.ndarray) -> torch.Tensor:
    """`(T, V)` of transformers' own forward pass, with its own attention."""
    lm.set_attn_implementation("sdpa" if lm._supports_sdpa else "eager")
    try:
        return lm(input_ids=torch.from_numpy(ids_T)[None], use_cache=False).logits[0]
    finally:
        lm.set_attn_implementation(attention.NAME)
