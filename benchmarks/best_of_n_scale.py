"""Best of 64 for 1,000 prompts, killed in the middle and gone on with: nothing is made twice.

A job of a tiny random model and reward model runs as users run it. When about half of the shards
are written it gets SIGKILL; `--resume` does the rest. Finished files must stay byte-identical, no
answer may stand twice, and the driver's memory must not grow with its input: it is compared with
that of a tenth of the prompts.

    python benchmarks/best_of_n_scale.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import yaml
from machine import finish

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--per-shard", type=int, default=25)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, arguments.prompts)
        shards = -(-arguments.prompts // arguments.per_shard)
        config = write_config(folder, arguments)
        run = folder / "runs" / "bon"

        began = time.perf_counter()
        job = Job(config, folder)
        while len(files(run)) < shards // 2:
            job.look()
            time.sleep(0.2)
        job.process.kill()
        job.process.wait()
        before = {file: digest(file) for file in files(run)}
        killed_after = time.perf_counter() - began
        wait_until_gone(job.children)

        again = Job(config, folder, "--resume")
        again.end()
        seconds = time.perf_counter() - began
        changed = [f.name for f in before if digest(f) != before[f]]
        uids = [
            u
            for file in files(run)
            for u in pq.read_table(file, columns=["uid"])["uid"].to_pylist()
        ]

        tenth = Job(config, folder, "name=tenth", f"data.prompts.limit={arguments.prompts // 10}")
        tenth.end()
        answers = arguments.prompts * arguments.samples
        finish(
            {
                "name": "best_of_n_scale",
                "prompts": arguments.prompts,
                "samples": arguments.samples,
                "answers": len(uids),
                "answers_made_twice": len(uids) - len(set(uids)),
                "answers_lacking": answers - len(set(uids)),
                "shards_before_the_kill": len(before),
                "shards_changed_since": changed,
                "seconds_before_the_kill": round(killed_after, 1),
                "seconds": round(seconds, 1),
                "driver_peak_mb": round(max(job.peak, again.peak) / 1e6),
                "driver_peak_mb_of_a_tenth": round(tenth.peak / 1e6),
            }
        )


def prepare(folder: Path, prompts: int) -> None:
    """A tiny model, a reward model on it, and prompts."""
    import torch
    from transformers import AutoTokenizer

    from grm_ray.config.schema import Head, Model
    from grm_ray.data.chat import ScoringContract
    from grm_ray.models.backbone import load_causal_lm
    from grm_ray.models.checkpoint import save_reward_model
    from grm_ray.models.reward_model import RewardModel
    from tests.conftest import WORDS, build_model

    base = build_model(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(0)
    model = RewardModel(load_causal_lm(Model(path=str(base), dtype="float32")), Head())
    contract = ScoringContract.of(tokenizer, 128, "left")
    save_reward_model(model, Head(), tokenizer, contract, folder / "rm", "# random\n")
    rng = random.Random(0)
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as out:
        for number in range(prompts):
            out.write(
                json.dumps({"prompt": f"{number} " + " ".join(rng.choices(WORDS, k=6))}) + "\n"
            )


def write_config(folder: Path, arguments: argparse.Namespace) -> Path:
    config = {
        "name": "bon",
        "runs": str(folder / "runs"),
        "policy": {"path": str(folder / "base"), "dtype": "float32"},
        "data": {"prompts": {"path": str(folder / "prompts.jsonl")}, "max_prompt_length": 64},
        "rollout": {
            "samples_per_prompt": arguments.samples,
            "max_new_tokens": arguments.tokens,
            "engine": {"max_num_seqs": 128},
        },
        "proxies": {"rm": str(folder / "rm")},
        "true_reward": "tests.judges:shorter",
        "scoring": {"dtype": "float32"},
        "prompts_per_shard": arguments.per_shard,
        "tracking": [],
    }
    path = folder / "bon.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


class Job:
    """A best-of-n job in a process of its own, whose driver's memory is watched."""

    def __init__(self, config: Path, folder: Path, *flags: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "grm_ray.bon", "--config", str(config), *flags],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=(folder / "log").open("w"),
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self._log, self.peak, self.children = folder / "log", 0, list[psutil.Process]()

    def look(self) -> None:
        """Note memory and children; fail where the job failed."""
        if self.process.poll():
            raise SystemExit(self._log.read_text())
        try:
            driver = psutil.Process(self.process.pid)
            self.peak = max(self.peak, driver.memory_info().rss)
            self.children = driver.children(recursive=True)
        except psutil.NoSuchProcess:
            pass

    def end(self) -> None:
        while self.process.poll() is None:
            self.look()
            time.sleep(0.2)
        self.look()


def files(run: Path) -> list[Path]:
    return sorted((run / "samples").glob("shard-*.parquet"))


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def wait_until_gone(processes: list[psutil.Process]) -> None:
    """Workers go at once; Ray's own agents notice after a minute or so that their node is gone."""
    _, alive = psutil.wait_procs(processes, timeout=240)
    if alive:
        raise SystemExit(f"left behind: {alive}")


if __name__ == "__main__":
    main()
