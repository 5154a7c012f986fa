"""What is saved can be loaded and scores the same, and a folder that is not whole is refused."""

import json
import shutil

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from grm_ray.config.schema import Head, Lora, Model
from grm_ray.data.chat import ScoringContract
from grm_ray.models.checkpoint import (
    ADAPTER,
    HEAD_FILE,
    META_FILE,
    _fingerprint,
    check_reward_model,
    is_whole,
    load_reward_model,
    reward_contract,
    save_causal_lm,
    save_reward_model,
)
from grm_ray.models.reward_model import RewardModel
from grm_ray.models.starting import check_same_head, start_reward_model
from tests.models.scoring import packed_scores, reward_model

HEADS = {
    "linear": Head(),
    "bias": Head(bias=True),
    "mlp": Head(kind="mlp", hidden=32, dropout=0.5),
    "attributes": Head(attributes=["help", "facts", "length"], weights=[0.7, 1.5, -0.25]),
    "mlp of attributes": Head(kind="mlp", hidden=32, attributes=["a", "b"], weights=[1.0, -1.0]),
    "members": Head(members=3),
}


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def saved(tiny_model, tokenizer, tmp_path):
    """A reward model's folder."""
    contract = ScoringContract.of(tokenizer, 512, "left")
    model = reward_model(tiny_model, Head())
    save_reward_model(model, Head(), tokenizer, contract, tmp_path / "model", "# card\n")
    return tmp_path / "model"


def test_weights_that_are_views_of_one_buffer_are_saved(tiny_model, tmp_path):
    """ZeRO lays all trained weights into one flat buffer."""
    lm = AutoModelForCausalLM.from_pretrained(tiny_model)
    wanted = {name: weight.clone() for name, weight in lm.state_dict().items()}
    flat = torch.cat([parameter.detach().flatten() for parameter in lm.parameters()])
    for parameter, piece in zip(
        lm.parameters(), flat.split([p.numel() for p in lm.parameters()]), strict=True
    ):
        parameter.data = piece.view_as(parameter)
    save_causal_lm(lm, AutoTokenizer.from_pretrained(tiny_model), tmp_path / "saved", "card")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, atol=0, rtol=0)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_every_head_comes_back(tiny_model, tokenizer, tmp_path, head):
    contract = ScoringContract.of(tokenizer, 512, "left")
    model = reward_model(tiny_model, head)
    made = save_reward_model(model, head, tokenizer, contract, tmp_path / "model", "")
    loaded, read, fingerprint = load_reward_model(tmp_path / "model", "float32")
    assert (read, fingerprint) == (contract, made)
    assert check_reward_model(tmp_path / "model") == {
        "head": head.model_dump(),
        "language_head": True,
        "fingerprint": made,
    }
    scores = packed_scores(model, tokenizer, contract)
    np.testing.assert_array_equal(packed_scores(loaded, tokenizer, contract), scores)


@pytest.mark.parametrize(
    ("head", "lora"), [*((head, None) for head in HEADS.values()), (Head(), Lora(rank=4))]
)
def test_training_goes_on_with_a_saved_head(tiny_model, tokenizer, tmp_path, head, lora):
    contract = ScoringContract.of(tokenizer, 512, "left")
    model = reward_model(tiny_model, head)
    folder = tmp_path / "model"
    save_reward_model(model, head, tokenizer, contract, folder, "")
    source = Model(path=str(folder), dtype="float32", lora=lora)
    other_dropout = head.model_copy(update={"dropout": 0.25})
    begun = start_reward_model(source, str(folder), other_dropout, new_head=False)
    assert begun.head.dropout.p == 0.25
    assert all(parameter.requires_grad for parameter in begun.head.parameters())
    assert any(parameter.requires_grad for parameter in begun.lm.parameters())
    scores = packed_scores(model.eval(), tokenizer, contract)
    np.testing.assert_allclose(packed_scores(begun.eval(), tokenizer, contract), scores, atol=1e-6)
    fresh = start_reward_model(source, str(folder), Head(), new_head=True).eval()
    assert np.abs(packed_scores(fresh, tokenizer, contract) - scores).max() > 1e-3


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Head(kind="mlp", hidden=32), "set head: nothing"),
        (Head(bias=True), "set head: nothing"),
        (Head(attributes=["a"], weights=[1.0]), "new_head: true"),
    ],
    ids=["mlp", "bias", "attributes"],
)
def test_a_saved_head_of_another_form_is_refused(saved, other, said):
    check_same_head(saved, Head(hidden=77, dropout=0.5))  # neither is a linear head's form
    with pytest.raises(ValueError, match=said):
        start_reward_model(Model(path=str(saved)), str(saved), other, new_head=False)


def test_a_head_tensor_that_is_missing_or_left_over_is_named(saved):
    rewrite_head(saved, {})
    with pytest.raises(ValueError, match="missing \\['layers.0.weight'\\]"):
        load_reward_model(saved, "float32")
    rewrite_head(saved, {"layers.0.weight": torch.zeros(1, 128), "layers.2.bias": torch.zeros(1)})
    with pytest.raises(ValueError, match="unexpected \\['layers.2.bias'\\]"):
        load_reward_model(saved, "float32")
    rewrite_head(saved, {"layers.0.weight": torch.zeros(1, 64)})
    with pytest.raises(ValueError, match="of a different shape"):
        load_reward_model(saved, "float32")


def rewrite_head(folder, tensors):
    """As somebody would who also knows of the fingerprint."""
    save_file(tensors, folder / HEAD_FILE)
    meta = json.loads((folder / META_FILE).read_text())
    (folder / META_FILE).write_text(json.dumps(meta | {"fingerprint": _fingerprint(folder)}))


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: turn_a_bit(folder / "model.safetensors"),
        lambda folder: turn_a_bit(folder / HEAD_FILE),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: ScoringContract("t", "v", 9, 77, "left").save(folder),
    ],
    ids=["another weight", "another head", "no weights", "another contract"],
)
def test_a_folder_that_is_not_as_it_was_written_is_refused(saved, harm):
    load_reward_model(saved, "float32")
    harm(saved)
    with pytest.raises(ValueError, match="was changed or not copied completely"):
        load_reward_model(saved, "float32")


def turn_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [META_FILE, HEAD_FILE, "config.json", "scoring_contract.json"])
def test_a_file_that_is_missing_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(ValueError, match=f"has no {name}"):
        load_reward_model(saved, "float32")


def test_a_description_that_cannot_be_read_is_refused(saved):
    for content in ("[]", "{", '{"head": {"kind": "round"}}', '{"format": 9}'):
        (saved / META_FILE).write_text(content)
        with pytest.raises(ValueError, match=f"{META_FILE}: damaged"):
            check_reward_model(saved)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_reward_model(tmp_path / "nothing")


def test_a_folder_of_an_earlier_format_still_loads(saved):
    """Without the fields that came later."""
    meta = json.loads((saved / META_FILE).read_text())
    del meta["language_head"]
    meta["head"] = {k: meta["head"][k] for k in ("kind", "hidden", "dropout")}
    (saved / META_FILE).write_text(json.dumps(meta))
    load_reward_model(saved, "float32")
    assert reward_contract(saved).max_length == 512


def test_base_adapter_and_head_score_as_the_merged_folder(tiny_model, tokenizer, tmp_path):
    head, contract = Head(), ScoringContract.of(tokenizer, 512, "left")
    model = reward_model(tiny_model, head, lora=Lora(rank=4, alpha=8, dropout=0.0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # begins at zero: no adapter at all
            parameter.data.normal_(std=0.05)
    untrained = {n: p for n, p in model.lm.get_base_model().named_parameters() if "lora" not in n}
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    base.load_state_dict({n.replace(".base_layer", ""): p for n, p in untrained.items()}, False)
    folder = tmp_path / "model"
    save_reward_model(model, head, tokenizer, contract, folder, "", adapter=True)
    scores = packed_scores(load_reward_model(folder, "float32")[0], tokenizer, contract)
    np.testing.assert_allclose(packed_scores(model, tokenizer, contract), scores, atol=1e-4)

    base.set_attn_implementation("grm_ray_packed")
    alone = RewardModel(base, head).eval()
    alone.head.load_state_dict(load_file(folder / HEAD_FILE))
    assert np.abs(packed_scores(alone, tokenizer, contract) - scores).max() > 0.01
    alone.lm = peft.PeftModel.from_pretrained(base, folder / ADAPTER).eval()
    np.testing.assert_allclose(packed_scores(alone, tokenizer, contract), scores, atol=1e-4)


def test_an_adapter_of_a_model_that_has_none_is_refused(tiny_model, tokenizer, tmp_path):
    contract = ScoringContract.of(tokenizer, 512, "left")
    model = reward_model(tiny_model, Head())
    with pytest.raises(ValueError, match="no adapter to save"):
        save_reward_model(model, Head(), tokenizer, contract, tmp_path / "m", "", adapter=True)
    assert not any(tmp_path.iterdir())


def test_a_folder_saved_anew_takes_the_place_of_the_old(saved, tiny_model, tokenizer):
    before = check_reward_model(saved)["fingerprint"]
    shutil.copytree(saved, saved.with_name("copy"))
    model = reward_model(tiny_model, Head(bias=True))
    contract = ScoringContract.of(tokenizer, 256, "right")
    save_reward_model(model, Head(bias=True), tokenizer, contract, saved, "")
    assert check_reward_model(saved)["fingerprint"] != before
    assert load_reward_model(saved.with_name("copy"), "float32")[2] == before
    assert sorted(path.name for path in saved.parent.iterdir()) == ["copy", "model"]


def test_what_stands_in_a_weight_files_place_is_no_weight_file(saved):
    meta = check_reward_model(saved)
    assert is_whole(saved, meta)
    (saved / "model.safetensors").unlink()
    for put in (lambda p: p.symlink_to("nowhere"), lambda p: p.mkdir()):
        put(saved / "model.safetensors")
        assert not is_whole(saved, meta)
        shutil.rmtree(saved / "model.safetensors", ignore_errors=True)
        (saved / "model.safetensors").unlink(missing_ok=True)


def test_a_description_without_its_contract_is_refused_before_anything_is_read(saved):
    (saved / "scoring_contract.json").unlink()
    with pytest.raises(ValueError, match="has no scoring_contract.json"):
        check_reward_model(saved)
