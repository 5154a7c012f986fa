"""Reward-model training: our BT and GRM against TRL's RewardTrainer, in pairs a second.

All weights of the embedded 135M model, 8 pairs a step, at most 512 tokens an answer with its prompt
(longer pairs are left out on all sides), fp32 on all sides where the CPU has no fast bfloat16. Ours
is the job itself, one rank of two threads; TRL has both cores in one process too. The first step of
each is left out.

    python benchmarks/rm_training.py --data pairs.jsonl.gz --rows 256

`--data`: preference rows in TRL's conversational format; without it, the demo's.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from machine import ROOT, call, finish

PEER = ROOT / ".venv-bench" / "bin" / "python"
PAIRS, LENGTH = 8, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--skip-trl", action="store_true")
    arguments = parser.parse_args()
    if not PEER.exists() and not arguments.skip_trl:
        sys.exit("TRL is not installed: make bench-install")
    from grm_ray.models import backbone

    model = backbone.resolve(backbone.EMBEDDED)
    dtype = backbone.resolve_dtype("auto")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        kept = fitting(arguments.data, arguments.rows, model, work / "pairs.jsonl")
        steps = kept // PAIRS
        found = {
            "bt": ours(work, "bt", {"alpha": 0.0, "regularizer": None}),
            "grm_sft": ours(work, "grm_sft", {"alpha": 0.01, "regularizer": "sft"}),
        }
        if not arguments.skip_trl:
            found["trl"] = theirs(work, model, dtype, steps)
    rates = {
        name: PAIRS * len(f["seconds"][1:]) / sum(f["seconds"][1:]) for name, f in found.items()
    }
    for name, rate in rates.items():
        print(f"{name:8} {rate:7.3f} pairs/s")
    finish(
        {
            "name": "rm_training",
            "ours": round(rates["bt"], 3),
            "theirs": round(rates["trl"], 3) if "trl" in rates else None,
            "ratio": round(rates["bt"] / rates["trl"], 2) if "trl" in rates else None,
            "unit": "pairs/s",
            "grm_sft_time_over_bt": round(rates["bt"] / rates["grm_sft"], 3),
            "rows": arguments.rows,
            "rows_that_fit": kept,
            "data": arguments.data.name if arguments.data else "demo",
            "dtype": dtype,
            "detail": found,
        }
    )


def fitting(data: Path | None, rows: int, model: str, target: Path) -> int:
    """The first `rows` pairs of `data` that fit into `LENGTH` tokens on either side."""
    from grm_ray.data.chat import ScoringContract, answer_tokens, prompt_tokens
    from grm_ray.data.files import DEMO
    from grm_ray.models.backbone import load_tokenizer

    tokenizer = load_tokenizer(model)
    contract = ScoringContract.of(tokenizer, LENGTH, "drop")
    path = data or DEMO / "preferences.jsonl"
    opener = gzip.open if path.suffix == ".gz" else open
    kept = []
    with opener(path, "rt", encoding="utf-8") as lines:
        for _, line in zip(range(rows), lines, strict=False):
            row = json.loads(line)
            prompt = row["prompt"]
            if isinstance(prompt, str):
                prompt = [{"role": "user", "content": prompt}]
            head = prompt_tokens(tokenizer, prompt)
            sides = [
                contract.close(answer_tokens(tokenizer, row[k])) for k in ("chosen", "rejected")
            ]
            # A few tokens less than allowed: TRL's template adds a line end after the answer.
            if len(head) + max(map(len, sides)) <= LENGTH - 2:
                answers = {
                    k: [{"role": "assistant", "content": row[k]}] for k in ("chosen", "rejected")
                }
                kept.append({"prompt": prompt, **answers})
    kept = kept[: len(kept) // PAIRS * PAIRS]
    target.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return len(kept)


def ours(work: Path, name: str, loss: dict[str, Any]) -> dict[str, list[float]]:
    config = {
        "name": name,
        "runs": str(work / "runs"),
        "tracking": [],
        "model": {"path": "smollm2-135m-instruct"},
        "loss": loss,
        "data": {
            "train": {"path": str(work / "pairs.jsonl")},
            "eval": {"path": "demo", "split": "test", "limit": 2},
            "max_length": LENGTH,
            "truncation": "drop",
        },
        "training": {
            "pairs_per_step": PAIRS,
            "eval_every": 0,
            "optimizer": {
                "learning_rate": 1e-5,
                "zero_stage": 0,
                "tokens_per_micro_batch": 2048,
            },
        },
        "workers": {"count": 1, "threads": 2, "cpus": 1},
    }
    path = work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    call([sys.executable, "-m", "grm_ray.rm", "--config", str(path)])
    lines = (work / "runs" / name / "metrics.jsonl").read_text().splitlines()
    metrics = [m for m in map(json.loads, lines) if m["step"]]
    return {
        "seconds": [m["phase/learn"] for m in metrics],
        "losses": [m["loss/preference"] for m in metrics],
    }


def theirs(work: Path, model: str, dtype: str, steps: int) -> dict[str, Any]:
    job = {
        "model": model,
        "rows": str(work / "pairs.jsonl"),
        "output": str(work / "trl"),
        "pairs_per_step": PAIRS,
        "max_length": LENGTH,
        "steps": steps,
        "dtype": dtype,
        "threads": 2,
    }
    peer = Path(__file__).parent / "peers" / "trl_reward.py"
    found = json.loads(call([str(PEER), str(peer), json.dumps(job)]).strip().splitlines()[-1])
    assert found["rows"] == steps * PAIRS, "TRL has left out other rows"
    return found


if __name__ == "__main__":
    main()
