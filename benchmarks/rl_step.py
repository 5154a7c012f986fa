"""One RL step, our RLOO and our PPO against TRL's RLOOTrainer: 4 prompts, 4 answers of 64 tokens.

Policy and reward model are the embedded 135M model (the reward model with a fresh head); all of the
policy's weights learn (`--lora`: an adapter), with a KL to the policy at the start, in fp32 on both
sides where the CPU has no fast bfloat16. Ours generates with vLLM, scores in a pool of two and
learns under DeepSpeed, each in a process of its own; TRL does all in one. PPO has a critic; TRL has
no PPO any more. Our RLOO takes the log-probs before the update from the engine, which spares a
pass; PPO's critic needs that pass. Each side's first steps, in which memory still grows, are left
out.

The policy's end token is one that is never sampled: every answer has all 64 tokens, on both sides;
their mean length is printed. The learning rate is too small to change that. Beside the times: the
share of our steps in which no worker is busy (the driver works, or messages travel), and that in
which a scorer idles though rows are there for it, from the runs' timelines.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from machine import ROOT, call, finish

from grm_ray.runtime import timeline

sys.path.insert(0, str(ROOT))

from benchmarks.parts import utilisation

PEER = ROOT / ".venv-bench" / "bin" / "python"
NEW_TOKENS, PROMPTS, SAMPLES = 64, 4, 4
LEARNING_RATE = 1e-6
WARM_UP = 2  # steps
NEVER_SAMPLED = "<issue_closed>"
OURS = {"RLOO": "rloo", "PPO": "gae"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--lora", action="store_true", help="train an adapter on both sides")
    arguments = parser.parse_args()
    if not PEER.exists():
        sys.exit("TRL is not installed: make bench-install")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        policy = models(work)
        found = {"TRL RLOO": run_theirs(work, policy, arguments.steps, arguments.lora)}
        for name, estimator in OURS.items():
            found[f"our {name}"] = run_ours(
                work, policy, estimator, arguments.steps, arguments.lora
            )
    rows = PROMPTS * SAMPLES
    print(f"{'':8} {'s a step':>9} {'samples/s':>10} {'mean length':>12}  shares of our steps")
    rates = {}
    for name, measured in found.items():
        seconds = statistics.median(measured["seconds"][WARM_UP:])
        rates[name] = rows / seconds
        length = statistics.mean(measured["lengths"][WARM_UP:])
        shares = {key: f"{value:.2%}" for key, value in measured.get("shares", {}).items()}
        print(f"{name:8} {seconds:9.2f} {rates[name]:10.3f} {length:12.1f}  {shares or ''}")
    finish(
        {
            "name": "rl_step_lora" if arguments.lora else "rl_step",
            "samples_per_second": {name: round(rate, 3) for name, rate in rates.items()},
            "ratios_to_trl_rloo": {
                name: round(rates[f"our {name}"] / rates["TRL RLOO"], 2) for name in OURS
            },
            "detail": found,
        }
    )


def models(work: Path) -> str:
    """The policy's folder; reward models with fresh heads in our form and in transformers'.

    All of the weights are those of the embedded model.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    from grm_ray.config.schema import Head, Model
    from grm_ray.data.chat import ScoringContract
    from grm_ray.models import backbone
    from grm_ray.models.checkpoint import save_reward_model
    from grm_ray.models.reward_model import RewardModel

    path = backbone.resolve(backbone.EMBEDDED)
    tokenizer = backbone.load_tokenizer(path)
    torch.manual_seed(0)
    model = RewardModel(backbone.load_causal_lm(Model(path=path), path), Head())
    contract = ScoringContract.of(tokenizer, 256, "left")
    save_reward_model(model, Head(), tokenizer, contract, work / "ours", "# fresh head\n")
    other = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype="float32")
    other.config.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id
    other.save_pretrained(work / "theirs")
    tokenizer.save_pretrained(work / "theirs")
    policy = work / "policy"
    shutil.copytree(path, policy)
    tokenizer.eos_token = NEVER_SAMPLED
    tokenizer.save_pretrained(policy)
    for name in ("config.json", "generation_config.json"):
        described = json.loads((policy / name).read_text(encoding="utf-8"))
        described["eos_token_id"] = tokenizer.eos_token_id
        (policy / name).write_text(json.dumps(described), encoding="utf-8")
    return str(policy)


def run_ours(work: Path, policy: str, estimator: str, steps: int, lora: bool) -> dict[str, Any]:
    config = yaml.safe_load((ROOT / "configs" / "ppo_demo.yaml").read_text(encoding="utf-8"))
    config |= {"name": estimator, "runs": str(work / "runs"), "tracking": []}
    config["policy"]["path"] = policy
    config["policy"]["lora"] |= {"last_layers": None}  # TRL adapts every layer
    if not lora:
        del config["policy"]["lora"]
        # One rank with both cores: two would hold, and add up, two of everything.
        config["workers"]["learner"] = {"count": 1, "cpus": 0.5, "threads": 2}
        # It has nobody to share its optimizer with, and memory for all rows at once, as TRL.
        config["ppo"]["optimizer"] |= {"zero_stage": 0, "tokens_per_micro_batch": 2048}
    config["reward"] = {"path": str(work / "ours")}
    config["ppo"]["optimizer"]["learning_rate"] = LEARNING_RATE
    config["rollout"] |= {
        "prompts_per_step": PROMPTS,
        "samples_per_prompt": SAMPLES,
        "max_new_tokens": NEW_TOKENS,
    }
    config["ppo"] |= {"steps": steps, "minibatches": 1, "estimator": estimator}
    if estimator != "gae":
        del config["ppo"]["lam"]
        config["ppo"]["old_logprobs"] = "engine"
    config["evaluation"] = {"prompts": 1}
    config["checkpoint"] = {"every": 0}
    path = work / "ours.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    call([sys.executable, "-m", "grm_ray.ppo", "--config", str(path)])
    lines = (work / "runs" / estimator / "metrics.jsonl").read_text().splitlines()
    metrics = [m for m in map(json.loads, lines) if m["step"]]
    phases = [{k: v for k, v in m.items() if k.startswith("phase/")} for m in metrics]
    return {
        "seconds": [sum(phase.values()) for phase in phases],
        "lengths": [m["response_length"] for m in metrics],
        "phases": [{k: round(v, 2) for k, v in phase.items()} for phase in phases],
        "shares": shares(work / "runs" / estimator),
    }


def shares(run: Path) -> dict[str, float]:
    """Of the steps after the first ones: how long each role was busy, and what was wasted."""
    events = timeline.read(run / "logs")
    frame = utilisation.times(utilisation.spans(events, "driver", "step")["driver"][WARM_UP:])
    found = {r: utilisation.busy_share(events, r, frame) for r in ("rollout", "scorer", "learner")}
    found["no worker"] = utilisation.alone_share(events, frame)
    found["scorer idle though rows are ready"] = utilisation.neglected_share(
        events, "scorer", "rows ready", "score", frame
    )
    return {name: round(share, 4) for name, share in found.items()}


def run_theirs(work: Path, policy: str, steps: int, lora: bool) -> dict[str, list[float]]:
    demo = ROOT / "grm_ray" / "data" / "demo" / "prompts.jsonl"
    rows = map(json.loads, demo.read_text(encoding="utf-8").splitlines())
    job: dict[str, Any] = {
        "policy": policy,
        "reward": str(work / "theirs"),
        "output": str(work / "trl"),
        "prompts": [row["prompt"] for row in rows if row["split"] == "train"],
        "rows": PROMPTS * SAMPLES,
        "samples_per_prompt": SAMPLES,
        "new_tokens": NEW_TOKENS,
        "steps": steps,
        "threads": 2,
        "lora": lora,
        "learning_rate": LEARNING_RATE,
    }
    peer = Path(__file__).parent / "peers" / "trl_rloo.py"
    said = call([str(PEER), str(peer), json.dumps(job)])
    return json.loads(said.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
