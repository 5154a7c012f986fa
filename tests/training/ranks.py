"""One rank of the engine tests: trains a tiny reward model in each way asked for, one by one.

Its argument is JSON: rank, world, port, the folder for results, and the runs by name. Rank 0 writes
what came of a run to `<name>.json`, and its last weights to `<name>.pt`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from grm_ray.config.schema import Head, Lora, Model, Optimizer
from grm_ray.data.packing import pack
from grm_ray.models.backbone import load_causal_lm
from grm_ray.models.reward_model import RewardModel
from grm_ray.objectives.preference import bradley_terry
from grm_ray.objectives.regularizers import grm_loss, sft
from grm_ray.training import checkpoint
from grm_ray.training.checkpoint import CheckpointMismatch
from grm_ray.training.engine import ZeroEngine
from grm_ray.training.process_group import join_group

PAIRS, STEPS, HALF = 6, 20, 10
# What each rank gets of a step's pairs, as micro-batches: these two splits take turns.
SPLITS = {
    1: [[[[0, 1], [2, 3], [4, 5]]], [[[0, 1, 2, 3, 4, 5]]]],
    2: [[[[0, 1], [2], [3, 4]], [[5]]], [[[0, 1, 2], [3, 4, 5]], []]],
}


class Engine(ZeroEngine):
    """Cuts even a tiny model's weights, which ZeRO-3 would find too small to cut."""

    def _deepspeed_config(self, dtype):
        config = super()._deepspeed_config(dtype)
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return config


def build(folder, run):
    torch.manual_seed(0)
    source = Model(
        path=str(folder / "model"),
        dtype=run.get("dtype", "float32"),
        lora=Lora(rank=4, dropout=0.0, targets=["q_proj", "up_proj"]) if run.get("lora") else None,
    )
    optimizer = Optimizer(
        learning_rate=2e-3,
        eps=1e-6,
        weight_decay=0.01,
        zero_stage=run["stage"],
        offload=run.get("offload", "none"),
        tokens_per_micro_batch=run.get("budget", 2048),
    )
    model = RewardModel(load_causal_lm(source), Head())
    return Engine(model, optimizer, source.dtype, run.get("total_steps", STEPS))


def pairs_of(step):
    rng = np.random.default_rng(step % 4)

    def text():
        return rng.integers(1, 128, rng.integers(3, 9))

    return [(text(), (text(), text())) for _ in range(PAIRS)]


def losses(engine, pairs):
    scores, logp = engine(pack(pairs), range(0, 2 * len(pairs), 2))
    return grm_loss(bradley_terry(scores[0::2], scores[1::2]), sft(logp, 0.1), 0.05)


def train_step(engine, step):
    splits, pairs = SPLITS[engine.world], pairs_of(step)

    def loss(batch):
        value = losses(engine, [pairs[i] for i in batch]).sum() / PAIRS
        return value, float(value.detach())

    mine = splits[step % len(splits)][engine.rank]
    made, told = engine.update(lambda _: mine, loss, lambda: losses(engine, pairs[:1]).sum())
    return engine.all_reduce([sum(told)])[0], made["grad_norm"]


@torch.no_grad()
def evaluate(engine):
    """Mean loss over pairs of which the ranks have different numbers of batches."""
    engine.module.eval()
    pairs, total = pairs_of(0), 0.0

    def read(batch):
        nonlocal total
        found = losses(engine, [pairs[i] for i in batch or [0]]).sum()
        total += float(found) if batch is not None else 0.0

    engine.read(lambda _: SPLITS[engine.world][0][engine.rank], read)
    engine.module.train()
    return engine.all_reduce([total])[0] / PAIRS


def drawn(engine):
    """The next random number of every rank."""
    mine = [0.0] * engine.world
    mine[engine.rank] = float(torch.rand(()))
    return engine.all_reduce(mine)


def whole_weights(engine):
    with engine.gathered():
        return {name: p.detach().clone() for name, p in engine.module.named_parameters()}


def execute(folder, name, run):
    engine = build(folder, run)
    torch.manual_seed(1 + engine.rank)
    engine.module.train()
    result = {"losses": [], "norms": []}
    if "load" in run:
        try:
            result["extra"] = engine.load(folder / run["load"])
        except CheckpointMismatch as error:
            return {"refused": str(error)}
        result["hashes"] = engine.hashes(result["extra"])
        result["drawn"] = drawn(engine)
    result["before"] = evaluate(engine)
    # Under stage 3 nothing of a weight is left in the module between two passes.
    result["left"] = sum(p.numel() for p in engine.module.parameters())
    for step in range(engine.steps, run.get("until", STEPS)):
        loss, norm = train_step(engine, step)
        result["losses"].append(loss)
        result["norms"].append(norm)
        if step + 1 == HALF:
            whole_weights(engine)  # training goes on as if nobody had looked
        if step + 1 == HALF and run.get("save"):
            result["hashes"] = engine.save(folder / name, {"step": HALF}, {})
            result["drawn"] = drawn(engine)
    weights = whole_weights(engine)
    result["after"] = evaluate(engine)
    result["final"] = engine.hashes({})
    if engine.rank == 0:
        torch.save(weights, folder / f"{name}.pt")
    return result


if __name__ == "__main__":
    rank, world, port, folder, runs = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    checkpoint.FILE_BYTES = 1 << 18  # several files a rank, even of a tiny model
    join_group(rank, world, "127.0.0.1", port, world)
    for name, run in runs.items():
        print(f"== {name}", flush=True)
        found = execute(Path(folder), name, run)
        if rank == 0:
            (Path(folder) / f"{name}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
