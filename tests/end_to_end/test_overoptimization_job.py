"""`python -m grm_ray.run_overoptimization` on the real stack: stopped, gone on with, added to."""

import json
import signal

import pytest
import yaml

from tests.conftest import finish, job
from tests.end_to_end.test_ppo_job import wait_for


def study_config(folder, tiny_model, tiny_data, **changes):
    model = {"path": str(tiny_model), "dtype": "float32"}
    lora = {"rank": 4, "dropout": 0.0}
    prompts = {"path": str(tiny_data["prompts"])}
    pairs = {}
    lines = tiny_data["pairs"].read_text().splitlines(keepends=True)
    for name, part in (("train", lines[:36]), ("test", lines[36:])):
        pairs[name] = {"path": str(folder / f"{name}.jsonl")}
        (folder / f"{name}.jsonl").write_text("".join(part))
    config = {
        "name": "study",
        "runs": str(folder / "runs"),
        "true_reward": "tests.judges:shorter",
        "data": pairs,
        "flips": {"noisy": 0.25},
        "seeds": [0, 1],
        "ppo_seeds": 1,
        "reward_model": {
            "model": {**model, "lora": lora},
            "loss": {"alpha": 0.0},
            "data": {"max_length": 128},
            "training": {"pairs_per_step": 12, "eval_every": 0},
            "workers": {"count": 1, "cpus": 1},
        },
        "models": {"bt": {}, "grm": {"loss.alpha": 0.1, "loss.regularizer": "sft"}},
        "proxies": {
            "bt": {"model": "bt"},
            "wco_par": {
                "ensemble_of": "bt",
                "aggregate": "wco",
                "ppo": {"reward.stages": ["par"]},
            },
        },
        "baseline": "bt",
        "best_of_n": {
            "policy": model,
            "data": {"prompts": {**prompts, "limit": 8}, "max_prompt_length": 64},
            "rollout": {"samples_per_prompt": 4, "max_new_tokens": 12},
            "scoring": {"dtype": "float32"},
            "prompts_per_shard": 4,
        },
        "ppo": {
            "policy": {**model, "lora": lora},
            "data": {"train": prompts, "eval": prompts, "max_prompt_length": 64},
            "rollout": {
                "prompts_per_step": 5,
                "samples_per_prompt": 3,
                "max_new_tokens": 12,
                "rows_per_batch": 2,
            },
            "ppo": {"steps": 2, "estimator": "rloo", "minibatches": 1},
            "evaluation": {"every": 1, "prompts": 6, "kl": True},
        },
        **changes,
    }
    config["ppo"]["data"]["train"] = {**prompts, "limit": 30}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start(path, folder, *flags):
    return job("grm_ray.run_overoptimization", "--config", str(path), *flags, cwd=folder)


def results(run):
    return {file: file.stat().st_mtime_ns for file in (run / "cells").glob("*.json")}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_study_goes_on_where_it_stopped_and_grows(tmp_path, tiny_model, tiny_data):
    path = study_config(tmp_path, tiny_model, tiny_data)
    run = tmp_path / "runs" / "study"
    process = start(path, tmp_path)
    wait_for(lambda: len(results(run)) >= 1, process)
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    assert process.returncode == 1 and "start it again: it continues where it stopped" in output
    before = results(run)

    process = start(path, tmp_path)
    output = finish(process, timeout=900)
    assert process.returncode == 0, output
    assert "has its result" in output
    whole = results(run)
    assert len(whole) == 2 + 1 + 2 and before.items() <= whole.items()
    found = json.loads((run / "overoptimization.json").read_text())
    noisy = found["noise"]["noisy"]
    assert [noisy["best_of_n"]["proxies"][name]["seeds"] for name in ("bt", "wco_par")] == [2, 1]
    for policy in noisy["ppo"].values():
        assert policy["steps"] == [0, 1, 2] and len(policy["true"]) == 3
        assert policy["d"][0] == 0 and policy["kept"] is not None
    page = (run / "report.html").read_text()
    assert "wco_par" in page and "Best of n: true reward" in page and "25 %" in page

    # Nothing is left to do; a proxy more is its own cells, and no other.
    assert "begins" not in finish(start(path, tmp_path))
    raw = yaml.safe_load(path.read_text())
    raw["proxies"]["grm"] = {"model": "grm"}
    path.write_text(yaml.safe_dump(raw))
    process = start(path, tmp_path, "at_once=1")
    output = finish(process, timeout=900)
    assert process.returncode == 0, output
    assert output.count(": begins") == 2 + 1 + 1
    more = results(run)
    assert len(more) == len(whole) + 4 and whole.items() <= more.items()
    found = json.loads((run / "overoptimization.json").read_text())["noise"]["noisy"]
    assert set(found["best_of_n"]["proxies"]) == set(found["ppo"]) == {"bt", "wco_par", "grm"}
    assert not list((run / "cells").glob("*/checkpoints"))
