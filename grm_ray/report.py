"""`python -m grm_ray.report RUN [RUN...]`: a run's page, or one page of PPO runs side by side.

One run's page goes into its folder. Several runs, a folder of runs or a pattern make one page,
`report.html` in the current folder, with rewards over distance and what sets the runs apart.

Exit codes: 0 done; 2 a folder is no run, or the page has no place (one line says which); 1 anything
else.
"""

from __future__ import annotations

import argparse
import glob
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from grm_ray.config.document import legible
from grm_ray.config.errors import NotWritten
from grm_ray.reporting import best_of_n, evaluation, overoptimization_study
from grm_ray.reporting.page import write_report
from grm_ray.reporting.run import is_run, job_of, read_run
from grm_ray.reporting.side_by_side import write_side_by_side

_PAGE = Path("report.html")
# Figures that a job other than rm and ppo ends with, what it is called, and who draws its page.
_KINDS = {
    evaluation.RESULT: ("an evaluation", evaluation.write_evaluation),
    "study.json": ("a study", evaluation.write_evaluation),
    best_of_n.RESULT: ("best of n", best_of_n.write_best_of_n),
    overoptimization_study.RESULT: (
        "an over-optimisation study",
        overoptimization_study.write_overoptimization,
    ),
}
# Jobs whose pages are not drawn from metrics: without figures there is nothing to draw yet.
_OTHERS = ("evaluate", "study", "bon", "overoptimization", "curate", "serve")
# What figures that are not there, or not what they were, end a page in.
_DAMAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class _Wrong(Exception):
    """One line that says what to change."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job with `arguments` (those of the command line by default); the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m grm_ray.report",
        description="Write report.html, a page of curves, for finished, running or killed runs; "
        "several PPO runs go side by side on one page.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a folder runs/<name>, a folder of runs, a pattern"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where to write the page; default: the folder of the one run, or report.html here",
    )
    asked = parser.parse_args(arguments)
    try:
        print(_write(_folders(asked.runs), asked.output))
    except _Wrong as wrong:
        print(f"error: {legible(str(wrong))}", file=sys.stderr)
        return 2
    except NotWritten as error:
        print(legible(f"error: {error}"), file=sys.stderr)
        return 2
    except OSError as error:  # a path that cannot be, a folder that may not be read or written
        print(legible(f"error: {error.strerror}: {error.filename}"), file=sys.stderr)
        return 2
    return 0


def _write(folders: list[Path], output: Path | None) -> Path:
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        reason = "a folder, not a file" if output.is_dir() else "no such folder to write to"
        raise _Wrong(f"--output {output}: {reason}")
    if len(folders) == 1:
        return _one(folders[0], output)
    runs, notes = [], []
    for folder in folders:
        result, job = _result(folder), job_of(folder)
        run = None if result or job in _OTHERS else read_run(folder)
        if run is not None and run.job == "ppo":
            runs.append(run)
            continue
        other = _KINDS[result.name][0] if result else f"a folder of `{job}`"
        kind = other if run is None else "reward model training"
        notes.append(f"{folder.resolve().name} is left out: {kind}, not a PPO run.")
    if not runs:
        raise _Wrong(
            "none of these is a PPO run, and only PPO runs can be compared side by side; give one "
            "folder for its own page"
        )
    if output is None and is_run(Path()):
        raise _Wrong(f"{_PAGE} here is the page of the run in this folder: give --output FILE")
    return write_side_by_side(runs, output or _PAGE, notes)


def _one(folder: Path, output: Path | None) -> Path:
    result = _result(folder)
    if result is None:
        if (job := job_of(folder)) in _OTHERS:
            raise _Wrong(f"{folder}: a folder of `{job}` without results; there is nothing to draw")
        return write_report(folder, output)
    kind, write = _KINDS[result.name]
    if output is not None:
        raise _Wrong(f"--output: the page of {kind} goes into its folder")
    try:
        return write(json.loads(result.read_text(encoding="utf-8")), folder)
    except _DAMAGE as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise _Wrong(f"{result}: damaged, or of another version of grm_ray ({said})") from None


def _folders(given: Sequence[str]) -> list[Path]:
    """The run folders that are meant, each once."""
    found: dict[Path, Path] = {}
    for text in given:
        for folder in _meant(text):
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _meant(text: str) -> list[Path]:
    """What one argument stands for: a run, the runs in a folder, those that a pattern matches."""
    path = Path(text)
    if not path.is_dir():
        matched = [found for name in sorted(glob.glob(text)) if _holds(found := Path(name))]
        if not matched:
            raise _Wrong(f"{path}: no such folder; a run lives in runs/<name>")
        return matched
    if _holds(path):
        return [path]
    inside = [folder for folder in sorted(path.iterdir()) if _holds(folder)]
    if not inside:
        raise _Wrong(
            f"{path}: neither a run (it has no config.yaml and no metrics.jsonl) nor a folder "
            "of runs"
        )
    return inside


def _holds(folder: Path) -> bool:
    return folder.is_dir() and (is_run(folder) or _result(folder) is not None)


def _result(run: Path) -> Path | None:
    """The figures of an evaluation, a study or a best-of-n run."""
    found = [run / name for name in _KINDS if (run / name).is_file()]
    return found[0] if found else None


if __name__ == "__main__":
    sys.exit(main())
