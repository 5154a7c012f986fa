"""`python -m grm_ray.rm` on the real stack: Ray actors, DeepSpeed over gloo."""

import json
import math
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from grm_ray.data.packing import pack
from grm_ray.models.checkpoint import load_reward_model
from tests.conftest import WORDS, descendants, finish, job, rows
from tests.end_to_end.conftest import ppo_config, rm_config
from tests.end_to_end.test_ppo_job import wait_for


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
    losses = [m["loss"] for m in metrics if "loss" in m][:-1]  # the last step has a single pair
    assert sum(losses[-5:]) < sum(losses[:5]), output
    saved = tmp_path / "runs" / "rm" / "model"
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model, saved))
    assert set(before) <= set(after) and not any(before[x].equal(after[x]) for x in before)
    path = ppo_config(tmp_path, tiny_model, tiny_data, saved, policy=model)
    trained = job("grm_ray.ppo", "--config", str(path), cwd=tmp_path)
    output = finish(trained)
    assert trained.returncode == 0, output
    metrics = rows(tmp_path / "runs" / "ppo" / "metrics.jsonl")
    assert len(metrics) == 5, output
    AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "ppo" / "model")
    assert all(m["engine_gap"] < 1e-4 for m in metrics if m["step"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(
            {"model": {"path": "weightless"}},
            "model weightless: cannot be loaded",
            id="a rank",
        ),
        pytest.param(
            {"data": {"holdout": 0.5}},
            "0 training and 3 held-out pairs left",
            id="the encoder",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_input_that_only_a_worker_can_see(tmp_path, tiny_model, tiny_data, change, said):
    shutil.copytree(
        tiny_model, tmp_path / "weightless", ignore=shutil.ignore_patterns("*.safetensors")
    )
    one = tmp_path / "one.jsonl"
    pairs = [{"prompt": "Q", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(3)]
    one.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    data = {"train": {"path": str(one if "data" in change else tiny_data["pairs"])}}
    path = rm_config(
        tmp_path,
        tiny_model,
        tiny_data,
        model={"path": str(tiny_model), "dtype": "float32", **change.get("model", {})},
        data={**data, "max_length": 128, **change.get("data", {})},
    )
    refused = job("grm_ray.rm", "--config", str(path), cwd=tmp_path)
    output = finish(refused)
    assert refused.returncode == 2, output
    assert "error: " in output and said in output and "Traceback" not in output


@pytest.mark.slow
def test_training_goes_on_where_a_saved_model_stood(reward_model, tmp_path, tiny_model, tiny_data):
    folder, _ = reward_model
    model = {"path": str(folder / "model"), "dtype": "float32"}
    path = rm_config(tmp_path, tiny_model, tiny_data, name="more", model=model)
    more = job("grm_ray.rm", "--config", str(path), cwd=tmp_path)
    output = finish(more)
    assert more.returncode == 0, output
    before, after = rows(folder / "metrics.jsonl"), rows(tmp_path / "runs/more/metrics.jsonl")
    for name in ("eval/accuracy", "eval/loss"):
        assert after[0][name] == pytest.approx(before[-1][name], abs=1e-4), (name, output)


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


def weights(run):
    model = run / "model"
    return load_file(model / "model.safetensors") | load_file(model / "reward_head.safetensors")


def killed(tmp_path, tiny_model, tiny_data):
    """A run that died by SIGKILL after its first checkpoint: `(config, run folder)`."""
    path = rm_config(tmp_path, tiny_model, tiny_data, checkpoint={"every": 1})
    run = tmp_path / "runs" / "rm"
    process = job("grm_ray.rm", "--config", str(path), cwd=tmp_path)
    wait_for(lambda: list((run / "checkpoints").glob("step-?????/state.json")), process)
    process.kill()
    process.communicate()
    return path, run


@pytest.mark.timeout(900)
def test_a_killed_run_resumes_to_the_weights_of_an_unbroken_one(
    tmp_path, tiny_model, tiny_data, reward_model
):
    path, run = killed(tmp_path, tiny_model, tiny_data)
    process = job("grm_ray.rm", "--config", str(path), "--resume", cwd=tmp_path)
    output = finish(process)
    assert process.returncode == 0 and "resumed after step" in output, output
    unbroken, resumed = weights(reward_model[0]), weights(run)
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    told = [m["step"] for m in rows(run / "metrics.jsonl")]
    assert told == sorted(set(told)) == list(range(len(rows(reward_model[0] / "metrics.jsonl"))))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("every", [1, 0], ids=["with checkpoints", "without"])
def test_a_rank_that_dies_is_replaced_and_the_weights_are_those_of_an_unbroken_run(
    tmp_path, tiny_model, tiny_data, reward_model, every
):
    path = rm_config(
        tmp_path, tiny_model, tiny_data, checkpoint={"every": every}, workers={"count": 2}
    )
    run = tmp_path / "runs" / "rm"
    process = job("grm_ray.rm", "--config", str(path), cwd=tmp_path)
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(told(run)) >= 3, process)
    os.kill(descendants(process, "ray::RewardTrainer")[1].pid, signal.SIGKILL)
    output = finish(process, timeout=500)
    assert process.returncode == 0, output
    assert output.count("a new group continues from the last checkpoint") == 1
    unbroken, mended = weights(reward_model[0]), weights(run)
    assert all(torch.equal(unbroken[name], mended[name]) for name in unbroken)
    assert told(run) == list(range(len(rows(reward_model[0] / "metrics.jsonl"))))


def told(run):
    """Steps of the run's metrics, but for a line that is being written."""
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


@pytest.mark.slow
def test_a_run_goes_on_with_one_rank_less(tmp_path, tiny_model, tiny_data, reward_model):
    path, run = killed(tmp_path, tiny_model, tiny_data)
    process = job("grm_ray.rm", "--config", str(path), "--resume", "workers.count=1", cwd=tmp_path)
    assert "resumed after step" in finish(process)
    unbroken, resumed = weights(reward_model[0]), weights(run)
    for name, weight in unbroken.items():
        assert torch.allclose(weight, resumed[name], atol=1e-4), name


def preferences(path, count, **columns):
    """Pairs of another seed, each prompt its own, with more columns."""
    rng = __import__("random").Random(path.name)
    with path.open("w") as out:
        for number in range(count):
            words = rng.sample(WORDS, 6)
            row = {"prompt": f"{' '.join(words[:3])} {path.stem} {number}"}
            row |= {"chosen": " ".join(words[:2]), "rejected": " ".join(words[3:]), **columns}
            out.write(json.dumps(row) + "\n")
    return str(path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_mixture_a_reference_model_and_the_best_checkpoint_under_zero_3(
    tmp_path, tiny_model, tiny_data
):
    one = preferences(tmp_path / "one.jsonl", 20)
    two = preferences(tmp_path / "two.jsonl", 12, margin=2.0)
    sets = {n: {"path": preferences(tmp_path / f"{n}.jsonl", 9)} for n in ("near", "far")}
    path = rm_config(
        tmp_path,
        tiny_model,
        tiny_data,
        model={"path": str(tiny_model), "dtype": "float32"},
        loss={"regularizer": "dpo", "alpha": 0.1, "centering": 0.01, "label_smoothing": 0.1},
        data={
            "train": [{"path": one, "flip": 0.2}, {"path": two, "weight": 0.5}],
            "eval": sets,
            "max_length": 128,
        },
        training={
            "pairs_per_step": 7,
            "epochs": 2,
            "eval_every": 2,
            "optimizer": {
                "learning_rate": 3e-3,
                "tokens_per_micro_batch": 100,
                "zero_stage": 3,
            },
        },
        checkpoint={"best_by": "far"},
    )
    process = job("grm_ray.rm", "--config", str(path), cwd=tmp_path)
    output = finish(process)
    assert process.returncode == 0, output
    run = tmp_path / "runs" / "rm"
    metrics = rows(run / "metrics.jsonl")
    assert metrics[-1]["step"] == math.ceil((20 + 6) * 2 / 7)
    # At the first step the policy is the reference: log 2, whatever the data.
    assert metrics[1]["loss/regularizer"] == pytest.approx(0.693147, abs=1e-5)
    judged = [m for m in metrics if "eval/far/accuracy" in m]
    assert all(m["eval/accuracy"] == m["eval/far/accuracy"] for m in judged)
    assert {"eval/near/accuracy", "eval/length_correlation", "head_moved"} <= set(judged[-1])
    best = max(m["eval/far/accuracy"] for m in judged if m["step"])
    card = (run / "model" / "README.md").read_text()
    (row,) = [line for line in card.splitlines() if line.startswith("| far | accuracy")]
    assert f"{best:.3f}" in row, card
    load_reward_model(str(run / "model"), "float32")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["frozen", "regression", "margin", "members"])
def test_other_kinds_of_training_learn_too(tmp_path, tiny_model, tiny_data, kind):
    changes = {"model": {"path": str(tiny_model), "dtype": "float32"}}
    if kind == "frozen":
        changes["model"]["frozen"] = True
        changes |= {"loss": {"alpha": 0.0}, "head": {"kind": "mlp", "hidden": 32}}
    elif kind == "members":
        changes["head"] = {"members": 3}
    elif kind == "margin":
        train = {"path": preferences(tmp_path / "train.jsonl", 30, margin=0.5)}
        changes |= {"loss": {"preference": "margin", "alpha": 0.0}, "data": {"train": train}}
    else:
        rated = tmp_path / "rated.jsonl"
        with rated.open("w") as out:
            for number in range(40):
                good = number % 2
                row = {"prompt": f"the cat {number}", "response": "birds fly" if good else "rain"}
                row |= {"helpfulness": 4.0 * good, "verbosity": None if number % 3 else 1.0}
                out.write(json.dumps(row) + "\n")
        changes |= {
            "loss": {"preference": "regression", "alpha": 0.0},
            "head": {"attributes": ["helpfulness", "verbosity"], "weights": [1.0, -0.5]},
            "data": {"train": {"path": str(rated)}, "eval": {"path": str(tiny_data["pairs"])}},
        }
    path = rm_config(tmp_path, tiny_model, tiny_data, **changes)
    process = job("grm_ray.rm", "--config", str(path), cwd=tmp_path)
    output = finish(process)
    assert process.returncode == 0, output
    metrics = rows(tmp_path / "runs" / "rm" / "metrics.jsonl")
    assert metrics[-1]["loss"] < metrics[1]["loss"], output
    model, _, _ = load_reward_model(str(tmp_path / "runs" / "rm" / "model"), "float32")
    assert model.head.members == (3 if kind == "members" else 1)
