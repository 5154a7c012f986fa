"""One rank of the tests of failures: trains a tiny reward model while something goes wrong.

Its argument is that of `ranks.py`. Of a run: `fail` says whether memory runs out in the "forward"
or "backward" pass of more than `above` tokens, `number` that the loss is that at some steps, and
`disk` that the step's checkpoint meets a file-size limit; all of it on the last rank alone.
"""

import json
import os
import resource
import sys
from pathlib import Path

import torch

from grm_ray.config.errors import NotWritten, RunStopped
from grm_ray.data.packing import group_tokens, micro_batches
from grm_ray.training.process_group import join_group
from tests.training.ranks import PAIRS, build, drawn, losses, pairs_of, whole_weights

STEPS, WRONG = 4, (1, 2)
BUDGET = 64  # of pairs of 9 to 24 tokens


def no_memory():
    torch.empty(1 << 55, dtype=torch.uint8)


def break_at(engine, run):
    """Let memory run out, for real, in every pass of too many tokens through the first layer."""

    def after(layer, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.numel() // hidden.shape[-1] <= run["above"]:
            return
        if run["fail"] == "forward":
            no_memory()
        elif hidden.requires_grad:  # when its turn comes, later layers have their gradients
            hidden.register_hook(lambda _: no_memory())

    engine.module.lm.model.layers[0].register_forward_hook(after)


def step(engine, number, run):
    pairs = pairs_of(number)
    mine = list(range(engine.rank, PAIRS, engine.world))
    wrong = run.get("number") if number in WRONG and engine.rank == engine.world - 1 else None

    def plan(budget):
        batches = micro_batches([group_tokens(pairs[i]) for i in mine], budget)
        return [[mine[i] for i in batch] for batch in batches]

    def loss(batch):
        value = losses(engine, [pairs[i] for i in batch]).sum() / PAIRS
        if wrong is not None:
            value = value + float(wrong)
        return value, len(batch)

    made, told = engine.update(plan, loss, lambda: losses(engine, pairs[:1]).sum())
    assert sum(told) == len(mine), told
    return made, engine.all_reduce([len(told)])[0]


def limited(engine, folder):
    """What a checkpoint says that cannot be written on the last rank; and what one says then."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if engine.rank == engine.world - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        engine.save(folder / "full", {}, {})
        said = ""
    except NotWritten as error:
        said = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return said


def execute(folder, name, run):
    engine = build(folder, run)
    torch.manual_seed(1 + engine.rank)
    engine.module.train()
    result = {"made": [], "batches": []}
    if "fail" in run and engine.rank == engine.world - 1:
        break_at(engine, run)
    for number in range(STEPS):
        before = whole_weights(engine)
        made, batches = step(engine, number, run)
        after = whole_weights(engine)
        moved = any(not torch.equal(after[key], weight) for key, weight in before.items())
        result["made"].append({**made, "moved": moved})
        result["batches"].append(batches)
        if run.get("disk") and number == 1:
            result["said"] = limited(engine, folder / name)
            result["hashes"] = engine.save(folder / name / "whole", {}, {})
    if run.get("disk"):
        engine.load(folder / name / "whole")
        result["again"] = engine.hashes({})
    result["drawn"] = drawn(engine)
    weights = whole_weights(engine)
    if engine.rank == 0:
        torch.save(weights, folder / f"{name}.pt")
    (folder / f"{name}-{engine.rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    rank, world, port, folder, runs = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    join_group(rank, world, "127.0.0.1", port, world)
    for name, run in runs.items():
        print(f"== {name}", flush=True)
        try:
            execute(Path(folder), name, {"budget": BUDGET, **run})
        except RunStopped as error:
            print(f"RunStopped: {error}", flush=True)
            os._exit(1)  # at a usual exit it would wait for the others
    torch.distributed.destroy_process_group()
