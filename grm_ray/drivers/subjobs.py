"""A job of ours in a process of its own: its memory is freed, and a crash is its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from grm_ray.config.judging import EvaluateJob, JudgeWorkers, Scoring
from grm_ray.config.load import dump
from grm_ray.config.schema import Job, RewardModelJob, Source
from grm_ray.drivers.evaluate import RESULT


def train(job: RewardModelJob, file: Path) -> Path:
    """Train, or go on after the last checkpoint; the folder of the model, made at most once."""
    folder = Path(job.runs) / job.name
    if not (folder / "model").is_dir():
        started = any((folder / "checkpoints").glob("step-*"))
        call("grm_ray.rm", job, file, started)
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
        call("grm_ray.evaluate", job, folder / "judge.yaml", judged.is_dir())
    return judged


def call(module: str, job: Job, file: Path, resume: bool) -> None:
    """Run `python -m module` on `job`, written to `file`; what it says goes to a log beside it.

    Raises:
        RuntimeError: the job failed, with the end of what it said.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(dump(job), encoding="utf-8")
    log = file.with_suffix(f".{module.rpartition('.')[2]}.log")
    command: list[Any] = [sys.executable, "-m", module, "--config", file]
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            command + (["--resume"] if resume else []), stdout=out, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait()
        except BaseException:
            process.terminate()  # the job ends its own workers
            process.wait()
            raise
    if code:
        said = log.read_text(encoding="utf-8")[-1500:]
        raise RuntimeError(f"{module} {file.name} failed (exit {code}, {log}):\n{said}")
