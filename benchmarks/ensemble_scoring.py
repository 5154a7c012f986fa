"""K reward models that have weights in common against K that have not, in answers a second.

One backbone with K heads, and K models whose upper half alone was trained (LoRA in the last layers,
merged), against K models that share nothing. All read the same rows through our scorer, and the
embedded 135M model is the backbone of all. Scores are compared with those of the same models apart.
Passes take turns, three times; the fastest counts.

    python benchmarks/ensemble_scoring.py --rows 48
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import numpy as np
import torch
from machine import finish
from scoring import of_pairs, tokens

from grm_ray.config.schema import Head, Model
from grm_ray.data.files import DEMO
from grm_ray.models import backbone
from grm_ray.models.reward_model import RewardModel
from grm_ray.models.scoring import score_rows, score_rows_by_all
from grm_ray.models.shared_layers import share_layers, share_weights

TIMES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--budget", type=int, default=1024)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    path = backbone.resolve(backbone.EMBEDDED)
    tokenizer = backbone.load_tokenizer(path)
    texts = of_pairs(DEMO / "preferences.jsonl", arguments.rows)["unrelated"]
    rows = tokens(texts, tokenizer)
    torch.manual_seed(0)
    lm = backbone.load_causal_lm(Model(path=path), path)
    together = RewardModel(lm, Head(members=arguments.members)).eval()
    alone = [split(together, k) for k in range(arguments.members)]
    trained = [upper_half(one, seed) for seed, one in enumerate(alone)]
    apart = np.stack([score_rows(one, rows, arguments.budget) for one in trained], axis=1)
    freed = share_weights([one.lm for one in trained])
    layers = share_layers([one.lm for one in trained])
    seconds: dict[str, list[float]] = {"one backbone": [], "upper halves": [], "models": []}
    for _ in range(TIMES):
        began = time.perf_counter()
        halves = np.hstack(score_rows_by_all(trained, rows, arguments.budget))
        seconds["upper halves"].append(time.perf_counter() - began)
        began = time.perf_counter()
        ours = score_rows(together, rows, arguments.budget, by_member=True)
        seconds["one backbone"].append(time.perf_counter() - began)
        began = time.perf_counter()
        theirs = np.stack([score_rows(one, rows, arguments.budget) for one in alone], axis=1)
        seconds["models"].append(time.perf_counter() - began)
    result: dict[str, Any] = {name: round(len(rows) / min(s), 2) for name, s in seconds.items()}
    finish(
        {
            "name": "ensemble_scoring",
            "members": arguments.members,
            **result,
            "ratio": round(result["one backbone"] / result["models"], 2),
            "ratio_of_upper_halves": round(result["upper halves"] / result["models"], 2),
            "layers_computed_once": layers,
            "megabytes_held_once": round(freed / 1e6),
            "unit": "answers/s, each scored by all members",
            "largest_difference": float(np.abs(ours - theirs).max()),
            "largest_difference_of_upper_halves": float(np.abs(halves - apart).max()),
        }
    )


def split(ensemble: RewardModel, member: int) -> RewardModel:
    """A reward model with one member's head, and a backbone of its own."""
    one = RewardModel(copy.deepcopy(ensemble.lm), Head()).eval()
    with torch.no_grad():
        one.head.layers[0].weight.copy_(ensemble.head.layers[0].weight[member : member + 1])
    return one


def upper_half(model: RewardModel, seed: int) -> RewardModel:
    """The same with the matrices of its upper half changed a little, as merged adapters do."""
    other = copy.deepcopy(model)
    layers = other.lm.model.layers
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers[len(layers) // 2 :]:
            for weight in layer.parameters():
                if weight.dim() == 2:
                    weight += 1e-3 * torch.randn(weight.shape, generator=rng, dtype=weight.dtype)
    return other


if __name__ == "__main__":
    main()
