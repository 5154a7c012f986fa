"""`cluster/slurm.sbatch` on a real Ray of two nodes, with Slurm's commands as local shells."""

import json
import os
import secrets
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "cluster" / "slurm.sbatch"
MARK = "GRM_RAY_TEST_SLURM"
JOB = 4242
# Runs the command as often as it has tasks, here. A SIGTERM ends each task; Slurm's own srun then
# kills every process of the step.
SRUN = """
    #!/usr/bin/env bash
    tasks=1 pids=()
    while [[ $1 == --* ]]; do
      [[ $1 == --ntasks=* ]] && tasks=${1#*=}
      shift
    done
    for ((i = 0; i < tasks; i++)); do
      SLURM_CPUS_ON_NODE=1 "$@" &
      pids+=($!)
    done
    trap 'asked=1; kill -TERM "${pids[@]}"' TERM
    while true; do
      asked= worst=0
      for pid in "${pids[@]}"; do
        code=0
        wait "$pid" || code=$?
        ((code > worst)) && worst=$code
      done
      [[ -n $asked ]] || exit "$worst"
    done
"""
SCONTROL = """
    #!/usr/bin/env bash
    [[ $* == "show hostnames two" ]] && printf 'localhost\\nlocalhost\\n'
"""
# What runs on the cluster: says what it found, then waits for the signal.
COMMAND = """
    import json, os, signal, sys, time, urllib.error, urllib.request
    import psutil, ray
    ray.init(logging_level="ERROR", log_to_driver=False)
    token = os.environ["RAY_AUTH_TOKEN_PATH"]
    try:
        status = urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/api/jobs/").status
    except urllib.error.HTTPError as error:
        status = error.code
    listening = psutil.net_connections("tcp")
    found = {
        "nodes": sum(node["Alive"] for node in ray.nodes()),
        "cpus": ray.cluster_resources()["CPU"],
        "file": oct(os.stat(token).st_mode & 0o777),
        "folder": oct(os.stat(os.path.dirname(token)).st_mode & 0o777),
        "token": open(token).read(),
        "in environment": "RAY_AUTH_TOKEN" in os.environ,
        "dashboard without token": status,
        "dashboard at": sorted(
            {c.laddr.ip for c in listening if c.laddr.port == int(sys.argv[1]) and not c.raddr}
        ),
    }
    open(sys.argv[2] + ".part", "w").write(json.dumps(found))
    os.rename(sys.argv[2] + ".part", sys.argv[2])
    def end(*_):
        sys.exit(7)
    signal.signal(signal.SIGTERM, end)
    while True:
        time.sleep(0.1)
"""


def write(path: Path, text: str) -> None:
    path.write_text(textwrap.dedent(text).lstrip())
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def checkout(tmp_path):
    """A folder to submit from, with this environment's programs, and Slurm's beside it."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "ray"):
        write(programs / name, f'#!/bin/sh\nexec "{Path(sys.executable).parent / name}" "$@"\n')
    slurm = tmp_path / "slurm"
    slurm.mkdir()
    write(slurm / "srun", SRUN)
    write(slurm / "scontrol", SCONTROL)
    return tmp_path


def submit(checkout, *command, mark="", **more):
    environment = {
        **os.environ,
        "PATH": f"{checkout / 'slurm'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SLURM_SUBMIT_DIR": str(checkout),
        "SLURM_JOB_ID": str(JOB),
        "SLURM_JOB_NODELIST": "two",
        MARK: mark,
    }
    return subprocess.Popen(
        ["bash", str(SCRIPT), *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **more,
    )


def marked(mark):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_command_runs_on_all_nodes_and_everything_ends_with_it(checkout):
    code = checkout / "command.py"
    write(code, COMMAND)
    said, dashboard, mark = checkout / "said", 8400 + JOB % 1000, secrets.token_hex(8)
    process = submit(checkout, "python", str(code), str(dashboard), str(said), mark=mark)
    try:
        until = time.monotonic() + 400
        while not said.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.5)
        assert said.exists(), (process.kill(), process.communicate()[0])[1]
        process.send_signal(signal.SIGTERM)  # to the script alone, as Slurm does before the end
        output, _ = process.communicate(timeout=120)
        left = marked(mark)
    finally:
        for one in marked(mark):
            one.kill()
    found = json.loads(said.read_text())
    token = found.pop("token")
    assert found == {
        "nodes": 2,
        "cpus": 2.0,
        "file": "0o600",
        "folder": "0o700",
        "in environment": False,
        "dashboard without token": 401,
        "dashboard at": ["127.0.0.1"],
    }
    assert len(token) == 64 and token not in output
    assert process.returncode == 7, output
    assert f"dashboard: ssh -L 8265:127.0.0.1:{dashboard} localhost" in output
    assert not left
    assert list((checkout / "runs").iterdir()) == []  # the token is gone


def test_what_cannot_run_is_said_before_anything_starts(checkout):
    process = submit(checkout)
    assert "name a command" in process.communicate(timeout=30)[0] and process.returncode == 2
    (checkout / ".venv" / "bin" / "ray").unlink()
    process = submit(checkout, "true")
    assert "no .venv/bin/ray" in process.communicate(timeout=30)[0] and process.returncode == 2
    assert not (checkout / "runs").exists()
