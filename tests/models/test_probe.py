"""A model whose log-probs would come out otherwise here than in transformers is refused."""

import pytest
import torch
import transformers

from grm_ray.config.errors import ConfigError
from grm_ray.config.schema import Model
from grm_ray.models import attention, probe
from grm_ray.models.backbone import load_causal_lm, unsupported

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MLP = {"intermediate_size": 64, **TOKENS}
GOOD = {
    "Llama": MLP,
    "Qwen2": {**MLP, "num_key_value_heads": 2},
    "GPT2": TOKENS,
    "GPTNeoX": MLP,
    "OPT": {**TOKENS, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "Phi": MLP,  # its language head has a bias
}
NO_PLUG = "cannot be replaced through transformers"
ACROSS = f"share their prompt get different hidden states.*{NO_PLUG}"
BAD = {
    "Bloom": (TOKENS, ACROSS),
    "Mamba": (TOKENS, ACROSS),
    "Bert": (MLP, "its log-probs are not those of transformers"),
    "Falcon": (TOKENS, f"cannot be loaded.*{NO_PLUG}"),
    "GPTJ": ({**TOKENS, "rotary_dim": 8}, f"cannot be loaded.*{NO_PLUG}"),
    "Mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2}, "a pass through it fails"),
    "StableLm": (MLP, f"a pass through it fails.*{NO_PLUG}"),
    "Nemotron": ({**MLP, "num_key_value_heads": 2}, f"a pass through it fails.*{NO_PLUG}"),
    "OPT": ({**TOKENS, "ffn_dim": 64, "word_embed_proj_dim": 16}, "16 entries.* hidden_size 32"),
}


def build(name, extra, large=True):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **extra)
    lm = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in lm.parameters():
        if large and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return lm


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", GOOD)
def test_models_that_are_computed_alike_are_taken(name, dtype, tmp_path):
    lm = build(name, GOOD[name])
    for parameter in lm.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    lm.save_pretrained(tmp_path)
    loaded = load_causal_lm(Model(path=str(tmp_path), dtype=dtype))
    assert loaded.config._attn_implementation == attention.NAME


@pytest.mark.parametrize("large", [False, True])  # in small weights a difference is small
@pytest.mark.parametrize("name", BAD)
def test_others_are_refused_in_one_line(name, large, tmp_path):
    extra, said = BAD[name]
    build(name, extra, large).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=said) as refused:
        load_causal_lm(Model(path=str(tmp_path), dtype="float32"))
    assert str(refused.value).startswith(f"model {tmp_path}: ")
    assert "\n" not in str(refused.value)


def test_a_model_with_an_encoder_is_refused_by_its_config_and_when_it_is_loaded(tmp_path):
    config = transformers.T5Config(d_model=32, d_ff=64, num_layers=1, num_heads=4, vocab_size=64)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    assert "is_encoder_decoder" in unsupported(config.to_dict())
    with pytest.raises(ConfigError, match="cannot be loaded.*T5Config"):
        load_causal_lm(Model(path=str(tmp_path), dtype="float32"))


def test_a_language_head_that_does_more_is_found():
    lm = build("Llama", MLP)
    lm.set_attn_implementation(attention.NAME)
    assert probe.difference(lm) is None
    lm.lm_head.register_forward_hook(lambda *given: 1.01 * given[-1])
    assert "its log-probs are not those" in probe.difference(lm)


def test_special_tokens_decide_nothing():
    """They lie at the vocabulary's ends and were hardly trained on: rounding alone moves them."""
    lm = build("Llama", MLP)
    lm.set_attn_implementation(attention.NAME)
    with torch.no_grad():
        for ends in (slice(0, 2), slice(-2, None)):
            lm.model.embed_tokens.weight[ends] = torch.nan
    assert probe.difference(lm) is None
