"""A local session leaves nothing behind, whoever else was told to end."""

import os
import signal
import subprocess
import sys
import time

import psutil

from tests.conftest import ROOT

JOB = """
import ray

from grm_ray import command
from grm_ray.config.serve import ServeJob
from grm_ray.runtime import cluster

def run(config, resume):
    with cluster.session([]):
        print("started", flush=True)
        while True:
            ray.get(ray.put(0))

command.main(ServeJob, run, "")
"""


def test_a_sigterm_to_the_whole_group_ends_it_at_once_and_says_how_to_go_on(tmp_path):
    (tmp_path / "job.yaml").write_text(f"name: s\nruns: {tmp_path}\nmodels: {{a: none}}\n")
    process = subprocess.Popen(
        [sys.executable, "-c", JOB, "--config", str(tmp_path / "job.yaml")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout.readline() == "started\n"
    started = psutil.Process(process.pid).children(recursive=True)
    since = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=90)
    assert process.returncode == 1
    assert said == "\ninterrupted; there is no checkpoint to continue from\n"
    # Ray waits a minute for its own processes when they were told to end as well.
    assert time.monotonic() - since < 45
    assert not psutil.wait_procs(started, timeout=5)[1]
