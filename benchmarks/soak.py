"""A long PPO run on a tiny model: the memory of the driver, its workers and the store is flat.

Once a second the job's processes are looked at (anonymous memory, `Pss_Anon`), and what the object
store holds as Ray exports it. What counts is the mean over the last 100 steps against the mean over
steps 100 to 200: by then caches, pools and allocators have their size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil
import yaml
from machine import ROOT, finish

sys.path.insert(0, str(ROOT))

from benchmarks.parts.memory import rollup
from benchmarks.parts.tiny_jobs import config, lines, prepare, start
from tests.conftest import descendants
from tests.end_to_end.exporter import scrape

WORKERS = ("Learner", "RolloutWorker", "Scorer")
MIB = 2**20
STORE = "object store"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        seen, seconds = soak(Path(made), arguments.steps)
    detail = {}
    for name, series in seen.items():
        early = [size for step, size in series if 100 <= step < 200]
        late = [size for step, size in series if step >= arguments.steps - 100]
        detail[name] = {
            "mib_steps_100_to_200": round(statistics.mean(early) / MIB, 2),
            "mib_last_100_steps": round(statistics.mean(late) / MIB, 2),
            "mib_most": round(max(size for _, size in series) / MIB, 2),
            "ratio": round(statistics.mean(late) / max(1.0, statistics.mean(early)), 3),
            "looks": [len(early), len(late)],
        }
        print(name, json.dumps(detail[name]), flush=True)
    finish(
        {
            "name": "soak",
            "steps": arguments.steps,
            "seconds": round(seconds),
            "ratio": detail["driver"]["ratio"],
            "unit": "the driver's memory in the last 100 steps over that of steps 100 to 200",
            "detail": detail,
        }
    )


def soak(folder: Path, steps: int) -> tuple[dict[str, list[tuple[int, float]]], float]:
    """Of each process: step and bytes at every look; and the seconds of the run."""
    prepare(folder)
    asked = config("ppo", folder, "soak", 1)
    asked["ppo"]["steps"] = steps
    asked["evaluation"]["every"] = asked["checkpoint"]["every"] = 25
    path, run = folder / "soak.yaml", folder / "runs" / "soak"
    path.write_text(yaml.safe_dump(asked))
    began = time.monotonic()
    process = start("ppo", path, folder / "soak.log")
    seen: dict[str, list[tuple[int, float]]] = defaultdict(list)
    while process.poll() is None:
        time.sleep(1)
        step = max((row["step"] for row in lines(run / "metrics.jsonl")), default=0)
        try:
            seen["driver"].append((step, rollup(process.pid)["anonymous"]))
            for role in WORKERS:
                for one in descendants(process, f"ray::{role}"):
                    seen[f"{role} {one.pid}"].append((step, rollup(one.pid)["anonymous"]))
            held = scrape(process, "ray_object_store_memory").get("ray_object_store_memory")
        except (psutil.Error, OSError, IndexError):
            continue  # it has just ended
        if held:
            seen[STORE].append((step, sum(one["value"] for one in held)))
    if process.returncode:
        sys.exit(f"the run failed:\n{(folder / 'soak.log').read_text()[-3000:]}")
    return dict(seen), time.monotonic() - began


if __name__ == "__main__":
    main()
