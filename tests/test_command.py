"""What a job says when it is interrupted, and what it says of its keys."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from grm_ray.command import _how_to_go_on


def stopped(folder, job):
    return _how_to_go_on(SimpleNamespace(job=job, runs=str(folder), name="run"))


@pytest.mark.parametrize("job", ["study", "curate"])
def test_what_goes_on_by_itself_says_so(tmp_path, job):
    assert stopped(tmp_path, job) == "start it again: it continues where it stopped"


def test_resume_is_named_where_there_is_something_to_go_on_from(tmp_path):
    for job in ("rm", "evaluate"):
        assert "no checkpoint" in stopped(tmp_path, job)
    step = tmp_path / "run" / "checkpoints" / "step-00001"
    step.mkdir(parents=True)
    (step / "state.json").write_text("{}")
    assert stopped(tmp_path, "rm") == "continue with --resume"


def test_scores_are_something_to_go_on_from(tmp_path):
    scores = tmp_path / "run" / "scores" / "model"
    scores.mkdir(parents=True)
    assert "no checkpoint" in stopped(tmp_path, "evaluate")
    (scores / "set-0.parquet").touch()
    assert stopped(tmp_path, "evaluate") == "continue with --resume"


def test_shards_are_something_to_go_on_from(tmp_path):
    (tmp_path / "run" / "samples").mkdir(parents=True)
    assert "no checkpoint" in stopped(tmp_path, "bon")
    (tmp_path / "run" / "samples" / "shard-000000.part").touch()
    assert "no checkpoint" in stopped(tmp_path, "bon")
    (tmp_path / "run" / "samples" / "shard-000000.parquet").touch()
    assert stopped(tmp_path, "bon") == "continue with --resume"


def test_keys_need_no_config():
    told = subprocess.run(
        [sys.executable, "-m", "grm_ray.rm", "--keys"], capture_output=True, text=True, check=True
    )
    assert told.stderr == ""
    assert "\nloss:\n" in told.stdout
