"""Ends that are known beforehand: one message, the right exit code, checkpoints that still load."""

import subprocess

import pytest

from tests.conftest import finish, job, rows
from tests.end_to_end.conftest import rm_config


@pytest.mark.slow
def test_updates_that_are_no_numbers_end_the_run(tmp_path, tiny_model, tiny_data):
    """The first update throws the weights so far that no later loss is a number."""
    training = {"pairs_per_step": 9, "optimizer": {"learning_rate": 1.0e30}}
    checkpoint = {"every": 1}
    path = rm_config(tmp_path, tiny_model, tiny_data, training=training, checkpoint=checkpoint)
    failed = job("grm_ray.rm", "--config", str(path), cwd=tmp_path)
    output = finish(failed)
    assert failed.returncode == 1 and "Traceback" not in output, output
    assert "last 3 updates" in output and "training.optimizer.learning_rate" in output, output
    assert output.strip().endswith("continue with --resume"), output
    metrics = rows(tmp_path / "runs" / "rm" / "metrics.jsonl")
    assert [m["skipped_updates"] for m in metrics if m["step"]] == [0, 1, 1], output


@pytest.mark.slow
def test_a_disk_too_full_for_the_model_fails_the_run_and_resume_saves_it(
    tmp_path, tiny_model, tiny_data, small_disk
):
    filler = small_disk / "filler"
    filler.write_bytes(bytes(800 << 10))  # leaves room for checkpoints of an adapter alone
    path = rm_config(
        tmp_path,
        tiny_model,
        tiny_data,
        runs=str(small_disk),
        training={"pairs_per_step": 18, "optimizer": {"learning_rate": 1.0e-3}},
        checkpoint={"every": 1, "keep": 1},
    )
    failed = job("grm_ray.rm", "--config", str(path), cwd=tmp_path)
    output = finish(failed)
    assert failed.returncode == 1 and "Traceback" not in output, output
    assert f"error: {small_disk}/rm/model could not be written" in output, output
    assert output.strip().endswith("continue with --resume"), output
    assert not (small_disk / "rm" / "model").exists()
    more = ["mount", "-o", "remount,size=32m", str(small_disk)]
    subprocess.run(more, check=True)
    resumed = job("grm_ray.rm", "--config", str(path), "--resume", cwd=tmp_path)
    output = finish(resumed)
    assert resumed.returncode == 0 and "resumed after step 2" in output, output
    assert (small_disk / "rm" / "model" / "model.safetensors").exists()
