"""`python -m grm_ray.report RUN [RUN...]`: write each run's report.html anew, and say where it is.

Exit codes: 0 done; 2 a folder is no run (one line says which); 1 anything else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from grm_ray.reporting.evaluation import write_evaluation
from grm_ray.reporting.page import write_report
from grm_ray.reporting.run import is_run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job with `arguments` (those of the command line by default); the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m grm_ray.report",
        description="Write report.html, a page of curves, for finished, running or killed runs.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a folder runs/<name>")
    runs = parser.parse_args(arguments).runs
    for run in runs:
        if not run.is_dir():
            print(f"{run}: no such folder; a run lives in runs/<name>", file=sys.stderr)
            return 2
        if not is_run(run) and not _result(run):
            print(f"{run}: no run (it has neither config.yaml nor metrics.jsonl)", file=sys.stderr)
            return 2
    for run in runs:
        print(_write(run))
    return 0


def _write(run: Path) -> Path:
    if (result := _result(run)) is not None:
        return write_evaluation(json.loads(result.read_text(encoding="utf-8")), run)
    return write_report(run)


def _result(run: Path) -> Path | None:
    """The figures of an evaluation or a study."""
    found = [run / name for name in ("evaluation.json", "study.json") if (run / name).is_file()]
    return found[0] if found else None


if __name__ == "__main__":
    sys.exit(main())
