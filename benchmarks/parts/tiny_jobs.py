"""Whole jobs of every kind on a tiny model, as processes of their own: what chaos and soak run."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from grm_ray.config.schema import Head
from grm_ray.data.chat import ScoringContract
from grm_ray.models.checkpoint import save_reward_model
from tests.conftest import ROOT, WORDS, build_model, job
from tests.models.scoring import reward_model

STEPS, ROWS = {"rm": 16, "ppo": 10, "bon": 12}, 12
PROMPTS, SAMPLES = 48, 4


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


def start(kind: str, path: Path, log: Path, *flags: str) -> subprocess.Popen:
    with log.open("a") as out:
        return job(f"grm_ray.{kind}", "--config", str(path), *flags, cwd=ROOT, stdout=out)
