"""A job for the tests of `subjobs`: it does what its config's `name` says."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

config = Path(sys.argv[sys.argv.index("--config") + 1])
name = yaml.safe_load(config.read_text())["name"]
if name == "refused":
    print("reading\nerror: data file x.jsonl does not exist\nand neither does y.jsonl")
    sys.exit(2)
if name.startswith("broken"):
    print("error: no such thing as this")
    sys.exit(1)
if name.startswith("meets-"):
    config.with_suffix(".here").touch()
    deadline = time.monotonic() + 60
    while len(list(config.parent.glob("meets-*.here"))) < 2:
        if time.monotonic() > deadline:
            sys.exit(1)
        time.sleep(0.05)
if name == "slow":
    time.sleep(2)
if name == "works":
    from grm_ray import command
    from grm_ray.config.schema import Job
    from grm_ray.drivers.run_folder import hold

    def works(job: Job, resume: bool) -> None:
        hold(Path(job.runs) / job.name)
        config.with_suffix(".ready").touch()
        time.sleep(0 if resume else 300)

    command.main(Job, works, "a job as any other")
if name == "waits":
    heard = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: heard.append(signal.Signals(number).name))
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    config.with_suffix(".ready").touch()
    while not heard:
        time.sleep(0.05)
    time.sleep(1)  # what else may come
    worker.kill()
    worker.wait()
    config.with_suffix(".heard").write_text(" ".join(heard))
    sys.exit(1)
