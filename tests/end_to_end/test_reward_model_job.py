"""`python -m grm_ray.rm` on the real stack: Ray actors, DeepSpeed ZeRO-2 over gloo, LoRA."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from grm_ray.data.packing import pack
from grm_ray.models.checkpoint import load_reward_model
from tests.conftest import finish, job, rows
from tests.end_to_end.conftest import ppo_config, rm_config


def test_the_run_folder_is_complete(reward_model):
    folder, output = reward_model
    assert "report:" in output and (folder / "report.html").stat().st_size > 1000
    metrics = rows(folder / "metrics.jsonl")
    assert [m["step"] for m in metrics] == list(range(len(metrics)))
    assert {"loss", "accuracy", "lr", "grad_norm"} <= set(metrics[1])
    assert metrics[-1]["loss"] < metrics[1]["loss"]
    assert "eval/accuracy_low" in metrics[-1]
    for name in ("config.yaml", "quarantine.jsonl", "logs/trainer-0.log", "logs/trainer-1.log"):
        assert (folder / name).exists()


@pytest.mark.slow
def test_all_weights_train_too(tmp_path, tiny_model, tiny_data):
    """Both jobs without LoRA: every weight moves, is sent, and engine and learner agree."""
    model = {"path": str(tiny_model), "dtype": "float32", "lora": None}
    path = rm_config(tmp_path, tiny_model, tiny_data, model=model)
    trained = job("grm_ray.rm", "--config", str(path), cwd=tmp_path)
    output = finish(trained)
    assert trained.returncode == 0, output
    metrics = rows(tmp_path / "runs" / "rm" / "metrics.jsonl")
    assert metrics[-1]["loss"] < metrics[1]["loss"], output
    path = ppo_config(
        tmp_path, tiny_model, tiny_data, tmp_path / "runs" / "rm" / "model", policy=model
    )
    trained = job("grm_ray.ppo", "--config", str(path), cwd=tmp_path)
    output = finish(trained)
    assert trained.returncode == 0, output
    metrics = rows(tmp_path / "runs" / "ppo" / "metrics.jsonl")
    assert len(metrics) == 5, output
    AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "ppo" / "model")
    assert all(m["engine_gap"] < 1e-4 for m in metrics if m["step"])


def test_no_library_chatter_on_the_terminal(reward_model):
    _, output = reward_model
    assert len(output.splitlines()) < 40 and "WARNING" not in output and "Warning" not in output


def test_the_saved_model_scores_and_still_speaks(reward_model):
    folder, _ = reward_model
    model, contract, fingerprint = load_reward_model(str(folder / "model"), "float32")
    assert len(fingerprint) == 32 and contract.max_length == 128
    prompt, short, long = (torch.arange(5, n).numpy() for n in (9, 15, 40))
    together, _ = model(pack([(prompt, [long, short])]))
    alone, _ = model(pack([(prompt, [short])]))
    assert abs(float(together[1] - alone[0])) < 1e-5
    AutoModelForCausalLM.from_pretrained(folder / "model").generate(
        torch.tensor([[5, 6, 7]]), max_new_tokens=3
    )
