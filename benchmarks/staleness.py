"""Steps with generation one update ahead against steps in turn, on work of equal halves.

The real driver, engine, scorers and learner on a tiny model, so that their own work is small; only
the durations are made up: every share of generation and every update takes some seconds longer, in
its own worker. In turn a step then costs both, one ahead it costs one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from machine import ROOT, finish

sys.path.insert(0, str(ROOT))

from benchmarks.parts.slowed import run, slow_down
from benchmarks.parts.tiny_jobs import prepare


def seconds_a_step(work: Path, staleness: int, steps: int) -> list[float]:
    rollout = {
        "prompts_per_step": 4,
        "samples_per_prompt": 2,
        "max_new_tokens": 4,
        "staleness": staleness,
    }
    seconds, rows = run(work, f"staleness-{staleness}", steps, rollout=rollout)
    assert max(row["staleness"] for row in rows) == staleness
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="added to either half")
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    slow_down(arguments.seconds)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        found = {n: seconds_a_step(Path(folder), n, arguments.steps) for n in (0, 1)}
    in_turn, ahead = (statistics.median(found[n]) for n in (0, 1))
    finish(
        {
            "name": "staleness",
            "added_seconds": arguments.seconds,
            "in_turn": round(in_turn, 2),
            "one_ahead": round(ahead, 2),
            "ratio": round(in_turn / ahead, 2),
            "unit": "seconds a step",
            "detail": found,
        }
    )


if __name__ == "__main__":
    main()
