"""Reward models of others score here as their own code scores them, or are refused by name."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from grm_ray.config.schema import Head, Lora, Model
from grm_ray.data.chat import ScoringContract
from grm_ray.data.packing import pack
from grm_ray.models import foreign
from grm_ray.models.checkpoint import (
    check_reward_model,
    load_reward_model,
    reward_contract,
    save_reward_model,
)
from grm_ray.models.reward_model import answer_logprobs
from grm_ray.models.starting import start_reward_model, starting_contract, starting_folder
from tests.models.scoring import conversations, packed_scores

WEIGHTS = "model.safetensors"


@pytest.fixture
def tokenizer(tiny_model):
    """With a BOS, that its template writes and that it puts before any text, as Llama 3's does."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    return tokenizer


def causal_lm(path, tokenizer, tied=False):
    torch.manual_seed(2)
    lm = AutoModelForCausalLM.from_pretrained(path, tie_word_embeddings=tied)
    lm.resize_token_embeddings(len(tokenizer))
    if not tied:
        lm.lm_head.weight.data.normal_(std=0.02)
    return lm.eval()


@pytest.fixture
def authors(tiny_model, tokenizer, tmp_path):
    """Writes a folder as the GRM authors do: head tensors among the causal LM's."""

    def write(kind="mlp", neurons=24, layers=1, **config):
        lm = causal_lm(tiny_model, tokenizer)
        sizes = [128, *[neurons] * layers, 1] if kind == "mlp" else [128, 1]
        head = {}
        for number, (wide, narrow) in enumerate(pairwise(sizes)):
            place = f".{2 * number}" if kind == "mlp" else ""
            head[f"v_head.summary{place}.weight"] = torch.randn(narrow, wide) / wide**0.5
            head[f"v_head.summary{place}.bias"] = torch.randn(narrow)
        lm.config.vhead_layer_type = kind
        lm.config.vhead_num_neurons, lm.config.vhead_num_layers = neurons, layers
        for key, value in config.items():
            setattr(lm.config, key, value)
        folder = tmp_path / "sftreg"
        lm.save_pretrained(folder, state_dict=lm.state_dict() | head)
        tokenizer.save_pretrained(folder)
        return folder, lm, head

    return write


@pytest.fixture
def classifier(tiny_model, tokenizer, tmp_path):
    """Writes a folder as transformers writes a sequence classifier."""

    def write(labels=1, name="rm", tied=False):
        causal_lm(tiny_model, tokenizer, tied).save_pretrained(tmp_path / "lm")
        model = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "lm", num_labels=labels
        )
        model.score.weight.data.normal_(std=0.1)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name, model.eval()

    return write


def edit(folder, **changes):
    """Put tensors in, or take those that are None out."""
    tensors = load_file(folder / WEIGHTS) | {k.replace("__", "."): v for k, v in changes.items()}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})


def texts(tokenizer):
    """Every fourth of the conversations, templated; `sparse_scores` are theirs."""
    return [
        tokenizer.apply_chat_template(
            [*messages, {"role": "assistant", "content": answer}], tokenize=False
        )
        for messages, answers in conversations()
        for answer in answers[:1]
    ]


def sparse_scores(model, tokenizer, contract):
    return packed_scores(model, tokenizer, contract)[::4]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_the_authors_model_scores_as_their_code_does(authors, tokenizer, kind):
    folder, lm, head = authors(kind)
    model, contract, fingerprint = load_reward_model(folder, "float32")
    contract.check(tokenizer)
    wanted = []
    for text in texts(tokenizer):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        assert ids[0, :2].tolist() == [tokenizer.bos_token_id] * 2
        x = lm(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        for place in (".0", ".2") if kind == "mlp" else ("",):
            x = head[f"v_head.summary{place}.weight"] @ x + head[f"v_head.summary{place}.bias"]
            x = x.relu() if place == ".0" else x
        wanted.append(float(x))
    np.testing.assert_allclose(sparse_scores(model, tokenizer, contract), wanted, atol=1e-5)
    assert fingerprint == check_reward_model(folder)["fingerprint"]
    assert contract.max_length == lm.config.max_position_embeddings


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_a_sequence_classifier_scores_as_transformers_does(classifier, tokenizer, tied):
    folder, reference = classifier(tied=tied)
    model, contract, _ = load_reward_model(folder, "float32")
    wanted = []
    for text in texts(tokenizer):
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        wanted.append(float(reference(ids).logits))
    np.testing.assert_allclose(sparse_scores(model, tokenizer, contract), wanted, atol=1e-5)


@torch.no_grad()
def test_a_classifier_that_pools_before_its_pads_is_read_there(classifier, tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>\n", "<|end|>")
    tokenizer.pad_token = tokenizer.eos_token
    folder, _ = classifier()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"pad_token_id": tokenizer.pad_token_id})
    )
    reference = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model, contract, _ = load_reward_model(folder, "float32")
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts(tokenizer)]
    assert all(row[-1] == tokenizer.pad_token_id for row in rows)
    wanted = [float(reference(torch.tensor([row])).logits) for row in rows]
    np.testing.assert_allclose(sparse_scores(model, tokenizer, contract), wanted, atol=1e-5)


@torch.no_grad()
def test_a_bias_of_the_score_is_read(classifier, tokenizer):
    folder, _ = classifier()
    plain = packed_scores(
        load_reward_model(folder, "float32")[0], tokenizer, reward_contract(folder)
    )
    edit(folder, score__bias=torch.tensor([2.5]))
    model, contract, _ = load_reward_model(folder, "float32")
    np.testing.assert_allclose(packed_scores(model, tokenizer, contract), plain + 2.5, atol=1e-5)


@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["all weights", "lora"])
def test_training_goes_on_from_a_foreign_reward_model(authors, classifier, tokenizer, lora):
    for folder, head in (
        (classifier()[0], Head()),
        (authors()[0], Head(kind="mlp", hidden=24)),
    ):
        wanted = load_reward_model(folder, "float32")[0]
        source = Model(path=str(folder), dtype="float32", lora=lora)
        begun = start_reward_model(source, str(folder), head, new_head=False)
        assert any(parameter.requires_grad for parameter in begun.lm.parameters())
        assert foreign.speaks(begun.lm) == foreign.speaks(wanted.lm)
        # Read where the head has been read so far, on the same tokens.
        contract = starting_contract(str(folder), tokenizer, 512, "left", False, False)
        assert contract.layout == "template"
        assert replace(contract, max_length=reward_contract(folder).max_length) == reward_contract(
            folder
        )
        assert bool(begun.external_parameters()) == foreign.speaks(begun.lm)
        np.testing.assert_allclose(
            packed_scores(begun.eval(), tokenizer, contract),
            packed_scores(wanted, tokenizer, contract),
            atol=1e-5,
        )


def test_a_new_head_on_a_foreign_reward_model(authors, classifier, tokenizer):
    for folder in (classifier()[0], authors()[0]):
        source = Model(path=str(folder), dtype="float32")
        begun = start_reward_model(source, str(folder), Head(kind="mlp", hidden=8), new_head=True)
        assert begun.head.layers[0].out_features == 8
        contract = starting_contract(str(folder), tokenizer, 99, "right", True, False)
        assert contract == ScoringContract.of(tokenizer, 99, "right")


@pytest.mark.parametrize("kind", ["ours", "authors", "classifier", "language model"])
def test_a_hub_id_brings_its_head(
    kind, authors, classifier, tiny_model, tokenizer, tmp_path, monkeypatch
):
    if kind == "ours":
        model = load_reward_model(classifier()[0], "float32")[0]
        contract = ScoringContract.of(tokenizer, 512, "left")
        folder = tmp_path / "ours"
        save_reward_model(model, Head(), tokenizer, contract, folder, "")
    else:
        write = {"authors": lambda: authors()[0], "classifier": lambda: classifier()[0]}
        folder = write.get(kind, lambda: tiny_model)()
    cached = tmp_path / "hub" / "models--somebody--rm"
    shutil.copytree(folder, cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = starting_folder("somebody/rm")
    assert found == (None if kind == "language model" else cached / "snapshots" / "abc")


def test_the_authors_classifiers_read_bos_twice_others_once(classifier):
    assert reward_contract(classifier(name="GRM-Tiny-rewardmodel-ft")[0]).special_tokens_twice
    folder, _ = classifier(name="grm_ray")
    assert not reward_contract(folder).special_tokens_twice
    assert foreign.contract(folder, "Ray2333/GRM-llama3-8B-distill").special_tokens_twice
    assert not foreign.contract(folder, "somebody/GRM-like").special_tokens_twice


def test_a_contract_beside_the_weights_counts(classifier, tokenizer):
    folder, _ = classifier()
    contract = ScoringContract.of_template(tokenizer, 100, special_tokens_twice=True)
    contract.save(folder)
    assert load_reward_model(folder, "float32")[1] == contract


@pytest.mark.parametrize(
    ("gone", "put", "said"),
    [
        ("v_head.summary.2.bias", None, "missing \\['v_head.summary.2.bias'\\]"),
        ("v_head.summary.0.weight", None, "missing \\['v_head.summary.0.weight'\\]"),
        (None, "v_head.summary.4.weight", "unexpected \\['v_head.summary.4.weight'\\]"),
        (None, "score.weight", "unexpected \\['score.weight'\\]"),
        ("model.norm.weight", None, "backbone.*missing \\['model.norm.weight'\\]"),
        ("lm_head.weight", None, "backbone.*missing \\['lm_head.weight'\\]"),
        (None, "model.extra.weight", "backbone.*unexpected \\['model.extra.weight'\\]"),
    ],
)
def test_every_tensor_of_the_authors_model_is_accounted_for(authors, gone, put, said):
    folder, _, _ = authors()
    edit(folder, **({gone: None} if gone else {put: torch.zeros(1, 4)}))
    with pytest.raises(ValueError, match=said):
        load_reward_model(folder, "float32")


@pytest.mark.parametrize(
    ("gone", "put", "said"),
    [
        ("score.weight", None, "no score.weight"),
        ("model.norm.weight", None, "backbone.*missing \\['model.norm.weight'\\]"),
        (None, "score.2.weight", "unexpected \\['score.2.weight'\\]"),
        (None, "model.extra.weight", "backbone.*unexpected \\['model.extra.weight'\\]"),
    ],
)
def test_every_tensor_of_a_classifier_is_accounted_for(classifier, gone, put, said):
    folder, _ = classifier()
    edit(folder, **({gone: None} if gone else {put: torch.zeros(1, 4)}))
    with pytest.raises(ValueError, match=said):
        load_reward_model(folder, "float32")


def test_an_mlp_said_to_be_linear_is_refused(authors):
    """The authors' code loaded such a head without a word."""
    folder, _, _ = authors()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vhead_layer_type": "linear"}))
    with pytest.raises(ValueError, match="missing.*v_head.summary.weight.*unexpected.*summary.0"):
        load_reward_model(folder, "float32")


def test_a_width_that_the_config_does_not_say_is_refused(authors):
    folder, _, _ = authors(neurons=24)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vhead_num_neurons": 32}))
    with pytest.raises(ValueError, match="of a different shape.*layers.0.weight \\[24, 128\\]"):
        load_reward_model(folder, "float32")


@pytest.mark.parametrize("form", [{"layers": 2}, {"vhead_num_output": 3}])
def test_a_head_of_another_form_is_refused(authors, form):
    folder, _, _ = authors(**form)
    with pytest.raises(ValueError, match="cannot be read; linear, and mlp with one hidden layer"):
        check_reward_model(folder)


def test_a_classifier_of_several_labels_is_refused(classifier):
    with pytest.raises(ValueError, match="a classifier with 3 labels is not a reward model"):
        check_reward_model(classifier(labels=3)[0])


def test_a_plain_language_model_is_refused(tiny_model):
    with pytest.raises(ValueError, match="no reward head that grm_ray can read"):
        load_reward_model(tiny_model)


def test_a_classifier_has_no_language_head(classifier, tokenizer, tmp_path):
    folder, _ = classifier()
    model, contract, _ = load_reward_model(folder, "float32")
    packed = pack([(np.array([1, 2]), [np.array([3, 4])])])
    with pytest.raises(ValueError, match="has no language head"):
        answer_logprobs(model.lm, model.hidden(packed), packed)
    assert not check_reward_model(folder)["language_head"]

    head = check_reward_model(folder)["head"]
    ours = tmp_path / "ours"
    save_reward_model(model, Head(**head), tokenizer, contract, ours, "")
    again, read, _ = load_reward_model(ours, "float32")
    assert read == contract and not check_reward_model(ours)["language_head"]
    with pytest.raises(ValueError, match="has no language head"):
        answer_logprobs(again.lm, again.hidden(packed), packed)
    np.testing.assert_array_equal(
        packed_scores(again, tokenizer, contract), packed_scores(model, tokenizer, contract)
    )


def test_the_authors_model_keeps_its_language_head(authors):
    folder, lm, _ = authors()
    model, _, _ = load_reward_model(folder, "float32")
    torch.testing.assert_close(model.lm.lm_head.weight, lm.lm_head.weight, atol=0, rtol=0)


def test_a_hub_id_that_cannot_be_had_is_said_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="the model hub did not provide it"):
        load_reward_model("nobody-here/no-such-reward-model")
