"""Weights that are equal are held once, layers that are common are computed once, to the bit."""

import copy
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from grm_ray.config.schema import Head, Model
from grm_ray.data.chat import ScoringContract
from grm_ray.data.packing import pack
from grm_ray.models.backbone import hidden_states, load_causal_lm
from grm_ray.models.checkpoint import save_reward_model
from grm_ray.models.reward_model import RewardModel
from grm_ray.models.reward_reader import RewardReader, RewardReaders
from grm_ray.models.shared_layers import share_layers, share_weights

LAYERS = 5
PACKED = pack([(np.arange(1, 20), [np.arange(3, 9), np.arange(5, 30)]), (np.arange(2, 9), [[4]])])


@pytest.fixture(scope="module")
def deep(tmp_path_factory, tiny_model):
    """The tiny model with five layers."""
    folder = tmp_path_factory.mktemp("deep")
    config = AutoConfig.from_pretrained(tiny_model, num_hidden_layers=LAYERS)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return load_causal_lm(Model(path=str(folder), dtype="float32")).eval().requires_grad_(False)


def trained(lm, first, matrix="mlp.up_proj", seed=1):
    """A copy whose `matrix` differs from layer `first` on, as an adapter leaves it."""
    other = copy.deepcopy(lm)
    torch.manual_seed(seed)
    for layer in other.model.layers[first:]:
        layer.get_submodule(matrix).weight.add_(0.05 * torch.randn(256, 128))
    return other


def hidden(lms):
    with torch.inference_mode():
        return [hidden_states(lm, PACKED).clone() for lm in lms]


def test_equal_weights_are_held_once(deep):
    lms = [copy.deepcopy(deep), trained(deep, 3), trained(deep, 4, seed=2)]
    before = hidden(lms)
    own = 256 * 128 * 4  # bytes of an adapted matrix
    everything = sum(p.numel() * 4 for p in deep.parameters())
    assert share_weights(lms) == 2 * everything - (2 + 1) * own
    for found, expected in zip(hidden(lms), before, strict=True):
        assert torch.equal(found, expected)
    held = {p.data_ptr(): p.numel() * 4 for lm in lms for p in lm.parameters()}
    assert sum(held.values()) == everything + 3 * own
    # Nothing more to share, and a change of what is one's own is one's own.
    assert share_weights(lms) == 0
    lms[1].model.layers[4].mlp.up_proj.weight.zero_()
    assert torch.equal(hidden(lms)[2], before[2])


def test_common_layers_are_computed_once(deep):
    lms = [trained(deep, 3, seed=seed) for seed in (1, 2, 3)]
    before = hidden(lms)
    share_weights(lms)
    calls = []
    lms[0].model.layers[1].register_forward_hook(lambda *_: calls.append("below"))
    lms[2].model.layers[3].register_forward_hook(lambda *_: calls.append("above"))
    assert share_layers(lms) == 3
    calls.clear()
    for found, expected in zip(hidden(lms), before, strict=True):
        assert torch.equal(found, expected)
    assert calls == ["below", "above"]
    # Another batch is another computation, whoever asks first; one model alone is as before.
    other = pack([(np.arange(1, 4), [np.arange(3, 7)])])
    with torch.inference_mode():
        alone = hidden_states(trained(deep, 3, seed=3), other)
        assert torch.equal(hidden_states(lms[2], other), alone)
    assert torch.equal(hidden(lms)[1], before[1])
    assert calls.count("below") == 3


def test_models_on_a_frozen_backbone_compute_it_once(deep):
    lms = [copy.deepcopy(deep) for _ in range(3)]
    share_weights(lms)
    assert share_layers(lms) == LAYERS


@pytest.mark.parametrize("first", [0, 1])
def test_without_common_layers_all_stay_as_they_are(deep, first):
    lms = [copy.deepcopy(deep), trained(deep, first)]
    share_weights(lms)
    assert share_layers(lms) == 0
    assert all(len(lm.model.layers) == LAYERS for lm in lms)


def test_other_embeddings_are_another_computation(deep):
    other = copy.deepcopy(deep)
    other.get_input_embeddings().weight.add_(0.1)
    lms = [copy.deepcopy(deep), other]
    share_weights(lms)
    assert share_layers(lms) == 0


def test_a_model_that_cannot_bear_it_is_left_alone(deep):
    lms = [trained(deep, 3), trained(deep, 3, seed=2)]
    share_weights(lms)
    before = hidden(lms)
    # A layer that counts its calls is not one that may be left out.
    lms[1].model.layers[4].register_forward_pre_hook(
        lambda module, given: (given[0] + len(lms[1].model.layers) - LAYERS, *given[1:])
    )
    assert share_layers(lms) == 0
    assert torch.equal(hidden(lms)[0], before[0])


def test_readers_score_as_each_does_alone(deep, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(deep.config._name_or_path)
    contract = ScoringContract.of(tokenizer, 64, "left")
    shorter = ScoringContract.of(tokenizer, 6, "left")
    kinds = (("a", Head(), contract), ("b", Head(members=2), contract), ("c", Head(), shorter))
    for seed, (name, head, reads) in enumerate(kinds):
        torch.manual_seed(seed)
        model = RewardModel(trained(deep, 3, seed=seed + 1), head)
        save_reward_model(model, head, tokenizer, reads, tmp_path / name, "# test\n")
    texts = [("the cat", "sat"), ("red birds", "fly over green hills"), ("the cat", "saw rain")]
    rows = pa.table(
        {
            "messages": [json.dumps([{"role": "user", "content": asked}]) for asked, _ in texts],
            "response": [said for _, said in texts],
        }
    )

    def readers():
        for name in "abc":
            yield RewardReader(str(tmp_path / name), "float32", None, 256)

    alone = [reader.member_scores(rows) for reader in readers()]
    together = RewardReaders(readers())
    assert together.layers_shared == 3 and together.bytes_shared > 0  # of a and b; c reads less
    for found, expected in zip(together.member_scores(rows), alone, strict=True):
        assert np.array_equal(found, expected)
    assert [scores.shape for scores in alone] == [(3, 1), (3, 2), (3, 1)]
