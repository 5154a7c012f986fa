"""How far one driver goes: the real pools, ledger and loop over a cluster on paper.

Rollout workers and scorers grow together; answers have a long-tailed length; workers die. The table
shows what share of the time the learner works, against the schedule of peers in which generation,
scoring, evaluation and update wait for one another, and what the driver costs a row. Answers are
one update old at the most, and beside it two.
"""

from __future__ import annotations

import argparse
import math
import sys
import time

from machine import ROOT, finish

sys.path.insert(0, str(ROOT))

from benchmarks.parts.simulated_cluster import Speeds
from benchmarks.parts.simulated_run import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=4096, help="rollout workers")
    parser.add_argument("--steps", type=int, help="of each run; else 16, and 8 of the largest")
    parser.add_argument("--deaths-per-hour", type=float, default=0.05)
    arguments = parser.parse_args()
    run(1, 1, Speeds(), 1)  # what is imported late shall not count
    table = []
    engines = 1
    while engines <= arguments.most:
        since = time.perf_counter()
        # Where they are few, a death in one of them says too much.
        steps = arguments.steps or (16 if engines < 4096 else 8)
        scorers = max(1, engines // 8)
        # Nobody dies in the barriers' schedule, so nobody does where they are compared.
        found = run(engines, scorers, Speeds(), steps)
        staler = run(engines, scorers, Speeds(), steps, staleness=2)
        for each in (found, staler):
            each["ratio"] = each["learner_busy"] / each["learner_busy_barrier"]
        speeds = Speeds(deaths_per_hour=arguments.deaths_per_hour)
        found["with_deaths"] = run(engines, scorers, speeds, steps)
        found["staleness_2"] = staler
        dying = found["with_deaths"]
        table.append(found)
        print(
            f"{engines:5d} engines {scorers:4d} scorers {found['rows']:7d} rows  "
            f"learner {found['learner_busy']:.2f} (barrier {found['learner_busy_barrier']:.2f}, "
            f"x {found['ratio']:.3f}; staleness 2: x {staler['ratio']:.2f})  "
            f"driver {found['driver_ms_per_row']:.3f} ms/row  "
            f"hedged {found['hedged']}  with {dying['deaths']} deaths: "
            f"learner {dying['learner_busy']:.2f}, retries {dying['retries']}  "
            f"({time.perf_counter() - since:.0f} s)",
            flush=True,
        )
        engines *= 4
    finish(
        {
            "name": "scale_simulation",
            "speeds": {key: x for key, x in vars(Speeds()).items() if x < math.inf},
            "deaths_per_hour": arguments.deaths_per_hour,
            "runs": table,
        }
    )


if __name__ == "__main__":
    main()
