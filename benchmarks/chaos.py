"""Seeded runs in which random processes of random roles are killed: nothing may be lost.

Reward-model training, PPO and best-of-n on the real stack with a tiny model. A seed draws which
roles die, one process or every one of the role, and how long after the run's first step; the job's
own process is one of the roles: it is started again with `--resume`. After each run: every row is
there exactly once, versions only grow, and every step has its line of metrics.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import yaml
from machine import ROOT, finish

sys.path.insert(0, str(ROOT))

from benchmarks.parts.tiny_jobs import (
    PROMPTS,
    ROWS,
    SAMPLES,
    STEPS,
    config,
    lines,
    prepare,
    start,
)
from tests.conftest import descendants

DRIVER = "the job itself"
EVERY = "every "  # all of a role at the same moment
ROLES = {
    "rm": ("ray::RewardTrainer", EVERY + "ray::RewardTrainer", DRIVER),
    "ppo": (
        "ray::Learner",
        EVERY + "ray::Learner",
        "ray::RolloutWorker",
        "ray::Scorer",
        EVERY + "ray::Scorer",
        DRIVER,
    ),
    "bon": ("ray::RolloutWorker", "ray::Scorer", EVERY + "ray::Scorer", DRIVER),
}


@dataclass
class Story:
    """What happened in a run.

    Attributes:
        killed: role and the step that the run was at, in order.
        wrong: what is not as it must be.
    """

    seed: int
    kind: str
    killed: list[tuple[str, int]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    rows: int = 0
    lost: int = 0
    twice: int = 0


def progress(kind: str, run: Path) -> int:
    """Steps, or shards, that are done."""
    if kind == "bon":
        return len(list((run / "samples").glob("shard-*.parquet")))
    return max((row["step"] for row in lines(run / "metrics.jsonl")), default=0)


def one_run(kind: str, folder: Path, seed: int, limit_s: float = 1500.0) -> Story:
    """Start a job, kill what the seed draws, see to its end, and check it."""
    rng = random.Random(seed)
    name = f"{kind}-{seed}"
    path, run, log = folder / f"{name}.yaml", folder / "runs" / name, folder / f"{name}.log"
    path.write_text(yaml.safe_dump(config(kind, folder, name, seed)))
    story, began = Story(seed, kind), time.monotonic()
    kills = rng.randint(1, 3)
    # When: so many steps after the kill before, and a moment of that step.
    plan = [(rng.choice(ROLES[kind]), rng.randint(1, 3), rng.random()) for _ in range(kills)]
    process, at = start(kind, path, log), 0
    until = began + limit_s

    def wait(condition: Callable[[], bool]) -> bool:
        """Until it holds; False when the job ended, or there is no time left."""
        while time.monotonic() < until and process.poll() is None:
            if condition():
                return True
            time.sleep(0.05)
        return False

    for role, steps, moment in plan:
        wanted = min(at + steps, STEPS[kind] - 1)
        if not wait(lambda wanted=wanted: progress(kind, run) >= wanted):
            break
        time.sleep(2 * moment)
        at = progress(kind, run)
        try:
            if role == DRIVER:
                process.kill()
                process.wait()
                story.killed.append((role, at))
                time.sleep(10)  # until Ray's processes have noticed
                resumable = kind == "bon" or any((run / "checkpoints").glob("step-*/state.json"))
                process = start(kind, path, log, *(["--resume"] if resumable else []))
                at = 0 if not resumable else at
            elif victims := descendants(process, role.removeprefix(EVERY)):
                for victim in victims if role.startswith(EVERY) else [rng.choice(victims)]:
                    os.kill(victim.pid, signal.SIGKILL)
                story.killed.append((role, at))
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue  # it ended by itself in this moment
    try:
        process.wait(max(1.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait(60)
        story.wrong.append(f"it did not end in {limit_s:.0f} s")
    story.seconds = time.monotonic() - began
    if process.returncode != 0:
        tail = log.read_text(encoding="utf-8", errors="replace")[-1500:]
        story.wrong.append(f"exit code {process.returncode}: {tail}")
    else:
        check(kind, run, story)
    return story


def check(kind: str, run: Path, story: Story) -> None:
    """Everything exactly once, in order, and complete."""
    if kind == "bon":
        files = sorted((run / "samples").glob("shard-*.parquet"))
        told = [uid for file in files for uid in pq.read_table(file)["uid"].to_pylist()]
        count(story, told, PROMPTS * SAMPLES)
        return
    steps = [row["step"] for row in lines(run / "metrics.jsonl")]
    if steps != list(range(steps[0], STEPS[kind] + 1)):
        story.wrong.append(f"steps of the metrics: {steps}")
    if not (run / "model").is_dir() or not (run / "report.html").is_file():
        story.wrong.append("no model, or no report")
    if kind == "rm":
        story.rows = 2 * 48
        return
    entries = lines(run / "ledger.jsonl")
    if [entry["step"] for entry in entries] != list(range(1, STEPS["ppo"] + 1)):
        story.wrong.append(f"steps of the ledger: {[entry['step'] for entry in entries]}")
    count(story, [uid for entry in entries for uid in entry["uids"]], STEPS["ppo"] * ROWS)
    for entry in entries:
        said = pq.read_table(run / "samples" / f"step-{entry['step']:05d}.parquet")["uid"]
        if sorted(said.to_pylist()) != sorted(entry["uids"]):
            story.wrong.append(f"samples of step {entry['step']} are not the ledger's")
    versions = [r["policy_version"] for r in lines(run / "metrics.jsonl") if r["step"]]
    if versions != sorted(versions):
        story.wrong.append(f"versions: {versions}")


def count(story: Story, uids: list[str], wanted: int) -> None:
    story.rows = wanted
    story.twice = sum(n - 1 for n in Counter(uids).values())
    story.lost = wanted - len(set(uids))
    if story.twice or story.lost:
        story.wrong.append(f"{story.lost} rows lost, {story.twice} counted twice")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=12, help="30 for a release")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    arguments = parser.parse_args()
    stories = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        prepare(folder)
        for seed in range(arguments.first, arguments.first + arguments.runs):
            story = one_run(("ppo", "rm", "bon")[seed % 3], folder, seed)
            stories.append(vars(story))
            killed = [f"{role.replace('ray::', '')} at {at}" for role, at in story.killed]
            print(
                f"seed {seed:3d} {story.kind:3s} {story.seconds:5.0f} s  {story.rows} rows  "
                f"killed: {', '.join(killed) or 'nobody'}",
                *(f"  WRONG: {what}" for what in story.wrong),
                flush=True,
            )
    finish(
        {
            "name": "chaos",
            "runs": len(stories),
            "kills": sum(len(s["killed"]) for s in stories),
            "ended": sum(not s["wrong"] for s in stories),
            "rows_lost": sum(s["lost"] for s in stories),
            "rows_twice": sum(s["twice"] for s in stories),
            "stories": stories,
        }
    )
    if any(s["wrong"] for s in stories):
        sys.exit(1)


if __name__ == "__main__":
    main()
