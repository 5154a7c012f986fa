"""Steps with one scorer in four ten times slower than the others, against steps with four alike.

The real driver, engine, scorers and learner on a tiny model; the durations are made up, so that a
step has the proportions of a large one: generation and update take some seconds longer, and so does
every batch that is scored. What the slow scorer does not deliver in time another one does as well.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import ROOT, finish

sys.path.insert(0, str(ROOT))

from benchmarks.parts.slowed import run, slow_down
from benchmarks.parts.tiny_jobs import prepare


def measure(work: Path, name: str, steps: int) -> dict[str, Any]:
    """Seconds of the steps, and what the pool of scorers did."""
    rollout = {
        "prompts_per_step": 8,
        "samples_per_prompt": 2,
        "max_new_tokens": 4,
        "rows_per_batch": 2,
    }
    four = {"scorer": {"count": 4, "cpus": 0.1, "threads": 1}}
    seconds, rows = run(work, name, steps, rollout=rollout, workers=four)
    told = {key: rows[-1][f"scorer/{key}"] for key in ("hedged", "deaths")}
    return {"seconds": seconds, "median": statistics.median(seconds), **told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of generation and of update")
    parser.add_argument("--a-batch", type=float, default=0.4, help="seconds of scoring")
    parser.add_argument("--factor", type=float, default=10.0, help="of the slow scorer")
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for name, factor in (("alike", 1.0), ("one-slow", arguments.factor)):
            slow_down(arguments.seconds, arguments.a_batch, factor)
            found[name] = measure(Path(folder), name, arguments.steps)
    finish(
        {
            "name": "straggler",
            "seconds_of_generation_and_update": arguments.seconds,
            "seconds_a_batch": arguments.a_batch,
            "factor": arguments.factor,
            "ratio": round(found["one-slow"]["median"] / found["alike"]["median"], 2),
            "unit": "seconds a step",
            "detail": found,
        }
    )


if __name__ == "__main__":
    main()
