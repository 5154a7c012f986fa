"""Seeded runs in which random processes of random roles are killed: nothing may be lost.

Reward-model training, PPO and best-of-n on the real stack with a tiny model. A seed draws which
roles die, and how long after the run's first step; the job's own process is one of the roles: it is
started again with `--resume`. After each run: every row is there exactly once, versions only grow,
and every step has its line of metrics.
"""

from __future__ import annotations

import argparse
import json
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
from typing import Any

import psutil
import pyarrow.parquet as pq
import yaml
from machine import ROOT, finish
from transformers import AutoTokenizer

sys.path.insert(0, str(ROOT))

from grm_ray.config.schema import Head
from grm_ray.data.chat import ScoringContract
from grm_ray.models.checkpoint import save_reward_model
from tests.conftest import WORDS, build_model
from tests.models.scoring import reward_model

DRIVER = "the job itself"
ROLES = {
    "rm": ("ray::RewardTrainer", DRIVER),
    "ppo": ("ray::Learner", "ray::RolloutWorker", "ray::Scorer", DRIVER),
    "bon": ("ray::RolloutWorker", "ray::Scorer", DRIVER),
}
STEPS, ROWS = {"rm": 16, "ppo": 10, "bon": 12}, 12
PROMPTS, SAMPLES = 48, 4


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


def prepare(folder: Path) -> None:
    """Tiny model, reward model and data, shared by all runs."""
    rng = random.Random(0)
    build_model(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    scorer = reward_model(folder / "model", Head())
    contract = ScoringContract.of(tokenizer, 128, "left")
    save_reward_model(scorer, Head(), tokenizer, contract, folder / "reward", "")
    pairs = []
    for _ in range(64):
        asked = rng.sample(WORDS, 4)
        other = [word for word in WORDS if word not in asked]
        chosen, rejected = (" ".join(rng.sample(words, 3)) for words in (asked, other))
        pairs.append({"prompt": " ".join(asked), "chosen": chosen, "rejected": rejected})
    prompts = [{"prompt": " ".join(rng.choices(WORDS, k=12))} for _ in range(PROMPTS)]
    for name, rows in (("pairs", pairs), ("prompts", prompts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(kind: str, folder: Path, name: str, seed: int) -> dict[str, Any]:
    common = {"name": name, "runs": str(folder / "runs"), "seed": seed, "tracking": []}
    model = {"path": str(folder / "model"), "dtype": "float32"}
    one = {"count": 1, "cpus": 0.5, "threads": 1}
    two = {"count": 2, "cpus": 0.25, "threads": 1}
    if kind == "rm":
        return common | {
            "model": model | {"lora": {"rank": 4, "dropout": 0.0}},
            "data": {
                "train": {"path": str(folder / "pairs.jsonl")},
                "holdout": 0.25,
                "max_length": 128,
            },
            "training": {"pairs_per_step": 6, "epochs": 2, "eval_every": 8},
            "checkpoint": {"every": 3, "keep": 2},
            "workers": two,
        }
    prompts = {"path": str(folder / "prompts.jsonl")}
    engine = {"max_num_seqs": 8}
    if kind == "bon":
        return common | {
            "policy": model,
            "data": {"prompts": prompts, "max_prompt_length": 64},
            "rollout": {"samples_per_prompt": SAMPLES, "max_new_tokens": 24, "engine": engine},
            "proxies": {"one": str(folder / "reward")},
            "true_reward": "tests.judges:shorter",
            "scoring": {"dtype": "float32"},
            "prompts_per_shard": PROMPTS // STEPS["bon"],
            "workers": {"rollout": one, "scorer": two},
        }
    return common | {
        "policy": model | {"lora": {"rank": 4, "dropout": 0.0}},
        "reward": {"path": str(folder / "reward"), "true_reward": "tests.judges:shorter"},
        "data": {"train": prompts, "max_prompt_length": 64},
        "rollout": {
            "prompts_per_step": ROWS // 3,
            "samples_per_prompt": 3,
            "max_new_tokens": 24,
            "rows_per_batch": 2,
            "staleness": seed % 2,
            "engine": engine,
        },
        "ppo": {"steps": STEPS["ppo"], "optimizer": {"learning_rate": 1.0e-3}},
        "evaluation": {"prompts": 4, "every": 5},
        "checkpoint": {"every": 3, "keep": 2},
        "workers": {"rollout": one, "scorer": two, "learner": two},
    }


def lines(path: Path) -> list[dict[str, Any]]:
    """Of a file of JSON lines that may be being written."""
    found = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return found


def progress(kind: str, run: Path) -> int:
    """Steps, or shards, that are done."""
    if kind == "bon":
        return len(list((run / "samples").glob("shard-*.parquet")))
    return max((row["step"] for row in lines(run / "metrics.jsonl")), default=0)


def processes(pid: int, title: str) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if child.cmdline() and child.cmdline()[0].startswith(title):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def start(kind: str, path: Path, log: Path, *flags: str) -> subprocess.Popen:
    with log.open("a") as out:
        return subprocess.Popen(
            [sys.executable, "-m", f"grm_ray.{kind}", "--config", str(path), *flags],
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )


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
            elif victims := processes(process.pid, role):
                os.kill(rng.choice(victims).pid, signal.SIGKILL)
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
            killed = [f"{role.removeprefix('ray::')} at {at}" for role, at in story.killed]
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
