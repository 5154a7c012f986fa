"""A run's folder belongs to one process at a time, and to one job."""

import subprocess
import sys

import pytest

from grm_ray.config.errors import ConfigError
from grm_ray.config.serve import ServeJob
from grm_ray.drivers import run_folder, serve
from grm_ray.drivers.checks import check as checks
from grm_ray.drivers.run_folder import claim, open_run


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_HELD", {})
    monkeypatch.delenv(serve.TOKEN_VARIABLE, raising=False)
    return ServeJob(name="mine", runs=str(tmp_path / "runs"), models={"one": "none"})


def test_a_folder_that_another_process_works_in_is_refused(config):
    holds = "import sys\nfrom pathlib import Path\nfrom grm_ray.drivers.run_folder import hold\n"
    holds += "hold(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", holds, f"{config.runs}/mine"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match="runs/mine: another process is using it"):
        claim(config)
    other.communicate()  # it ends, and so lets go
    claim(config)


def test_a_place_for_runs_is_looked_at_and_left_as_it_is(config, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "check_job", lambda *_: "a plan")
    assert checks.check(config) == "a plan"
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for runs in (tmp_path / "file", tmp_path / "file" / "in" / "it", "/proc/x"):
        wrong = config.model_copy(update={"runs": str(runs)})
        with pytest.raises(ConfigError, match=f"runs: {runs} cannot be written to .*; name"):
            checks.check(wrong)
        assert checks.check(wrong, [], elsewhere=True) == "a plan"


def test_an_earlier_run_of_the_same_name_is_kept_aside(config):
    for _ in range(3):
        claim(config)
        folder = open_run(config, resume=False)
    assert sorted(f.name for f in folder.parent.glob("mine*")) == ["mine", "mine.1", "mine.2"]


def test_a_service_begins_again_in_its_folder_with_its_token(config):
    tokens = []
    for _ in range(2):
        folder = open_run(config, resume=serve._was_here(config))
        tokens.append(serve._token(folder))
    assert len(set(tokens)) == 1 and len(tokens[0]) >= 32
    assert (folder / serve.TOKEN_FILE).stat().st_mode & 0o777 == 0o600
    assert not list(folder.parent.glob("mine.*"))
