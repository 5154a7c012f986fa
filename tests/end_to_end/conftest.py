"""Configs of the jobs at tiny size, and one reward model that the PPO tests share."""

import sys

import pytest
import ray
import yaml

from grm_ray import bon, command, ppo, rm, serve
from grm_ray.config.best_of_n import BestOfNJob
from grm_ray.config.ppo import PpoJob
from grm_ray.config.reward_model import RewardModelJob
from grm_ray.config.serve import ServeJob
from grm_ray.drivers import run_folder
from tests.conftest import finish, job

SCHEMAS = {rm: RewardModelJob, ppo: PpoJob, bon: BestOfNJob, serve: ServeJob}


def rm_config(folder, tiny_model, tiny_data, **changes):
    config = {
        "name": "rm",
        "runs": str(folder / "runs"),
        "model": {
            "path": str(tiny_model),
            "dtype": "float32",
            "lora": {"rank": 4, "dropout": 0.0},
        },
        "data": {"train": {"path": str(tiny_data["pairs"])}, "holdout": 0.25, "max_length": 128},
        "training": {
            "pairs_per_step": 7,
            "epochs": 2,
            "eval_every": 4,
            "optimizer": {"learning_rate": 3.0e-3, "tokens_per_micro_batch": 200},
        },
        "tracking": [],
        **changes,
    }
    path = folder / f"{config['name']}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def judge_config(folder, models, sets, **changes):
    """Saved models on files of pairs."""
    config = {
        "name": "judged",
        "runs": str(folder / "runs"),
        "models": {name: str(path) for name, path in models.items()},
        "sets": {name: {"path": str(path)} for name, path in sets.items()},
        "scoring": {"dtype": "float32"},
        "tracking": [],
        **changes,
    }
    path = folder / f"{config['name']}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def bon_config(folder, tiny_model, tiny_data, proxies, **changes):
    """Saved reward models that choose among the tiny model's answers."""
    config = {
        "name": "bon",
        "runs": str(folder / "runs"),
        "policy": {"path": str(tiny_model), "dtype": "float32"},
        "data": {"prompts": {"path": str(tiny_data["prompts"])}, "max_prompt_length": 64},
        "rollout": {
            "samples_per_prompt": 4,
            "max_new_tokens": 12,
            "engine": {"max_num_seqs": 8},
        },
        "proxies": {name: str(path) for name, path in proxies.items()},
        "true_reward": "tests.judges:shorter",
        "scoring": {"dtype": "float32"},
        "prompts_per_shard": 4,
        "tracking": [],
        **changes,
    }
    path = folder / f"{config['name']}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def ppo_config(folder, tiny_model, tiny_data, reward, /, **changes):
    config = {
        "name": "ppo",
        "runs": str(folder / "runs"),
        "policy": {
            "path": str(tiny_model),
            "dtype": "float32",  # in bfloat16 engine and learner differ by rounding
            "lora": {"rank": 4, "dropout": 0.0},
        },
        "reward": {"path": str(reward), "true_reward": "tests.judges:shorter"},
        "data": {"train": {"path": str(tiny_data["prompts"])}, "max_prompt_length": 64},
        "rollout": {
            "prompts_per_step": 5,
            "samples_per_prompt": 3,
            "max_new_tokens": 12,
            "rows_per_batch": 2,
            "engine": {"max_num_seqs": 8},
        },
        "ppo": {
            "steps": 4,
            "minibatches": 2,
            "optimizer": {"learning_rate": 1.0e-3, "tokens_per_micro_batch": 150},
        },
        "evaluation": {"prompts": 6},
        "checkpoint": {"every": 1, "keep": 2},
        "tracking": [],
        **changes,
    }
    path = folder / f"{config['name']}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory, tiny_model, tiny_data):
    """`(run folder, output)` of one real reward-model job on two ranks."""
    folder = tmp_path_factory.mktemp("rm")
    path = rm_config(folder, tiny_model, tiny_data)
    process = job("grm_ray.rm", "--config", str(path), cwd=folder)
    output = finish(process)
    assert process.returncode == 0, output
    return folder / "runs" / "rm", output


@pytest.fixture
def run_here(monkeypatch, capsys):
    """`run_here(job, *arguments)`: the exit code and what stood on the error stream. For what ends
    before anything is started, in this process, which has its imports behind it."""

    def call(job, *arguments):
        monkeypatch.setattr(sys, "argv", ["grm_ray", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            command.main(SCHEMAS[job], job.run, "")
        assert not ray.is_initialized()
        run_folder._HELD.clear()  # files that are closed let go of their folders, as at an end
        return left.value.code, capsys.readouterr().err

    return call


def refused(answer, *parts):
    code, message = answer
    assert code == 2, message
    assert message.startswith("error: ") and len(message.strip().splitlines()) == 1, message
    for part in parts:
        assert part in message
