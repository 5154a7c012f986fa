"""Bad input: one clear message, exit code 2, before any worker starts."""

import json
import shutil
import sys

import pytest
import yaml
from transformers import AutoTokenizer

from grm_ray import bon, command, ppo, rm
from grm_ray.config.ppo import PpoJob
from grm_ray.config.schema import Head
from grm_ray.data.chat import ScoringContract
from grm_ray.models.checkpoint import save_reward_model
from tests.end_to_end.conftest import bon_config, ppo_config, refused, rm_config
from tests.models.scoring import reward_model


@pytest.fixture
def config(tmp_path, tiny_model, tiny_data):
    return rm_config(tmp_path, tiny_model, tiny_data)


@pytest.fixture
def saved(tmp_path, tiny_model):
    """A reward model's folder. Asked for before `run_here`: loading draws progress bars."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    contract = ScoringContract.of(tokenizer, 128, "left")
    model, folder = reward_model(tiny_model, Head()), tmp_path / "saved"
    save_reward_model(model, Head(), tokenizer, contract, folder, "")
    return folder


def test_a_place_for_runs_that_cannot_be_written_to(run_here, config, small_disk, tmp_path):
    (tmp_path / "file").write_text("in the way")
    below = tmp_path / "file" / "runs"
    refused(run_here(rm, "--config", config, f"runs={below}"), str(below), "Not a directory")
    (small_disk / "filler").write_bytes(bytes(3 << 19))
    answer = run_here(rm, "--config", config, f"runs={small_disk}")
    refused(answer, f"runs: {small_disk} cannot be written to", "No space left", "free space")


def test_an_unknown_key(run_here, config):
    raw = yaml.safe_load(config.read_text())
    raw["training"]["pairs_per_setp"] = 3
    config.write_text(yaml.safe_dump(raw))
    refused(run_here(rm, "--config", config), str(config), "did you mean 'pairs_per_step'")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("data.max_length=lots", ["'data.max_length'", "integer", "'lots'"]),
        ("data.max_length=-1", ["'data.max_length'", "greater than 0"]),
        ("model.path=no/such/folder", ["no/such/folder does not exist"]),
        ("data.train.path=missing.jsonl", ["missing.jsonl", "does not exist"]),
        ("loss.preference=bradly_terry", ["'loss.preference'", "did you mean 'bradley_terry'"]),
        ("data.train=missing.jsonl", ["'data.train[0]'", "section", "{path: 'missing.jsonl'}"]),
        ("model.lora.targets=[q_proj, lm_head]", ["lora.targets: lm_head cannot have an adapter"]),
        ("model.path=owner/none", ["owner/none", "no such local folder", "hub did not provide it"]),
        ("workers.cpus=500", ["1000 CPU", "No room for", "workers.*.count"]),
        ("workers.gpus=64", ["128 GPU", "No room for"]),
    ],
)
def test_a_wrong_value(run_here, config, override, parts):
    refused(run_here(rm, "--config", config, override), *parts)


def test_a_config_that_is_not_there(run_here, tmp_path):
    refused(run_here(rm, "--config", tmp_path / "nothing.yaml"), "nothing.yaml does not exist")


def test_a_data_file_without_the_columns(run_here, config, tmp_path):
    data = tmp_path / "columns.jsonl"
    data.write_text(json.dumps({"prompt": "a", "good": "b", "bad": "c"}) + "\n")
    answer = run_here(rm, "--config", config, f"data.train.path={data}")
    refused(answer, str(data), "'chosen', 'rejected'")


def test_an_empty_data_file(run_here, config, tmp_path):
    data = tmp_path / "empty.jsonl"
    data.write_text("")
    refused(run_here(rm, "--config", config, f"data.train.path={data}"), str(data), "has no rows")


def test_a_reward_model_that_is_not_there(run_here, tmp_path, tiny_model, tiny_data):
    path = ppo_config(tmp_path, tiny_model, tiny_data, tmp_path / "none")
    refused(run_here(ppo, "--config", path), "reward.path", "train one first")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("proxies.other=no/such/folder", ["proxies.other", "no/such/folder does not exist"]),
        ("ns=[2, 8]", ["ns: 8 is more than the 4 answers", "rollout.samples_per_prompt"]),
        ("true_reward=demo_jugde", ["unknown true reward", "did you mean 'demo_judge'"]),
        ("true_reward=tests.judges:longest", ["true reward", "tests.judges:longest"]),
        ("data.prompts.path=missing.jsonl", ["missing.jsonl", "does not exist"]),
        ("rollout.max_new_tokens=200", ["proxies.saved", "reads at most 128 tokens", "lower one"]),
    ],
)
def test_a_choice_that_cannot_be_made(
    saved, run_here, tmp_path, tiny_model, tiny_data, override, parts
):
    path = bon_config(tmp_path, tiny_model, tiny_data, {"saved": saved})
    refused(run_here(bon, "--config", path, override), *parts)


def test_no_shards_to_add_to(saved, run_here, tmp_path, tiny_model, tiny_data):
    path = bon_config(tmp_path, tiny_model, tiny_data, {"saved": saved})
    refused(run_here(bon, "--config", path, "--resume"), "--resume", "contains no run")


def test_a_policy_in_place_of_a_reward_model(run_here, tmp_path, tiny_model, tiny_data):
    path = ppo_config(tmp_path, tiny_model, tiny_data, tiny_model)
    refused(run_here(ppo, "--config", path), str(tiny_model))


def test_a_saved_head_of_another_form(saved, run_here, tmp_path, tiny_model, tiny_data):
    path = rm_config(
        tmp_path,
        tiny_model,
        tiny_data,
        model={"path": str(saved), "dtype": "float32"},
        head={"kind": "mlp"},
    )
    refused(run_here(rm, "--config", path), str(saved), "a different head", "new_head: true")


def test_nothing_to_resume(run_here, config):
    refused(run_here(rm, "--config", config, "--resume"), "--resume", "contains no checkpoint")


def test_a_model_whose_logits_are_bent(run_here, config, tiny_model, tmp_path):
    other = shutil.copytree(tiny_model, tmp_path / "bent")
    raw = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**raw, "final_logit_softcapping": 30.0}))
    refused(run_here(rm, "--config", config, f"model.path={other}"), "final_logit_softcapping")
    (other / "config.json").write_text(json.dumps([raw]))
    refused(
        run_here(rm, "--config", config, f"model.path={other}"), "config.json: not a JSON object"
    )


def test_a_tokenizer_without_a_chat_template(run_here, config, tiny_model, tmp_path):
    other = shutil.copytree(tiny_model, tmp_path / "plain")
    for file in other.glob("chat_template*"):
        file.unlink()
    raw = json.loads((other / "tokenizer_config.json").read_text())
    raw.pop("chat_template", None)
    (other / "tokenizer_config.json").write_text(json.dumps(raw))
    refused(run_here(rm, "--config", config, f"model.path={other}"), "no chat template")


def test_more_tokens_than_the_reward_model_reads(
    run_here, tmp_path, tiny_model, tiny_data, reward_model
):
    path = ppo_config(tmp_path, tiny_model, tiny_data, reward_model[0] / "model")
    refused(
        run_here(ppo, "--config", path, "rollout.max_new_tokens=300"), "reads at most 128 tokens"
    )


@pytest.mark.parametrize(("job", "name"), [(rm, "rm_grm"), (ppo, "ppo_grm")])
def test_the_cluster_configs_fit_their_cluster(run_here, capsys, job, name, monkeypatch):
    from tests.conftest import ROOT

    monkeypatch.chdir(ROOT)
    flags = ("--dry-run", "--cluster", "configs/cluster_2x8.yaml")
    code, message = run_here(job, "--config", f"configs/{name}.yaml", *flags)
    assert code == 0, message


def test_a_dry_run_names_what_it_could_not_check(monkeypatch, capsys):
    from tests.conftest import ROOT

    monkeypatch.chdir(ROOT)
    argv = "x --config configs/ppo_grm.yaml --dry-run --cluster configs/cluster_2x8.yaml"
    monkeypatch.setattr(sys, "argv", argv.split())
    with pytest.raises(SystemExit):
        command.main(PpoJob, ppo.run, "")
    said = capsys.readouterr().out
    assert "gpu-node-1" in said
    unchecked = said.split("could not be checked offline")[1]
    assert "google/gemma-2b-it" in unchecked and "Unified-Feedback" in unchecked
