"""Peak memory of GRM training at 1,024 tokens: ours against whole logits, padded.

Both sides train all weights of the embedded 135M model with AdamW on two pairs of 1,024 tokens a
side (a prompt of 512), in plain torch and a process of their own; the peak of resident memory over
what the process holds before its first step is what counts, and the whole peak stands beside it.
The other side does what GRM's released trainer does: chosen and rejected in one padded batch, the
language head over every position, log-softmax in fp32 over the whole vocabulary. Both are measured
with all activations kept, and with gradient checkpointing.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from typing import Any

import numpy as np
import torch
from machine import call, finish

PAIRS, PROMPT, ANSWER = 2, 512, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=["ours", "whole_logits"])
    parser.add_argument("--checkpointing", action="store_true")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.checkpointing)))
        return
    found: dict[str, Any] = {}
    for how, flags in (("kept", []), ("recomputed", ["--checkpointing"])):
        ours, theirs = (
            json.loads(call([sys.executable, __file__, "--side", side, *flags]).splitlines()[-1])
            for side in ("ours", "whole_logits")
        )
        assert abs(ours["loss"] - theirs["loss"]) < 1e-3, "the two sides train another loss"
        found[f"activations_{how}"] = {
            "ours": ours,
            "whole_logits": theirs,
            "ratio_whole_process": round(ours["peak_gib"] / theirs["peak_gib"], 3),
            "ratio_of_the_step": round(ours["step_gib"] / theirs["step_gib"], 3),
        }
        print(how, json.dumps(found[f"activations_{how}"]), flush=True)
    authors = found["activations_recomputed"]
    finish(
        {
            "name": "rm_memory",
            "ours": authors["ours"]["step_gib"],
            "theirs": authors["whole_logits"]["step_gib"],
            "ratio": authors["ratio_of_the_step"],
            "unit": "GiB of a step, gradient checkpointing on",
            "detail": found,
        }
    )


def measure(side: str, checkpointing: bool) -> dict[str, Any]:
    from grm_ray.config.schema import Head, Model
    from grm_ray.models import backbone
    from grm_ray.models.reward_model import RewardModel

    torch.set_num_threads(2)
    torch.manual_seed(0)
    path = backbone.resolve(backbone.EMBEDDED)
    source = Model(path=path, dtype="float32", gradient_checkpointing=checkpointing)
    model = RewardModel(backbone.load_causal_lm(source, path), Head()).train()
    if side == "whole_logits":
        model.lm.set_attn_implementation("sdpa")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, foreach=False)
    for parameter in model.parameters():  # gradients and moments are there before the step
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    rng = np.random.default_rng(0)
    draw = lambda length: rng.integers(5, 40000, length)  # noqa: E731
    groups = [(draw(PROMPT), (draw(ANSWER), draw(ANSWER))) for _ in range(PAIRS)]
    before = peak()
    loss = ours(model, groups) if side == "ours" else whole_logits(model, groups)
    loss.backward()
    optimizer.step()
    return {
        "peak_gib": round(peak(), 3),
        "step_gib": round(peak() - before, 3),
        "loss": float(loss.detach()),
    }


def ours(model: Any, groups: list) -> torch.Tensor:
    from grm_ray.config.reward_model import PreferenceLoss
    from grm_ray.training.reward_loss import PairBatch, RewardLoss

    nothing = np.full(len(groups), np.nan)
    loss = RewardLoss(PreferenceLoss())
    values = loss.pairs(model, PairBatch(groups, nothing, nothing), "cpu")
    return loss.shares(values, (len(groups), len(groups)))


def whole_logits(model: Any, groups: list) -> torch.Tensor:
    ids = torch.tensor(
        np.stack([np.concatenate([prompt, a[side]]) for side in (0, 1) for prompt, a in groups])
    )
    outputs = model.lm(input_ids=ids, output_hidden_states=True)
    scores = model.head(outputs.hidden_states[-1][:, -1])
    chosen, rejected = scores.chunk(2)
    logp = outputs.logits.float().log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    sums = logp[:, PROMPT - 1 :].sum(1)[: len(groups)]
    softplus = torch.nn.functional.softplus
    return 0.99 * softplus(rejected - chosen).mean() + 0.01 * softplus(-0.1 * sums).mean()


def peak() -> float:
    """GiB of resident memory, the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
