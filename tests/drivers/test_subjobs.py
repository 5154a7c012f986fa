"""Jobs within jobs: begun once, gone on with, ended together, and their messages passed on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from grm_ray.config.errors import ConfigError
from grm_ray.config.reward_model import RewardModelJob
from grm_ray.config.schema import Job
from grm_ray.drivers import subjobs
from tests.conftest import ROOT, started_by

CHILD = "tests.drivers.child"
PARENT = """
import sys
from pathlib import Path
from grm_ray.config.schema import Job
from grm_ray.drivers import subjobs
import signal

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, interrupt)
file = Path(sys.argv[1])
subjobs.call("tests.drivers.child", Job(name=sys.argv[2], runs=str(file.parent)), file, False)
"""


@pytest.fixture(autouse=True)
def from_here(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_what_is_wrong_with_the_config_reaches_the_user_as_such(tmp_path):
    with pytest.raises(ConfigError, match="^data file x.jsonl does not exist\nand neither does y"):
        subjobs.call(CHILD, Job(name="refused"), tmp_path / "job.yaml", False)


def test_any_other_failure_shows_what_was_said(tmp_path):
    with pytest.raises(RuntimeError, match="exit 1.*\n.*no such thing") as caught:
        subjobs.call(CHILD, Job(name="broken"), tmp_path / "job.yaml", False)
    assert not isinstance(caught.value, ConfigError)


def started(tmp_path, name):
    """A process that has called the job `name`, which is under way."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "job.yaml"), name],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GRM_RAY_TEST_JOB": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    process.mark = str(tmp_path)
    ready = tmp_path / "job.ready"
    while not ready.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_job_is_ended_once_and_leaves_nothing(tmp_path, sent):
    """A terminal's Ctrl-C goes to the whole group; the job hears one SIGTERM and is waited for."""
    process = started(tmp_path, "waits")
    os.killpg(process.pid, signal.Signals[sent])
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)  # an impatient second one changes nothing
    error = process.communicate(timeout=60)[1]
    assert "KeyboardInterrupt" in error
    assert (tmp_path / "job.heard").read_text() == "SIGTERM"
    assert not started_by(process)


def test_a_job_ends_with_one_that_is_killed_and_a_restart_waits_for_it(tmp_path, capsys):
    process = started(tmp_path, "works")
    process.kill()
    process.communicate()
    job = Job(name="works", runs=str(tmp_path))
    subjobs.call(CHILD, job, tmp_path / "job.yaml", True)
    assert not started_by(process)
    said = capsys.readouterr().out
    assert (
        said == f"{tmp_path}/works: another process is using it; waiting 60 s at most for its end\n"
    )
    assert (tmp_path / "job.child.log").read_text() == ""


def test_the_log_of_a_job_that_stays_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(subjobs, "_OUTLIVES_S", 0.2)
    (tmp_path / "job.child.log").write_text("step 1\n")
    code = "from grm_ray.drivers.run_folder import hold; from pathlib import Path; import sys\n"
    code += "hold(Path(sys.argv[1])); print('in', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "works")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "in\n"
        job = Job(name="works", runs=str(tmp_path))
        with pytest.raises(ConfigError, match="works: another process is using it"):
            subjobs.call(CHILD, job, tmp_path / "job.yaml", True)
        other.stdin.close()
    said = (tmp_path / "job.child.log").read_text().splitlines()
    assert said[0] == "step 1" and "another process is using it" in said[1]


def too_large(tmp_path, tiny_model):
    """A job that finds no room once it is past its checkpoints."""
    return RewardModelJob(
        name="cell",
        runs=str(tmp_path),
        model={"path": str(tiny_model)},
        data={"train": {"path": "demo"}},
        workers={"cpus": 1000},
    )


def test_a_model_that_may_still_change_is_not_taken(tmp_path, tiny_model):
    """`model/` is there from the first evaluation on where the best one is kept."""
    job, folder = too_large(tmp_path, tiny_model), tmp_path / "cell"
    for part in ("model", "checkpoints/step-00010.part"):
        (folder / part).mkdir(parents=True)
    (folder / "checkpoints/step-00010.part/state.json").write_text("{}")
    # Begun anew: there is no whole checkpoint to go on from.
    with pytest.raises(ConfigError, match="the workers ask for 2000 CPU"):
        subjobs.train(job, tmp_path / "cell.yaml")
    (tmp_path / "cell.1").mkdir()
    (folder / "done.json").write_text("{}")
    assert subjobs.train(job, tmp_path / "cell.yaml") == folder / "model"
    assert not (tmp_path / "cell.1").exists()


def test_what_has_a_checkpoint_is_gone_on_with(tmp_path, tiny_model):
    step = tmp_path / "cell" / "checkpoints" / "step-00010"
    step.mkdir(parents=True)
    (step / "state.json").write_text(json.dumps({"step": 10, "identity": {}}))
    with pytest.raises(ConfigError, match="--resume: .*made with a different model"):
        subjobs.train(too_large(tmp_path, tiny_model), tmp_path / "cell.yaml")
    assert step.is_dir()


def test_two_processes_cannot_be_at_one_folder(tmp_path):
    code = (
        "import sys; from pathlib import Path; from grm_ray.drivers import subjobs\n"
        "subjobs.open_folder(Path(sys.argv[1])); print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "study")]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "in\n"
        with pytest.raises(ConfigError, match="another process"):
            subjobs.open_folder(tmp_path / "study")
        first.stdin.close()
    subjobs.open_folder(tmp_path / "study")


def test_a_folder_that_cannot_be_written_is_the_user_s_to_mend(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match="runs/study: (Not a directory|File exists)"):
        subjobs.open_folder(tmp_path / "runs" / "study")


def several(tmp_path, *names):
    return [subjobs.Call(CHILD, Job(name=n), tmp_path / f"{n}.yaml", False) for n in names]


def test_jobs_run_beside_one_another(tmp_path):
    """Each of the two waits for the other to have begun."""
    asked = several(tmp_path, "meets-one", "meets-two")
    done = [call.job.name for call in subjobs.calls(asked, at_once=2)]
    assert sorted(done) == ["meets-one", "meets-two"]


def test_one_that_fails_keeps_no_other_from_its_turn(tmp_path, capsys):
    done = []
    with pytest.raises(RuntimeError, match="no such thing as this"):
        for call in subjobs.calls(several(tmp_path, "broken", "slow", "late"), at_once=1):
            done.append(call.job.name)
    assert done == ["slow", "late"]
    assert capsys.readouterr().out.startswith("broken.yaml failed, the others go on: ")


def test_wrong_input_ends_all_but_those_under_way(tmp_path):
    done = []
    with pytest.raises(ConfigError, match="data file x.jsonl does not exist"):
        for call in subjobs.calls(several(tmp_path, "refused", "slow", "never"), at_once=2):
            done.append(call.job.name)
    assert done == ["slow"] and not (tmp_path / "never.yaml").exists()


def test_after_three_failures_nothing_begins(tmp_path):
    names = [f"broken-{number}" for number in range(4)]
    with pytest.raises(RuntimeError, match="^3 jobs failed\n(.*\n)*.*broken-2.yaml failed"):
        list(subjobs.calls(several(tmp_path, *names), at_once=1))
    assert not (tmp_path / "broken-3.yaml").exists()
