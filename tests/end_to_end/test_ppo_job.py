"""`python -m grm_ray.ppo` on the real stack: vLLM rollouts, a reward pool, a DeepSpeed learner."""

import json
import os
import signal
import time

import psutil
import pyarrow.parquet as pq
import pytest

from grm_ray import ppo
from tests.conftest import descendants, finish, job, rows
from tests.end_to_end.conftest import ppo_config, refused


def start(path, folder, *flags):
    return job("grm_ray.ppo", "--config", str(path), *flags, cwd=folder)


def wait_for(condition, process, seconds=400):
    """Poll `condition` until it holds; the job must not end before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return
        if process.poll() is not None:
            pytest.fail(f"the job ended early:\n{process.communicate()[0][-3000:]}")
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    pytest.fail(f"waited {seconds} s in vain:\n{process.communicate()[0][-3000:]}")


def check_ledger(run, steps, per_step):
    """Every step's uids are there once, in the ledger and in the samples."""
    entries = rows(run / "ledger.jsonl")
    assert [e["step"] for e in entries] == list(range(1, steps + 1))
    for entry in entries:
        assert len(set(entry["uids"])) == len(entry["uids"]) == per_step
        said = pq.read_table(run / "samples" / f"step-{entry['step']:05d}.parquet")
        assert sorted(said["uid"].to_pylist()) == sorted(entry["uids"])
    return [uid for entry in entries for uid in entry["uids"]]


@pytest.mark.timeout(1500)
def test_a_killed_run_resumes_with_nothing_repeated_or_skipped(
    run_here, tmp_path, tiny_model, tiny_data, reward_model
):
    path = ppo_config(
        tmp_path,
        tiny_model,
        tiny_data,
        reward_model[0] / "model",
        ppo={
            "steps": 40,
            "minibatches": 2,
            "optimizer": {"learning_rate": 1.0e-3, "tokens_per_micro_batch": 150},
        },
        workers={"learner": {"count": 2, "threads": 1}},
    )
    run = tmp_path / "runs" / "ppo"
    process = start(path, tmp_path)
    wait_for(lambda: len(rows_or_none(run / "ledger.jsonl")) >= 3, process)
    workers = descendants(process, "ray::Learner", "ray::Scorer", "ray::RolloutWorker", "VLLM::")
    assert len(workers) == 6  # two learners, two scorers, a rollout worker and its engine
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, [p.cmdline() for p in alive]

    other = run_here(ppo, "--config", path, "--resume", "rollout.temperature=0.5")
    refused(other, "rollout.temperature: 1.0 in the checkpoint, 0.5 now")
    states = sorted((run / "checkpoints").glob("step-?????/state.json"))  # no half-written one
    saved = json.loads(states[-1].read_text())

    # On one rank, where there were two.
    process = start(path, tmp_path, "--resume", "workers.learner.count=1")
    wait_for(lambda: len(rows_or_none(run / "ledger.jsonl")) >= saved["step"] + 3, process)
    process.send_signal(signal.SIGINT)
    output = finish(process)
    assert process.returncode == 1 and "interrupted; continue with --resume" in output
    # The learner verified these hashes of the dead process against what it restored.
    assert f"resumed after step {saved['step']}, weights 1.{saved['step']}" in output
    assert set(saved["hashes"][0]) == {"weights", "optimizer", "schedule", "random", "normalizers"}

    steps = len(rows(run / "ledger.jsonl"))
    uids = check_ledger(run, steps, 15)
    assert len(set(uids)) == len(uids), "a prompt was repeated within its epoch"
    first_epoch = 42 // 5 * 5  # 48 prompts, 6 of them held out
    assert len({u.split(":")[0] for u in uids[: 3 * min(first_epoch, steps * 5)]}) == min(
        first_epoch, steps * 5
    )
    versions = [tuple(m["policy_version"]) for m in rows(run / "metrics.jsonl") if m["step"]]
    assert versions == sorted(versions) and versions[-1][0] == 1


def rows_or_none(path):
    try:
        return rows(path)
    except json.JSONDecodeError:
        return []


def busy_run(tmp_path, tiny_model, tiny_data, reward_model, steps):
    """A job whose rollout worker has enough to do that it can be killed at work."""
    path = ppo_config(
        tmp_path,
        tiny_model,
        tiny_data,
        reward_model[0] / "model",
        ppo={"steps": steps, "estimator": "rloo", "optimizer": {"learning_rate": 1.0e-3}},
        rollout={
            "prompts_per_step": 8,
            "samples_per_prompt": 4,
            "max_new_tokens": 40,
            "rows_per_batch": 2,
            "engine": {"max_num_seqs": 4},
        },
    )
    run = tmp_path / "runs" / "ppo"
    process = start(path, tmp_path)
    wait_for(lambda: len(rows_or_none(run / "ledger.jsonl")) >= 1, process)
    return process, run


def check_replaced(process, run, steps, workers):
    """The job ends as if nobody had died, and says how many did."""
    output = finish(process, timeout=700)
    assert process.returncode == 0, output
    check_ledger(run, steps, 32)
    metrics = rows(run / "metrics.jsonl")
    assert metrics[-1]["workers_replaced"] == workers and "raylet" not in output
    # The learner and the engine agree on what was sampled; prompts came again under new weights.
    assert all(m["engine_gap"] < 1e-4 for m in metrics if m["step"])
    return output


@pytest.mark.timeout(1500)
def test_killed_workers_are_replaced_within_the_step(tmp_path, tiny_model, tiny_data, reward_model):
    process, run = busy_run(tmp_path, tiny_model, tiny_data, reward_model, steps=6)
    os.kill(descendants(process, "ray::Scorer")[0].pid, signal.SIGKILL)
    wait_for(lambda: descendants(process, "ray::RolloutWorker.generate"), process)
    os.kill(descendants(process, "ray::RolloutWorker")[0].pid, signal.SIGKILL)
    output = check_replaced(process, run, steps=6, workers=2)
    assert output.count("rollout 0 died and is being replaced") == 1
    assert "true reward on held-out prompts" in output
    for name in ("before", "after"):
        assert pq.read_table(run / "samples" / f"{name}.parquet").num_rows == 6
    page = (run / "report.html").read_text()
    assert "KL" in page and "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_an_engine_that_dies_under_a_living_actor_counts_as_a_dead_worker(
    tmp_path, tiny_model, tiny_data, reward_model
):
    process, run = busy_run(tmp_path, tiny_model, tiny_data, reward_model, steps=12)
    wait_for(lambda: descendants(process, "ray::RolloutWorker.generate"), process)
    worker = descendants(process, "ray::RolloutWorker")[0]
    os.kill(descendants(worker, "VLLM::EngineCore")[0].pid, signal.SIGKILL)
    check_replaced(process, run, steps=12, workers=1)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("every", [2, 0], ids=["with checkpoints", "without"])
def test_a_killed_learner_is_replaced_and_the_steps_after_the_checkpoint_are_made_again(
    tmp_path, tiny_model, tiny_data, reward_model, every
):
    path = ppo_config(
        tmp_path,
        tiny_model,
        tiny_data,
        reward_model[0] / "model",
        ppo={"steps": 12, "optimizer": {"learning_rate": 1.0e-3}},
        workers={"learner": {"count": 2, "threads": 1}},
        checkpoint={"every": every},
        rollout={
            "prompts_per_step": 5,
            "samples_per_prompt": 3,
            "max_new_tokens": 12,
            "staleness": 1,
        },
    )
    run = tmp_path / "runs" / "ppo"
    process = start(path, tmp_path)
    wait_for(lambda: len(rows_or_none(run / "ledger.jsonl")) >= 3, process)
    engine = descendants(process, "ray::RolloutWorker")[0].pid
    os.kill(descendants(process, "ray::Learner")[0].pid, signal.SIGKILL)
    wait_for(lambda: len(rows_or_none(run / "ledger.jsonl")) >= 8, process)
    assert descendants(process, "ray::RolloutWorker")[0].pid == engine  # it stayed
    output = finish(process, timeout=700)
    assert process.returncode == 0, output
    assert output.count("a new group continues from the last checkpoint") == 1
    assert ("resumed after step 0," in output) is (every == 0)
    check_ledger(run, 12, 15)
    metrics = rows(run / "metrics.jsonl")
    assert [m["step"] for m in metrics] == list(range(13))
    versions = [m["policy_version"] for m in metrics if m["step"]]
    assert versions == sorted(versions) and versions[-1][0] == 1
    assert all(m["engine_gap"] < 1e-4 for m in metrics if m["step"] and not m["staleness"])
    assert metrics[-1]["workers_replaced"] == 2
