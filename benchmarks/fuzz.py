"""Ten thousand damaged inputs: configs, data files, requests, run folders, model folders.

Each must be used or refused in one clear message: no traceback, no hang, no dead process. A case is
named by seed, kind and number, and can be tried again alone:
python benchmarks/fuzz.py --seed 0 --kind config --case 17
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import json
import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from machine import ROOT, finish

sys.path.insert(0, str(ROOT))

from tests.fuzzing.harness import outcome
from tests.fuzzing.kinds import CASES, kind_of

SECONDS = 30  # of work on one case
PATIENCE = 600  # of any kind; then the process ends, should the case only wait or not let go
SHARE = 1300  # cases of one process, which lays out its material first
MEMORY = 16 << 30  # of address space


def work(kind: str, seed: int, cases: range, seconds: float, log: str) -> None:
    """Try `cases` one after another; a line before and one after each, should this process die."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    logging.disable(logging.WARNING)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as folder, Path(log).open("a", encoding="utf-8") as told:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
            made = kind_of(kind, Path(folder))
        for case in cases:
            told.write(json.dumps({"begun": case}) + "\n")
            told.flush()
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            found, why = outcome(made, kind, seed, case, seconds)
            faulthandler.cancel_dump_traceback_later()
            told.write(json.dumps({"case": case, "outcome": found, "why": why}) + "\n")
            told.flush()


def share(kind: str, seed: int, cases: range, seconds: float) -> dict[int, tuple[str, str]]:
    """case -> (outcome, why); a case that ends the process counts as a crash, and others go on."""
    found: dict[int, tuple[str, str]] = {}
    spawn = multiprocessing.get_context("spawn")
    left = cases
    while left:
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as log:
            process = spawn.Process(target=work, args=(kind, seed, left, seconds, log.name))
            process.start()
            process.join()
            lines = [json.loads(line) for line in log]
        found |= {row["case"]: (row["outcome"], row["why"]) for row in lines if "case" in row}
        begun = [row["begun"] for row in lines if "begun" in row]
        if process.exitcode == 0:
            break
        if not begun:
            sys.exit(f"{kind}: the process died before its first case")
        found.setdefault(begun[-1], ("crash", f"the process ended with {process.exitcode}"))
        left = range(begun[-1] + 1, cases.stop)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=sorted(CASES), help="this one alone")
    parser.add_argument("--case", type=int, help="this one alone, of --kind")
    parser.add_argument("--cases", type=int, help="of each kind, in place of the usual numbers")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of work on one case")
    parser.add_argument(
        "--beside", type=int, default=len(os.sched_getaffinity(0)), help="processes at once"
    )
    given = parser.parse_args()
    if given.case is not None and given.kind is None:
        parser.error("--case is a number of one --kind")
    began, counts, failures = time.monotonic(), {}, []
    tasks = []
    for kind in [given.kind] if given.kind else sorted(CASES):
        counts[kind] = collections.Counter()
        cases = range(given.cases or CASES[kind])
        if given.case is not None:
            cases = range(given.case, given.case + 1)
        tasks += [(kind, cases[at : at + SHARE]) for at in range(0, len(cases), SHARE)]
    beside = ThreadPoolExecutor(given.beside)
    shares = beside.map(lambda task: share(task[0], given.seed, task[1], given.seconds), tasks)
    for (kind, cases), found in zip(tasks, shares, strict=True):
        counts[kind].update(what for what, _ in found.values())
        for case, (what, why) in found.items():
            if why:
                failures.append({"kind": kind, "case": case, "outcome": what})
                print(f"{what}: --seed {given.seed} --kind {kind} --case {case}\n{why}\n")
        print(f"{kind} to {cases.stop}: {dict(counts[kind])}", flush=True)
    if given.kind is None and given.cases is None:
        finish(
            {
                "name": "fuzz",
                "seed": given.seed,
                "cases": sum(sum(found.values()) for found in counts.values()),
                "by_kind": counts,
                "failures": failures,
                "minutes": round((time.monotonic() - began) / 60, 1),
            }
        )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
