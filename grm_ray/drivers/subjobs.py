"""A job of ours in a process of its own: its memory is freed, and a crash is its own."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from grm_ray.config.errors import ConfigError
from grm_ray.config.judging import EvaluateJob, JudgeScoring, JudgeWorkers
from grm_ray.config.load import dump
from grm_ray.config.reward_model import RewardModelJob
from grm_ray.config.schema import Job, Source
from grm_ray.drivers.run_folder import DONE, held, hold
from grm_ray.reporting.document import put
from grm_ray.reporting.evaluation import RESULT
from grm_ray.runtime import parent
from grm_ray.runtime.disk import check_writable, writing
from grm_ray.runtime.snapshot import Snapshots

_LOOK_S = 0.1  # how long each running job is waited for in turn
# A job whose starter was killed hears of it and ends its workers; a restart waits so long for it.
_OUTLIVES_S = 60.0
_MOST_FAILED = 3  # so many say that it is not the jobs


def open_folder(folder: Path) -> None:
    """Make `folder` where it is missing, and keep it for this process.

    Raises:
        ConfigError: another process is using it, it cannot be written, or its disk is full.
    """
    try:
        hold(folder)
        check_writable(folder)
    except OSError as error:
        raise ConfigError(f"folder {folder}: {error.strerror or error}") from None


def train(job: RewardModelJob, file: Path) -> Path:
    """Train, or go on after the last checkpoint; the folder of the model, made at most once.

    What a start without a checkpoint has left is removed.
    """
    folder = Path(job.runs) / job.name
    if not (folder / DONE).is_file():
        started = bool(Snapshots(folder / "checkpoints", 1).all())
        call("grm_ray.rm", job, file, started)
    clear(folder)
    return folder / "model"


def judge(
    model: Path,
    sets: dict[str, Source],
    scoring: JudgeScoring,
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
    clear(judged)
    return judged


@dataclass(frozen=True)
class Call:
    """`python -m module` on `job`, which is written to `file`; what it says goes beside it."""

    module: str
    job: Job
    file: Path
    resume: bool

    @property
    def log(self) -> Path:
        return self.file.with_suffix(f".{self.module.rpartition('.')[2]}.log")


def call(module: str, job: Job, file: Path, resume: bool) -> None:
    """Run one `Call` to its end; raises as `calls` does."""
    for _ in calls([Call(module, job, file, resume)]):
        pass


def calls(wanted: Iterable[Call], at_once: int = 1) -> Iterator[Call]:
    """Run each, at most `at_once` beside one another; gives each when it has ended well.

    One that fails keeps no other from its turn. After something wrong in config or data, or the
    third failure, no other is begun, and those under way go on to their end. Ctrl-C, SIGTERM and a
    closed terminal end the jobs before they end this process.

    Raises:
        ConfigError: a job found something wrong in config or data, with what it said.
        RuntimeError: jobs failed, with the end of what each said.
    """
    waiting = iter(wanted)
    running: list[tuple[Call, subprocess.Popen]] = []
    failed: list[Exception] = []
    with _handled(signal.SIGHUP, _hung_up):
        try:
            more = True
            while more or running:
                while more and len(running) < at_once:
                    following = next(waiting, None)
                    if more := following is not None:
                        running.append((following, _begin(following)))
                ended = [pair for pair in running if _ended(pair[1])]
                running = [pair for pair in running if pair not in ended]
                for job, process in ended:
                    if not process.returncode:
                        yield job
                        continue
                    failed.append(_failure(job, process.returncode))
                    if isinstance(failed[-1], ConfigError) or len(failed) == _MOST_FAILED:
                        more = False
                    if more:
                        print(f"{job.file.name} failed, the others go on: {job.log}", flush=True)
        except BaseException:
            # A second Ctrl-C would leave the jobs' workers behind.
            with (
                _handled(signal.SIGINT, signal.SIG_IGN),
                _handled(signal.SIGTERM, signal.SIG_IGN),
                _handled(signal.SIGHUP, signal.SIG_IGN),
            ):
                for _, process in running:
                    process.terminate()  # the job ends its own workers
                for _, process in running:
                    process.wait()
            raise
    wrong = [error for error in failed if isinstance(error, ConfigError)]
    if wrong or len(failed) == 1:
        raise (wrong or failed)[0]
    if failed:
        raise RuntimeError("\n".join([f"{len(failed)} jobs failed", *map(str, failed)]))


def _begin(call: Call) -> subprocess.Popen:
    """The job in a session of its own: Ctrl-C reaches it through us, and once.

    Where another process is at its folder and stays, the job itself says so, below what that one
    has written to the log.
    """
    with writing(call.file):
        call.file.parent.mkdir(parents=True, exist_ok=True)
    put(call.file, dump(call.job))
    command: list[Any] = [sys.executable, "-m", call.module, "--config", call.file]
    if _free(call.job):
        call.log.unlink(missing_ok=True)
    with call.log.open("a", encoding="utf-8") as out:
        return subprocess.Popen(
            command + (["--resume"] if call.resume else []),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=parent.named(),
        )


def _free(job: Job) -> bool:
    """Whether nobody is at the job's folder, once a job that was left there had time to end."""
    folder = Path(job.runs).expanduser() / job.name
    if not held(folder):
        return True
    print(
        f"{folder}: another process is using it; waiting {_OUTLIVES_S:.0f} s at most for its end",
        flush=True,
    )
    deadline = time.monotonic() + _OUTLIVES_S
    while time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        if not held(folder):
            return True
    return False


def _ended(process: subprocess.Popen) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_LOOK_S)
    return process.returncode is not None


def _failure(call: Call, code: int) -> Exception:
    said = call.log.read_text(encoding="utf-8", errors="replace")
    reason = f"\n{said}".rpartition("\nerror: ")[2].strip()
    if code == 2 and reason:
        return ConfigError(f"{reason} ({call.log})")
    return RuntimeError(
        f"{call.module} {call.file.name} failed (exit {code}, {call.log}):\n{said[-1500:]}"
    )


def clear(folder: Path) -> None:
    """Remove what earlier starts of a run left, which a job that begins anew puts aside."""
    for old in folder.parent.glob(f"{folder.name}.[0-9]*"):
        if old.is_dir():
            shutil.rmtree(old)


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
