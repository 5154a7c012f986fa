"""Memory that runs out, numbers that are none and a full disk each have their end, on all ranks."""

import json
import re
from pathlib import Path

import pytest
import torch

from tests.training.launch import launch, tiny_backbone

pytestmark = pytest.mark.timeout(1200)  # the first test waits for all the runs

RANK = Path(__file__).parent / "failing_ranks.py"
ABOVE = 40  # of the 64 tokens that a micro-batch may have
KINDS = {
    "stage 0": {"stage": 0},
    "stage 1": {"stage": 1},
    "stage 2": {"stage": 2},
    "stage 3": {"stage": 3},
    "bf16 stage 0": {"stage": 0, "dtype": "bfloat16"},
    "bf16 stage 1": {"stage": 1, "dtype": "bfloat16"},
    "stage 1 offload": {"stage": 1, "offload": "optimizer"},
    "stage 2 offload": {"stage": 2, "offload": "optimizer"},
}
# Where ranks wait for one another in a pass, it cannot be tried again.
FAILS = {
    **{(1, name, "forward"): KINDS[name] for name in KINDS},
    **{(1, name, "backward"): KINDS[name] for name in KINDS},
    **{(2, name, "forward"): KINDS[name] for name in KINDS if "3" not in name},
    **{(2, name, "backward"): KINDS[name] for name in KINDS if name[-1] in "01" or "1 o" in name},
}
STUCK = {"stage 2": "backward", "stage 3": "forward"}
NUMBERS = {(2, name, number): KINDS[name] for name in KINDS for number in ("nan", "inf")}


# The others take minutes, and are slow.
QUICK = {(1, "stage 0", "forward"), (2, "stage 1", "backward"), (2, "stage 2", "nan")}


def named(world, name, what):
    return f"{world} {name} {what}"


def each(keys):
    """`keys` as parameters, slow but for the quick ones."""
    marks = {key: () if key in QUICK else pytest.mark.slow for key in keys}
    return [pytest.param(key, id=named(*key), marks=mark) for key, mark in marks.items()]


@pytest.fixture(scope="module")
def results(tmp_path_factory, request):
    """What came of every run that a chosen test asks for, by name, of each rank."""
    here = [item for item in request.session.items if item.path == request.path]
    calls = [getattr(item, "callspec", None) for item in here]
    wanted = {call.params["key"] for call in calls if call is not None and "key" in call.params}
    folder = tmp_path_factory.mktemp("failures")
    tiny_backbone(folder / "model")
    for world in (1, 2):
        alone = {name for of, name, _ in wanted if of == world} | {"stage 0"}
        runs = {named(world, name, "alone"): KINDS[name] for name in sorted(alone)}
        runs |= {
            named(*key): {**run, "fail": key[2], "above": ABOVE}
            for key, run in FAILS.items()
            if key[0] == world and key in wanted
        }
        runs |= {
            named(*key): {**run, "number": key[2]}
            for key, run in NUMBERS.items()
            if key[0] == world and key in wanted
        }
        if world == 2:
            runs["2 disk"] = {"stage": 2, "disk": True}
        launch(RANK, world, runs, folder)
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    found |= {path.stem: torch.load(path) for path in folder.glob("*.pt")}
    return found


@pytest.mark.parametrize("key", each(FAILS))
def test_a_micro_batch_that_does_not_fit_is_halved_and_counts_once(results, key):
    world, kind, _ = key
    name, alone = named(*key), named(world, kind, "alone")
    for rank in range(world):
        run, undisturbed = results[f"{name}-{rank}"], results[f"{alone}-{rank}"]
        assert [made["micro_batch_tokens"] for made in run["made"]] == [32] * 4, (
            "kept, on all ranks"
        )
        assert [made["micro_batch_tokens"] for made in undisturbed["made"]] == [64] * 4
        assert sum(run["batches"]) > sum(undisturbed["batches"])
        norms = [[made["grad_norm"] for made in one["made"]] for one in (run, undisturbed)]
        assert norms[0] == pytest.approx(norms[1], rel=0.02 if "bf16" in kind else 1e-4)
    start = results[named(world, "stage 0", "alone")]
    for weight, told in results[alone].items():
        # bfloat16 rounds the gradients of other micro-batches differently, and Adam's first steps
        # have the learning rate's size whatever the gradient's.
        near = 1e-2 if "bf16" in kind else 1e-4
        assert torch.allclose(results[name][weight], told, atol=near), weight
    assert start.keys() == results[name].keys()


@pytest.mark.parametrize("key", each(NUMBERS))
def test_a_loss_that_is_no_number_changes_no_weight_on_any_rank(results, key):
    runs = [results[f"{named(*key)}-{rank}"]["made"] for rank in range(2)]
    for made in runs:
        assert [one["moved"] for one in made] == [True, False, False, True]
        assert [one["skipped_updates"] for one in made] == [0, 1, 1, 0]
        assert [one["skipped_in_a_row"] for one in made] == [0, 1, 2, 0]
    last = [made[-1]["grad_norm"] for made in runs]
    assert last[0] == last[1] and 0 < last[0] < 100
    assert all(torch.isfinite(weight).all() for weight in results[named(*key)].values())


def test_a_checkpoint_that_one_rank_cannot_write_stops_none(results):
    for rank in range(2):
        run = results[f"2 disk-{rank}"]
        assert "could not be written" in run["said"] and "2 disk/full" in run["said"], run["said"]
        assert run["again"] == run["hashes"], "the one written next reads back"


@pytest.mark.slow
@pytest.mark.parametrize("kind", STUCK)
def test_ranks_that_wait_for_one_that_has_no_memory_are_told_what_to_set(tmp_path, kind):
    tiny_backbone(tmp_path / "model")
    run = {**KINDS[kind], "fail": STUCK[kind], "above": ABOVE}
    said = launch(RANK, 2, {"stuck": run}, tmp_path, failing=True)
    assert f"RunStopped: out of memory, at 64 tokens a micro-batch: ZeRO {kind} on 2 ranks" in said
    assert "optimizer.tokens_per_micro_batch=32" in said


def test_a_row_that_fits_no_memory_ends_with_what_to_do(tmp_path):
    tiny_backbone(tmp_path / "model")
    run = {"stage": 0, "fail": "forward", "above": 4}
    said = launch(RANK, 1, {"row": run}, tmp_path, failing=True)
    assert re.search(r"RunStopped: out of memory, at \d+ tokens .* cannot be split", said), said
