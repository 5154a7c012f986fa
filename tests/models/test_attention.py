"""A packed answer is computed as it would be alone, in values and gradients, for several models."""

import numpy as np
import pytest
import torch
import transformers

from grm_ray.config.schema import Head
from grm_ray.data.packing import pack
from grm_ray.models import attention
from grm_ray.models.backbone import hidden_states
from grm_ray.models.reward_model import RewardModel

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "Llama": {"num_key_value_heads": 4},
    "Qwen2": {"num_key_value_heads": 2},  # keys and values shared by query heads
    "Mistral": {"num_key_value_heads": 2, "sliding_window": 4},
    "Gemma3Text": {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 5},
}
RNG = np.random.default_rng(0)


def tokens(count):
    return RNG.integers(3, 64, count)


START = tokens(9)
LAYOUTS = {
    "nothing shared": [
        (tokens(7), [tokens(5), tokens(1), tokens(9)]),
        (tokens(1), [tokens(1)]),
        (tokens(3), [tokens(6), tokens(6)]),
    ],
    "a shared start": [
        (np.concatenate([START, tokens(own)]), [tokens(n) for n in answers])
        for own, answers in ((4, (5, 1)), (1, (3,)), (6, (2, 7)))
    ],
}


@pytest.fixture(params=LAYOUTS)
def groups(request):
    found = LAYOUTS[request.param]
    assert pack(found).shared == (9 if request.param == "a shared start" else 0)
    return found


def alone(groups):
    """Each answer behind its whole prompt."""
    return [np.concatenate([prompt, answer]) for prompt, answers in groups for answer in answers]


def build(name, extra, implementation):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **extra)
    config._attn_implementation = implementation
    lm = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in lm.parameters():
        if parameter.ndim > 1:  # large enough that attention decides what comes out
            torch.nn.init.normal_(parameter, std=0.3)
    return lm


@pytest.fixture(params=MODELS)
def models(request):
    """One model twice: with packed attention, and with transformers' own."""
    return tuple(build(request.param, MODELS[request.param], x) for x in (attention.NAME, "sdpa"))


def test_hidden_states_equal_those_of_each_answer_alone(models, groups):
    ours, plain = models
    packed = pack(groups)
    hidden = hidden_states(ours, packed)
    for prompt, answer, ids in zip(packed.prompts, packed.answers, alone(groups), strict=True):
        wanted = plain.model(input_ids=torch.tensor(ids)[None]).last_hidden_state[0]
        for begin, end in (prompt, answer):
            at = packed.position_ids_T[begin:end]
            torch.testing.assert_close(hidden[begin:end], wanted[at], atol=1e-4, rtol=0)


def test_gradients_equal_those_of_separate_sequences(models, groups):
    """Both heads' losses, over all answers; the bound is a share of the largest entry."""
    ours, plain = models
    model = RewardModel(ours, Head(kind="linear"))
    which = [0, 2, 4]
    scores, logprobs = model(pack(groups), which)
    weights = torch.linspace(-1, 1, len(scores))
    ((scores * weights).sum() + (logprobs * weights[which]).sum()).backward()

    total = torch.zeros(())
    answers = [answer for _, answers in groups for answer in answers]
    for number, (ids, answer) in enumerate(zip(alone(groups), answers, strict=True)):
        row = torch.tensor(ids)
        hidden = plain.model(input_ids=row[None]).last_hidden_state[0]
        total = total + model.head(hidden[-1]) * weights[number]
        if number in which:
            logits = plain.lm_head(hidden[:-1]).log_softmax(1)
            own = logits.gather(1, row[1:, None])[-len(answer) :]
            total = total + own.sum() * weights[number]
    torch.testing.assert_close(
        (scores * weights).sum() + (logprobs * weights[which]).sum(), total, atol=1e-3, rtol=1e-5
    )
    total.backward()
    for (name, got), wanted in zip(ours.named_parameters(), plain.parameters(), strict=True):
        bound = 1e-5 * float(wanted.grad.abs().max())
        assert float((got.grad - wanted.grad).abs().max()) <= max(bound, 1e-6), name
