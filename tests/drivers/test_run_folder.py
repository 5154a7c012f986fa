"""A run's folder belongs to one process at a time, and to one job."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from grm_ray.config.errors import ConfigError, NotWritten
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


@pytest.mark.parametrize("damaged", ["", "job: [serve\n", "- a list\n", "\0"])
def test_a_service_whose_config_is_damaged_has_its_folder_and_its_token(config, damaged):
    folder = open_run(config, resume=False)
    (folder / "config.yaml").write_text(damaged)
    with pytest.raises(ConfigError, match="mine/config.yaml does not say whose folder this is"):
        serve._was_here(config)
    token = serve._token(folder)
    assert serve._token(open_run(config, resume=serve._was_here(config))) == token
    assert yaml.safe_load((folder / "config.yaml").read_text())["job"] == "serve"


def test_the_folder_of_another_job_is_refused_with_a_token_in_it_too(config):
    folder = open_run(config, resume=False)
    (folder / "token").write_text("a" * 32)
    (folder / "config.yaml").write_text("job: rm\n")
    with pytest.raises(ConfigError, match=r"mine is the folder of a run \(rm\); choose"):
        serve._was_here(config)


def test_a_config_that_cannot_be_written_costs_none_that_is_there(config, monkeypatch):
    folder = open_run(config, resume=False)
    before = (folder / "config.yaml").read_text()

    def half(path, text, **_):
        path.open("w").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(NotWritten, match="mine/config.yaml could not be written .No space left"):
        open_run(config, resume=True)
    assert (folder / "config.yaml").read_text() == before
