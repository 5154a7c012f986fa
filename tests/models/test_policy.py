"""Nothing that a policy says of an answer is drawn."""

import numpy as np
import pytest
import torch
import transformers

from grm_ray.config.schema import Head, Lora
from grm_ray.data.packing import pack
from grm_ray.models import attention
from grm_ray.models.backbone import apply_lora
from grm_ray.models.policy import Policy

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "GPT2": {},
    "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 32, "layerdrop": 0.5},
    "Llama": {"intermediate_size": 64, "attention_dropout": 0.5},
    "Mixtral": {
        "intermediate_size": 64,
        "num_local_experts": 2,
        "num_key_value_heads": 2,
        "router_jitter_noise": 0.5,
    },
}
PACKED = pack([(np.arange(3, 9), [np.arange(9, 20), np.arange(9, 12)])])


def build(name):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **MODELS[name])
    config._attn_implementation = attention.NAME
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", MODELS)
def test_in_train_mode_a_policy_says_what_it_says_in_eval_mode(name):
    policy = Policy(build(name), Head())
    with torch.no_grad():
        still = policy.eval()(PACKED).logp_N
        said = policy.train()(PACKED, with_reference=True)
    assert torch.equal(said.logp_N, still) and torch.equal(said.ref_logp_N, still)


def test_neither_adapter_nor_another_reference_draws():
    lora = Lora(rank=4, dropout=0.5, targets=["q_proj"])
    policy = Policy(apply_lora(build("Llama"), lora), Head(dropout=0.5), build("OPT")).train()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)  # away from where the adapter and the critic are 0
        one, two = (policy(PACKED, with_reference=True) for _ in range(2))
    for name in ("logp_N", "values_N", "ref_logp_N"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
