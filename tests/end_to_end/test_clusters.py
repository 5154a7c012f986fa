"""On clusters that were there before the job: one that takes submissions, one of two nodes."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, finish, job, rows
from tests.end_to_end.conftest import ppo_config

RAY = str(Path(sys.executable).parent / "ray")
SMALL = {"steps": 2, "optimizer": {"learning_rate": 1.0e-3}}


# A head node asks for a token, which who talks to it must have, too.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]


@pytest.fixture
def start_node():
    """`start_node(*flags)`: a Ray node in a process of its own; all end with the test."""
    started = []

    def start(*flags):
        started.append(
            subprocess.Popen(
                [RAY, "start", "--block", "--disable-usage-stats", *flags],
                env={**os.environ, "PYTHONPATH": str(ROOT), **TOKEN},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        return started[-1]

    yield start
    for process in reversed(started):
        if process.poll() is not None:
            continue
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        for child in psutil.wait_procs(family, timeout=30)[1]:
            child.kill()


def wait_for(condition, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.5)
    return False


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except urllib.error.HTTPError as error:
        return error.code == 401  # it is there, and wants the token that Ray's own client sends
    except OSError:
        return False


@pytest.mark.timeout(1200)
def test_a_submitted_job_succeeds_with_a_report(
    start_node, tmp_path, tiny_model, tiny_data, reward_model
):
    gcs, dashboard = free_port(), free_port()
    start_node(
        "--head", "--num-cpus", "2", "--port", str(gcs), "--include-dashboard", "true",
        "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard),
    )  # fmt: skip
    url = f"http://127.0.0.1:{dashboard}"
    assert wait_for(lambda: answers(f"{url}/api/version"), 240)
    # More prompt tokens at once than vLLM takes in one step (2048).
    crowd = {
        "prompts_per_step": 40,
        "samples_per_prompt": 4,
        "max_new_tokens": 6,
        "rows_per_batch": 16,
        "engine": {"max_num_seqs": 256},
    }
    path = ppo_config(
        tmp_path, tiny_model, tiny_data, reward_model[0] / "model", ppo=SMALL, rollout=crowd
    )
    command = [
        "job", "submit", "--address", url, "--",
        sys.executable, "-m", "grm_ray.ppo", "--config", str(path),
    ]  # fmt: skip
    done = _ray(*command)
    assert done.returncode == 0 and "succeeded" in done.stdout, done.stdout + done.stderr
    listed = _ray("job", "list", "--address", url)
    assert "SUCCEEDED" in listed.stdout and "FAILED" not in listed.stdout, listed
    run = tmp_path / "runs" / "ppo"
    assert (run / "report.html").stat().st_size > 1000
    assert len(rows(run / "ledger.jsonl")) == 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_workers_spread_over_two_nodes(start_node, tmp_path, tiny_model, tiny_data, reward_model):
    """Each node has one CPU: no placement on one node would do."""
    here = ["--node-ip-address", "127.0.0.1"]
    address = f"127.0.0.1:{free_port()}"
    start_node("--head", "--num-cpus", "1", "--port", address.split(":")[1], *here,
               "--include-dashboard", "false")  # fmt: skip
    assert wait_for(lambda: _up(address), 180)
    start_node("--address", address, "--num-cpus", "1", *here)
    path = ppo_config(
        tmp_path, tiny_model, tiny_data, reward_model[0] / "model", ppo=SMALL,
        workers={"learner": {"cpus": 1.0}, "rollout": {"cpus": 0.5}, "scorer": {"cpus": 0.25}},
    )  # fmt: skip
    assert wait_for(lambda: _nodes(address) == 2, 180)
    output = finish(
        job("grm_ray.ppo", "--config", str(path), cwd=tmp_path, RAY_ADDRESS=address, **TOKEN)
    )
    assert "report: " in output, output
    run = tmp_path / "runs" / "ppo"
    metrics = rows(run / "metrics.jsonl")
    assert len(rows(run / "ledger.jsonl")) == 2
    assert all(m["engine_gap"] < 1e-4 for m in metrics if m["step"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_run_outlives_a_node_and_uses_the_one_that_comes_back(
    start_node, tmp_path, tiny_model, tiny_data, reward_model
):
    """Two CPUs of the three are on the node that stays; whatever is on the other one dies."""
    here = ["--node-ip-address", "127.0.0.1"]
    address = f"127.0.0.1:{free_port()}"
    start_node("--head", "--num-cpus", "2", "--port", address.split(":")[1], *here,
               "--include-dashboard", "false")  # fmt: skip
    assert wait_for(lambda: _up(address), 180)
    leaves = start_node("--address", address, "--num-cpus", "1", *here)
    assert wait_for(lambda: _nodes(address) == 2, 180)
    path = ppo_config(
        tmp_path, tiny_model, tiny_data, reward_model[0] / "model",
        ppo={"steps": 24, "optimizer": {"learning_rate": 1.0e-3}},
        checkpoint={"every": 2},
        workers={
            "learner": {"count": 1, "cpus": 1.0},
            "rollout": {"count": 2, "cpus": 0.5},
            "scorer": {"count": 4, "cpus": 0.25},
        },
    )  # fmt: skip
    process = job("grm_ray.ppo", "--config", str(path), cwd=tmp_path, RAY_ADDRESS=address, **TOKEN)
    run = tmp_path / "runs" / "ppo"
    assert wait_for(lambda: len(steps(run)) >= 3, 400)
    for child in [*psutil.Process(leaves.pid).children(recursive=True), leaves]:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    leaves.wait()
    time.sleep(10)
    start_node("--address", address, "--num-cpus", "1", *here)
    output = finish(process)
    assert process.returncode == 0 and "died" in output, output
    told = rows(run / "ledger.jsonl")
    assert [entry["step"] for entry in told] == list(range(1, 25))
    uids = [uid for entry in told for uid in entry["uids"]]
    assert len(uids) == len(set(uids)) == 24 * 15


def steps(run):
    """Lines of the ledger, the one left out that is being written."""
    file = run / "ledger.jsonl"
    return file.read_text().split("\n")[:-1] if file.exists() else []


def _ray(*arguments):
    return subprocess.run(
        [RAY, *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, **TOKEN},
    )


def _up(address):
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def _nodes(address):
    count = "import ray, sys; ray.init(sys.argv[1], logging_level='ERROR'); print(len(ray.nodes()))"
    done = subprocess.run(
        [sys.executable, "-c", count, address],
        capture_output=True,
        text=True,
        env={**os.environ, **TOKEN},
    )
    return int(done.stdout.split()[-1]) if done.returncode == 0 else 0
