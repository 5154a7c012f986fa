"""Each way to learn from rewards, for two steps of the real thing."""

import math

import pyarrow.parquet as pq
import pytest

from tests.conftest import build_model, finish, job, rows
from tests.end_to_end.conftest import ppo_config

FULL = {"path": None, "dtype": "float32"}  # all weights learn
OPTIMIZER = {"learning_rate": 1.0e-3, "tokens_per_micro_batch": 150}
VARIANTS = {
    "rloo, all weights, KL as a loss": {
        "policy": FULL,
        "ppo": {"estimator": "rloo", "kl": {"place": "loss", "estimator": "k2", "ema": 0.5}},
    },
    "grpo as DAPO has it": {
        # Judged by the same model once more: then the two must be one.
        "reward": {"overlong": {"margin": 6}, "true_reward": "the same"},
        "evaluation": {"prompts": 6, "greedy": True, "every": 1},
        "checkpoint": {"best_by": "greedy_reward"},
        "ppo": {
            "estimator": "grpo",
            "clip_high": 0.28,
            "normalize_by": "tokens",
            "old_logprobs": "engine",
        },
    },
    "only what is finished, which nothing is": {
        "ppo": {"estimator": "rloo", "mask_unfinished": True, "minibatches": 3},
    },
    "chi squared to a second model": {
        "ppo": {
            "estimator": "reinforce_pp_baseline",
            "entropy_coefficient": 0.01,
            "kl": {"place": "loss", "estimator": "sqrt_chi_squared", "reference": "other"},
        },
    },
    "a critic warmed up, all weights, ZeRO-3, two ranks": {
        "policy": FULL,
        "ppo": {"critic_warmup": 1, "optimizer": {**OPTIMIZER, "zero_stage": 3}},
        "workers": {"learner": {"count": 2, "threads": 1}},
    },
    "LoRA, ZeRO-3, two ranks, more micro-batches on one": {
        "ppo": {"optimizer": {**OPTIMIZER, "zero_stage": 3, "tokens_per_micro_batch": 60}},
        "workers": {"learner": {"count": 2, "threads": 1}},
    },
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("staleness", [1, 2])
def test_generation_runs_ahead_by_so_many_updates_and_no_more(
    staleness, tmp_path, tiny_model, tiny_data, reward_model
):
    ppo = {"steps": 5, "estimator": "rloo", "optimizer": OPTIMIZER}
    rollout = {"prompts_per_step": 5, "samples_per_prompt": 3, "max_new_tokens": 12}
    path = ppo_config(
        tmp_path,
        tiny_model,
        tiny_data,
        reward_model[0] / "model",
        ppo=ppo,
        rollout={**rollout, "staleness": staleness},
        evaluation={"prompts": 6, "every": 3},
    )
    output = finish(process := job("grm_ray.ppo", "--config", str(path), cwd=tmp_path))
    assert process.returncode == 0, output
    run = tmp_path / "runs" / "ppo"
    steps = [m for m in rows(run / "metrics.jsonl") if m["step"]]
    old = [m["staleness"] for m in steps]
    assert old[0] == 0 and max(old) == staleness and all(0 <= x <= staleness for x in old), old
    # Fresh rows agree with the learner; those of older weights are told apart, and weighed.
    assert steps[0]["engine_gap"] < 1e-4 < max(m["engine_gap"] for m in steps)
    assert steps[0]["policy/importance"] == pytest.approx(1.0, abs=1e-3)
    uids = [uid for entry in rows(run / "ledger.jsonl") for uid in entry["uids"]]
    assert len(uids) == len(set(uids)) == 75
    assert pq.read_table(run / "samples" / "held-out-00003.parquet").num_rows == 6


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", VARIANTS)
def test_two_steps_leave_engine_and_learner_with_one_policy(
    name, tmp_path, tiny_model, tiny_data, reward_model
):
    changes = {key: dict(value) for key, value in VARIANTS[name].items()}
    reward = {"path": str(reward_model[0] / "model"), **changes.pop("reward", {})}
    if "true_reward" in reward:
        reward["true_reward"] = reward["path"]
    if "policy" in changes:
        changes["policy"]["path"] = str(tiny_model)
    ppo = {"steps": 2, "minibatches": 2, "optimizer": OPTIMIZER, **changes.pop("ppo")}
    if "reference" in ppo.get("kl", {}):
        ppo["kl"] = {**ppo["kl"], "reference": str(build_model(tmp_path / "other", seed=1))}
    path = ppo_config(
        tmp_path, tiny_model, tiny_data, reward["path"], reward=reward, ppo=ppo, **changes
    )
    output = finish(process := job("grm_ray.ppo", "--config", str(path), cwd=tmp_path))
    assert process.returncode == 0, output
    first, second = [m for m in rows(tmp_path / "runs" / "ppo" / "metrics.jsonl") if m["step"]]
    for metrics in (first, second):
        assert all(math.isfinite(x) for x in metrics.values() if isinstance(x, float)), metrics
        # The first step's rows are of the weights as loaded, the second's of those that were sent.
        assert metrics["engine_gap"] < 1e-4
        assert ("loss/value" in metrics) == (ppo.get("estimator", "gae") == "gae")
        finished = metrics["finished"] if ppo.get("mask_unfinished") else 1.0
        assert metrics["rows_learned"] == pytest.approx(15 * finished)
    # One step that is the critic's alone, or has no rows, leaves the policy where it was.
    stays = bool(ppo.get("critic_warmup")) or first["rows_learned"] == 0
    assert stays == (second["objective/kl"] == pytest.approx(0.0, abs=1e-6))
    assert (first["rows_learned"] == 0) == ("no answer is left to learn from" in output)
    if "reference" in ppo.get("kl", {}):
        assert first["objective/kl"] > 0.1
    samples = tmp_path / "runs" / "ppo" / "samples"
    said = pq.read_table(samples / "after.parquet")
    assert said.num_rows == 6
    if "true_reward" in reward:
        assert said["true_reward"].to_pylist() == pytest.approx(said["reward"].to_pylist())
        sampled, greedy = (
            pq.read_table(samples / f"after{kind}.parquet").sort_by("uid")["response"].to_pylist()
            for kind in ("", "-greedy")
        )
        assert len(greedy) == 6 and greedy != sampled
        best = max((first, second), key=lambda m: m["eval/greedy_reward"])
        assert f"policy {tmp_path / 'runs' / 'ppo' / 'model'} (step {best['step']})" in output
        assert math.isfinite(second["eval/greedy_true_reward"])
