"""`python -m grm_ray.export`: exit codes, messages, and no step outside without being told."""

import contextlib
import json

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from grm_ray.config.schema import Head, Lora
from grm_ray.data.chat import ScoringContract
from grm_ray.export import main
from grm_ray.models.checkpoint import load_reward_model, save_reward_model
from tests.conftest import finish, job
from tests.models.scoring import classifier_scores, packed_scores, reward_model, templated

OFFLINE = {"HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    """Reward models' folders by the name of what is special in them."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    contract = ScoringContract.of(tokenizer, 512, "left")
    top = tmp_path_factory.mktemp("models")
    heads = {"linear": Head(), "mlp": Head(kind="mlp", hidden=8), "lora": Head()}
    for name, head in heads.items():
        lora = Lora(rank=2) if name == "lora" else None
        model = reward_model(tiny_model, head, lora=lora)
        save_reward_model(
            model, head, tokenizer, contract, top / name, "# mine\n", adapter=lora is not None
        )
    return top


def refused(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    return captured.err


def test_without_the_switch_nothing_touches_the_network(saved, tmp_path):
    """In a process of its own that may not go online: the default format, end to end."""
    target = tmp_path / "classifier"
    process = job("grm_ray.export", str(saved / "linear"), str(target), cwd=tmp_path, **OFFLINE)
    output = finish(process)
    assert process.returncode == 0, output
    assert f"reward model: {target}" in output and "warning:" not in output
    tokenizer = AutoTokenizer.from_pretrained(target)
    model = AutoModelForSequenceClassification.from_pretrained(target).eval()
    ours, contract, _ = load_reward_model(saved / "linear", "float32")
    np.testing.assert_allclose(
        classifier_scores(model, tokenizer, templated(tokenizer), "right"),
        packed_scores(ours, tokenizer, contract),
        atol=1e-4,
    )
    card = (target / "README.md").read_text()
    assert card.startswith("# mine") and "vllm" in card


def test_a_foreign_model_becomes_one_of_ours(saved, tmp_path):
    assert main([str(saved / "linear"), str(tmp_path / "foreign")]) == 0
    (tmp_path / "foreign" / "scoring_contract.json").unlink()
    assert main([str(tmp_path / "foreign"), str(tmp_path / "ours"), "--format", "folder"]) == 0
    before, after = (load_reward_model(tmp_path / name, "float32") for name in ("foreign", "ours"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert before[1] == after[1] and after[1].layout == "template"
    np.testing.assert_array_equal(
        packed_scores(before[0], tokenizer, before[1]), packed_scores(after[0], tokenizer, after[1])
    )


def test_the_adapter_goes_with_its_head(saved, tmp_path):
    assert main([str(saved / "lora"), str(tmp_path / "a"), "--format", "adapter"]) == 0
    written = {path.name for path in (tmp_path / "a").iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "reward_head.safetensors",
        "scoring_contract.json",
        "tokenizer.json",
    } <= written
    assert "model.safetensors" not in written


def test_what_cannot_be_had_is_refused_in_one_line(saved, tmp_path, capsys):
    new = tmp_path / "new"
    assert "does not exist" in refused(capsys, saved / "none", new)
    assert "MLP" in refused(capsys, saved / "mlp", new)
    assert "has no adapter/" in refused(capsys, saved / "linear", new, "--format", "adapter")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    assert "already exists" in refused(capsys, saved / "linear", tmp_path / "full")
    assert (tmp_path / "full" / "thesis.tex").exists() and not new.exists()


@pytest.mark.parametrize(
    ("place", "why"), [("linear/new", "inside the model's folder"), ("file/x", "cannot be created")]
)
def test_a_place_where_nothing_can_be_written_is_refused(saved, capsys, place, why):
    (saved / "file").write_text("")
    assert why in refused(capsys, saved / "linear", saved / place)
    assert not (saved / "linear" / "new").exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("linear", "sequence-classification"), ("linear", "folder"), ("lora", "adapter")],
)
def test_a_full_disk_is_told_in_one_line(saved, small_disk, capsys, name, kind):
    with contextlib.suppress(OSError):
        (small_disk / "filler").write_bytes(bytes(4 << 20))
    assert main([str(saved / name), str(small_disk / "new"), "--format", kind]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {small_disk}/new could not be written (")
    assert "No space left" in said and said.count("\n") == 1
    assert not (small_disk / "new").exists()


def test_a_folder_that_was_changed_is_refused(saved, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in (saved / "linear").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    meta = json.loads((broken / "grm_ray.json").read_text())
    (broken / "grm_ray.json").write_text(json.dumps(meta | {"fingerprint": "0" * 32}))
    assert "not copied completely" in refused(capsys, broken, tmp_path / "new")


@pytest.mark.parametrize("name", ["no-owner", "a/b/c", "own er/name", "owner/na..me", ""])
def test_a_bad_hub_id_is_refused_before_work(saved, tmp_path, capsys, name):
    said = refused(capsys, saved / "linear", tmp_path / "new", "--push-to-hub", name)
    assert "--push-to-hub" in said and not (tmp_path / "new").exists()


def test_private_needs_a_push(saved, tmp_path, capsys):
    assert "--push-to-hub" in refused(capsys, saved / "linear", tmp_path / "new", "--private")


def test_a_push_while_offline_is_refused_before_work(saved, tmp_path):
    process = job(
        "grm_ray.export",
        str(saved / "linear"),
        str(tmp_path / "new"),
        "--push-to-hub",
        "owner/name",
        cwd=tmp_path,
        **OFFLINE,
    )
    output = finish(process)
    assert process.returncode == 2 and "HF_HUB_OFFLINE is set" in output
    assert not (tmp_path / "new").exists()
