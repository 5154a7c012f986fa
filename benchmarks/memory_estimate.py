"""The memory that `--dry-run` tells of each role, against what its processes took, on CPUs.

A small reward-model training and a small PPO run with the embedded 135M model, as
`configs/rm_demo.yaml` and `configs/ppo_demo.yaml` have them but of a few steps. Each worker's
processes are looked at twice a second until the job ends. What counts is the most anonymous memory
(`Pss_Anon` of `/proc/<pid>/smaps_rollup`: a process's own pages, and its share of those that it has
in common with others), and its share of mapped weights; not libraries, which are in memory once for
all processes. The whole proportional set size stands beside it.

`--only baseline` runs the same with a model of half a million weights, which shows what a process
of each role takes beside its model: `BASELINE` and `DRIVER` in `drivers/footprint/role.py`. The
cache of keys (1 GiB) is taken off the engine's figure there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from machine import RESULTS, ROOT, finish

sys.path.insert(0, str(ROOT))

from benchmarks.parts.memory import mapped_weights, rollup

ENGINE = "engine"  # vLLM's own process, below a rollout worker
ROLES = {
    "ray::RewardTrainer": "trainer",
    "ray::Learner": "learner",
    "ray::RolloutWorker": "rollout",
    "ray::Scorer": "scorer",
    "VLLM::": ENGINE,
}
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["rm", "ppo", "baseline"])
    parser.add_argument("--work", type=Path, help="a folder; holds runs/rm_demo for --only ppo")
    parser.add_argument("--steps", type=int, default=2, help="of the PPO run")
    arguments = parser.parse_args()
    work = (arguments.work or Path(tempfile.mkdtemp(prefix="memory-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    kept = RESULTS / "memory_estimate.json"
    detail = json.loads(kept.read_text("utf-8"))["detail"] if kept.exists() else {}
    if arguments.only == "baseline":
        from tests.conftest import build_model

        model = str(build_model(work / "tiny"))
        found = {job: run(job, configs(work, model)[job], work) for job in ("rm", "ppo")}
        detail["baseline"] = baselines(found)
    else:
        for job in [arguments.only] if arguments.only else ["rm", "ppo"]:
            config = configs(work)[job]
            if job == "ppo":
                config["ppo"]["steps"] = arguments.steps
            measured = run(job, config, work)
            told = estimate(job, config, work)
            for role, size in told.items():
                one = measured[role]
                detail[role] = {
                    "estimate_gib": round(size / GIB, 3),
                    "measured_gib": round(max(one["held"]) / GIB, 3),
                    "ratio": round(size / max(one["held"]), 3),
                    "each_process_gib": [round(x / GIB, 3) for x in one["held"]],
                    "pss_gib": round(max(one["pss"]) / GIB, 3),
                }
                print(role, json.dumps(detail[role]), flush=True)
    ratios = [entry["ratio"] for entry in detail.values() if "ratio" in entry]
    worst = max(ratios, key=lambda ratio: abs(ratio - 1), default=None)
    finish(
        {
            "name": "memory_estimate",
            "ratio": worst,
            "unit": "estimate over measured peak of memory held, the role furthest from 1",
            "detail": detail,
        }
    )


def configs(work: Path, model: str | None = None) -> dict[str, dict[str, Any]]:
    """The demo's configs, of a few steps; `model`: another than the embedded one."""
    found = {}
    for job in ("rm", "ppo"):
        text = (ROOT / "configs" / f"{job}_demo.yaml").read_text("utf-8")
        found[job] = {**yaml.safe_load(text), "runs": str(work / "runs"), "tracking": []}
    rm, ppo = found["rm"], found["ppo"]
    rm["data"]["train"]["limit"], rm["data"]["eval"]["limit"] = 48, 16
    ppo["ppo"]["steps"], ppo["evaluation"]["prompts"] = 2, 8
    # As many rows in an update as fill a micro-batch on either rank.
    ppo["rollout"]["prompts_per_step"], ppo["ppo"]["minibatches"] = 8, 1
    ppo["reward"]["path"] = str(work / "runs" / "rm_demo" / "model")
    if model is not None:
        rm["model"]["path"] = ppo["policy"]["path"] = model
        for config in (rm, ppo):
            config["name"] += "_tiny"
        ppo["reward"]["path"] = str(work / "runs" / "rm_demo_tiny" / "model")
        # Its tokenizer knows few words, so that rows are many times as long.
        rm["data"]["max_length"] = 512
        ppo["data"]["max_prompt_length"] = 448
    return found


def run(job: str, config: dict[str, Any], work: Path) -> dict[str, dict[str, list[int]]]:
    """Role -> bytes at most of each of its processes, `held` and `pss`; and of the rest."""
    path = work / f"{config['name']}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", f"grm_ray.{job}", "--config", str(path)]
    process = subprocess.Popen(command, cwd=ROOT)
    most: dict[tuple[str, int], dict[str, int]] = {}
    others = 0
    while process.poll() is None:
        beside = 0
        try:
            started = psutil.Process(process.pid)
            family = [started, *started.children(recursive=True)]
        except psutil.Error:
            family = []
        for member in family:
            try:
                name, now = " ".join(member.cmdline()), rollup(member.pid)
                now["held"] = now.pop("anonymous") + mapped_weights(member.pid)
            except (psutil.Error, OSError):
                continue  # it has just ended
            role = next((r for start, r in ROLES.items() if name.startswith(start)), None)
            if role is None:
                beside += now["held"]
                continue
            before = most.setdefault((role, member.pid), dict.fromkeys(now, 0))
            most[role, member.pid] = {what: max(now[what], before[what]) for what in now}
        others = max(others, beside)
        time.sleep(0.5)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    found: dict[str, dict[str, list[int]]] = {}
    for (role, _), peak in most.items():
        of_role = found.setdefault(role, {what: [] for what in peak})
        for what, size in peak.items():
            of_role[what].append(size)
    for what, sizes in found.pop(ENGINE, {}).items():
        both = zip(sorted(found["rollout"][what]), sorted(sizes), strict=True)
        found["rollout"][what] = [worker + engine for worker, engine in both]
    found["driver and Ray"] = {"held": [others], "pss": [others]}
    return found


def baselines(found: dict[str, dict[str, dict[str, list[int]]]]) -> dict[str, float]:
    """GiB of a process of each role with hardly a model."""
    made = {}
    for of_job in found.values():
        for role, peaks in of_job.items():
            size = max(peaks["held"]) / GIB - (role == "rollout")
            made[role] = round(max(size, made.get(role, 0.0)), 3)
    return made


def estimate(job: str, config: dict[str, Any], work: Path) -> dict[str, float]:
    """Role -> bytes of one worker's process, as `--dry-run` tells them."""
    from grm_ray.config.ppo import PpoJob
    from grm_ray.config.reward_model import RewardModelJob
    from grm_ray.drivers.footprint.roles import roles_of

    schema = {"rm": RewardModelJob, "ppo": PpoJob}[job]
    return {role.name: role.on_host for role in roles_of(schema.model_validate(config))}


if __name__ == "__main__":
    main()
