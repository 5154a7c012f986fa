"""Adapters are merged as PEFT merges them, and refused where the model would not use them."""

import copy
import json

import pytest
import torch
import transformers

from grm_ray.config.errors import ConfigError
from grm_ray.config.schema import Lora, Model
from grm_ray.models.backbone import apply_lora, merged_weights, trained_weights
from grm_ray.models.footprint import check_adapter

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = {
    "Llama": ({"intermediate_size": 48}, ["q_proj", "down_proj"]),
    "GPT2": ({"bos_token_id": 1, "eos_token_id": 2}, ["c_attn", "c_proj", "c_fc"]),
}


def config(kind):
    return getattr(transformers, f"{kind}Config")(**SIZES, **KINDS[kind][0])


def adapted(kind, targets):
    torch.manual_seed(0)
    lm = transformers.AutoModelForCausalLM.from_config(config(kind))
    lm = apply_lora(lm, Lora(rank=4, alpha=8, dropout=0.0, targets=targets))
    for name, parameter in lm.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    return lm


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_those_that_peft_merges(kind):
    lm = adapted(kind, KINDS[kind][1])
    wanted = dict(copy.deepcopy(lm).merge_and_unload().named_parameters())
    found = dict(merged_weights(lm))
    assert found.keys() == wanted.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, wanted[name], msg=name)
    sent = dict(trained_weights(lm))
    assert sent and all(torch.equal(weight, found[name]) for name, weight in sent.items())


@pytest.mark.parametrize(
    ("kind", "target", "layer"),
    [
        ("Llama", "embed_tokens", "model.embed_tokens"),
        ("Llama", "lm_head", "lm_head"),
        ("GPT2", "wte", "transformer.wte"),
        ("GPT2", "lm_head", "lm_head"),
    ],
)
def test_what_is_no_linear_layer_below_the_head_is_refused(kind, target, layer, tmp_path):
    targets = [KINDS[kind][1][0], target]
    with pytest.raises(ConfigError, match=f"lora.targets: {layer} cannot have an adapter"):
        adapted(kind, targets)
    # From the config alone too: before anything is started.
    config(kind).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"lora.targets: {layer} cannot have an adapter"):
        check_adapter(tmp_path, Model(path=str(tmp_path), lora=Lora(targets=targets)))


def test_what_cannot_be_built_without_weights_is_left_to_the_ranks(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "a model of tomorrow"}))
    check_adapter(tmp_path, Model(path=str(tmp_path), lora=Lora()))
