"""A job of ours in a process of its own: its memory is freed, and a crash is its own."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from grm_ray.config.judging import EvaluateJob, JudgeWorkers, Scoring
from grm_ray.config.load import ConfigError, dump
from grm_ray.config.reward_model import RewardModelJob
from grm_ray.config.schema import Job, Source
from grm_ray.drivers.evaluate import RESULT
from grm_ray.drivers.reward_model import DONE
from grm_ray.drivers.run_folder import hold
from grm_ray.runtime.snapshot import Snapshots


def open_folder(folder: Path) -> None:
    """Make `folder` where it is missing, and keep it for this process.

    Raises:
        ConfigError: another process works in it, or it cannot be written.
    """
    try:
        hold(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"folder {folder}: {error.strerror or error}") from None


def train(job: RewardModelJob, file: Path) -> Path:
    """Train, or go on after the last checkpoint; the folder of the model, made at most once.

    What a start without a checkpoint has left is removed.
    """
    folder = Path(job.runs) / job.name
    if not (folder / DONE).is_file():
        started = Snapshots(folder / "checkpoints", 1).latest() is not None
        call("grm_ray.rm", job, file, started)
    _clear(folder)
    return folder / "model"


def judge(
    model: Path,
    sets: dict[str, Source],
    scoring: Scoring,
    workers: JudgeWorkers,
    folder: Path,
    like: Job,
) -> Path:
    """Judge one saved model, or go on; the folder `folder/judged` with its result and scores.

    Args:
        like: the job whose seed and patience count.
    """
    judged = folder / "judged"
    if not (judged / RESULT).is_file():
        job = EvaluateJob(
            name=judged.name,
            runs=str(folder),
            seed=like.seed,
            timeout_s=like.timeout_s,
            tracking=[],
            models={"model": str(model)},
            sets=sets,
            scoring=scoring,
            workers=workers,
        )
        started = (judged / "config.yaml").is_file()
        call("grm_ray.evaluate", job, folder / "judge.yaml", started)
    _clear(judged)
    return judged


def call(module: str, job: Job, file: Path, resume: bool) -> None:
    """Run `python -m module` on `job`, written to `file`; what it says goes to a log beside it.

    Ctrl-C, SIGTERM and a closed terminal end the job before they end this process.

    Raises:
        ConfigError: the job found something wrong in config or data, with what it said.
        RuntimeError: the job failed, with the end of what it said.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(dump(job), encoding="utf-8")
    log = file.with_suffix(f".{module.rpartition('.')[2]}.log")
    command: list[Any] = [sys.executable, "-m", module, "--config", file]
    with log.open("w", encoding="utf-8") as out:
        code = _wait(command + (["--resume"] if resume else []), out)
    if not code:
        return
    said = log.read_text(encoding="utf-8", errors="replace")
    reason = f"\n{said}".rpartition("\nerror: ")[2].strip()
    if code == 2 and reason:
        raise ConfigError(f"{reason} ({log})")
    raise RuntimeError(f"{module} {file.name} failed (exit {code}, {log}):\n{said[-1500:]}")


def _clear(folder: Path) -> None:
    """Remove what earlier starts left, which a job that begins anew puts aside."""
    for old in folder.parent.glob(f"{folder.name}.[0-9]*"):
        if old.is_dir():
            shutil.rmtree(old)


def _wait(command: list[Any], out: Any) -> int:
    """The exit code of `command`, which has a session of its own: Ctrl-C reaches it through us, and
    once."""
    with _handled(signal.SIGHUP, _hung_up):
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait()
        except BaseException:
            # A second Ctrl-C would leave the job's workers behind.
            with (
                _handled(signal.SIGINT, signal.SIG_IGN),
                _handled(signal.SIGTERM, signal.SIG_IGN),
                _handled(signal.SIGHUP, signal.SIG_IGN),
            ):
                process.terminate()  # the job ends its own workers
                process.wait()
            raise


@contextlib.contextmanager
def _handled(number: signal.Signals, handler: Any) -> Iterator[None]:
    """`handler` for a signal, unless it is ignored (`nohup`)."""
    before = signal.getsignal(number)
    if before is not signal.SIG_IGN:
        signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _hung_up(*_: Any) -> NoReturn:
    raise KeyboardInterrupt
