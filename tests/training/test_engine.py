"""ZeRO stages, numbers of ranks and interruptions change where a run's numbers are, not them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.training.launch import launch, tiny_backbone

pytestmark = pytest.mark.timeout(1200)  # the first test waits for all the runs

RANK = Path(__file__).parent / "ranks.py"
HALF = 10  # the step after which runs are saved
EXACT = 1e-4
FLOAT = {
    "stage 0": {"stage": 0},
    "stage 1": {"stage": 1},
    "stage 2": {"stage": 2, "save": True},
    "stage 3": {"stage": 3, "save": True},
}
BF16 = {
    "bf16 stage 0": {"stage": 0, "dtype": "bfloat16", "save": True},
    "bf16 stage 1": {"stage": 1, "dtype": "bfloat16", "until": HALF},
    "bf16 stage 2": {"stage": 2, "dtype": "bfloat16", "save": True},
    "bf16 stage 3": {"stage": 3, "dtype": "bfloat16", "until": HALF},
}
LORA = {"lora stage 0": {"stage": 0, "lora": True, "save": True}}
OFFLOAD = {
    "stage 2 offload": {"stage": 2, "offload": "optimizer"},
    "stage 3 offload": {"stage": 3, "offload": "all"},
}
ONE = {f"1 {name}": run for name, run in FLOAT.items()}
TWO = {f"2 {name}": run for name, run in {**FLOAT, **BF16, **LORA, **OFFLOAD}.items()}
LOADED_BY_TWO = {
    "2 stage 2 again": {"stage": 2, "load": "2 stage 2"},
    "2 stage 3 again": {"stage": 3, "load": "2 stage 3"},
    "2 stage 3 from 2": {"stage": 3, "load": "2 stage 2"},
    "2 stage 2 from 3": {"stage": 2, "load": "2 stage 3"},
    "2 stage 2 from 1 rank": {"stage": 2, "load": "1 stage 2"},
    "2 stage 3 from 1 rank": {"stage": 3, "load": "1 stage 3"},
    "2 bf16 stage 0 again": {"stage": 0, "dtype": "bfloat16", "load": "2 bf16 stage 0"},
    "2 bf16 stage 2 again": {"stage": 2, "dtype": "bfloat16", "load": "2 bf16 stage 2"},
    "2 lora stage 3 from 0": {"stage": 3, "lora": True, "load": "2 lora stage 0"},
}
LOADED_BY_ONE = {
    "1 stage 2 again": {"stage": 2, "load": "1 stage 2"},
    "1 stage 0 from 2 ranks": {"stage": 0, "load": "2 stage 2"},
    "1 stage 3 from 2 ranks": {"stage": 3, "load": "2 stage 3"},
}
LOADED = {**LOADED_BY_ONE, **LOADED_BY_TWO}
# What `make test` has time for; the rest is slow.
USUAL = {
    *("1 stage 0", "1 stage 2"),
    *("2 stage 0", "2 stage 2", "2 stage 3", "2 bf16 stage 2", "2 lora stage 0"),
    *("2 stage 2 again", "2 stage 3 from 2", "2 stage 2 from 1 rank", "2 bf16 stage 2 again"),
}
REFUSED = {
    "flipped": "lm.model.norm.weight: weights read back differ",
    "cut": "lm.model.norm.weight cannot be read",
    "without a file": "lm.model.norm.weight cannot be read (No such file",
    "without an index": "index.json is missing",
    "with half an index": "index.json is damaged",
    "without random states": "random-0.pt is missing",
    "with another norm": "lm.model.norm.weight has shape (63,), here (64,)",
    "without a norm": "lm.model.norm.weight is not in it",
    "with another layer": "lm.more.weight is in it, but is not trained by this config",
}
ANOTHER_SCHEDULE = {"another schedule": {"stage": 2, "load": "1 stage 2", "total_steps": 21}}


def damage(saved: Path) -> None:
    """A copy of a one-rank checkpoint for every way to be refused, beside it."""
    for kind in REFUSED:
        shutil.copytree(saved, saved.with_name(kind))
    index, weight, at = "index.json", "lm.model.norm.weight", saved.with_name
    text = (saved / index).read_text()
    tensors = json.loads(text)["parameters"][weight]["file"]

    # The first bytes of a safetensors file say how long its table of contents is.
    raw = bytearray((saved / tensors).read_bytes())
    header = int.from_bytes(raw[:8], "little")
    begin, _ = json.loads(raw[8 : 8 + header])[f"{weight}/weight"]["data_offsets"]
    raw[8 + header + begin] ^= 1
    (at("flipped") / tensors).write_bytes(raw)
    (at("cut") / tensors).write_bytes(raw[: len(raw) // 2])
    (at("without a file") / tensors).unlink()
    (at("without an index") / index).unlink()
    (at("with half an index") / index).write_text(text[: len(text) // 2])
    (at("without random states") / "random-0.pt").unlink()

    for kind in ("with another norm", "without a norm", "with another layer"):
        changed = json.loads(text)
        entry = changed["parameters"].pop(weight)
        if kind != "without a norm":
            changed["parameters"][weight] = entry
        if kind == "with another norm":
            entry["shape"] = [63]
        if kind == "with another layer":
            changed["parameters"]["lm.more.weight"] = entry
        (at(kind) / index).write_text(json.dumps(changed))


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """What came of the usual runs and of every refused one, by name."""
    folder = tmp_path_factory.mktemp("engine")
    tiny_backbone(folder / "model")
    launch(RANK, 1, {n: run for n, run in ONE.items() if n in USUAL}, folder)
    damage(folder / "1 stage 2")
    refused = {f"refused {kind}": {"stage": 2, "load": kind} for kind in REFUSED}
    runs = {n: run for n, run in {**TWO, **LOADED_BY_TWO}.items() if n in USUAL}
    launch(RANK, 2, {**runs, **refused, **ANOTHER_SCHEDULE}, folder)
    return collected(folder)


@pytest.fixture(scope="module")
def everything(usual):
    """What came of every run, by name."""
    folder = usual["folder"]
    launch(RANK, 1, {n: run for n, run in ONE.items() if n not in USUAL}, folder)
    runs = {n: run for n, run in {**TWO, **LOADED_BY_TWO}.items() if n not in USUAL}
    launch(RANK, 2, runs, folder)
    launch(RANK, 1, LOADED_BY_ONE, folder)
    return collected(folder)


@pytest.fixture
def results(request, usual):
    slow = request.node.get_closest_marker("slow")
    return request.getfixturevalue("everything") if slow else usual


def collected(folder):
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    for path in folder.glob("*.pt"):
        found[path.stem]["weights"] = torch.load(path)
    return {**found, "folder": folder}


def cases(names):
    """Parameters, of which those that are not usual are slow."""
    return [n if n in USUAL else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", cases([*ONE, *(f"2 {n}" for n in [*FLOAT, *OFFLOAD])]))
def test_every_stage_and_split_learns_the_same(results, name):
    run, whole = results[name], results["1 stage 0"]
    assert whole["losses"][-1] < 0.5 * whole["losses"][0], "nothing was learned"
    assert run["losses"] == pytest.approx(whole["losses"], abs=EXACT)
    assert run["norms"] == pytest.approx(whole["norms"], rel=1e-3)
    assert [run["before"], run["after"]] == pytest.approx(
        [whole["before"], whole["after"]], abs=EXACT
    )


@pytest.mark.parametrize("name", cases([*ONE, *TWO, *LOADED]))
def test_stage_3_cuts_the_weights(results, name):
    assert (results[name]["left"] == 0) == ("stage 3" in name)


@pytest.mark.parametrize("name", cases([f"2 {name}" for name in BF16]))
def test_bf16_learns_the_same_roughly(results, name):
    run, whole = results[name], results["1 stage 0"]["losses"]
    assert run["losses"] == pytest.approx(whole[: len(run["losses"])], abs=1e-2)
    assert all(weight.dtype == torch.bfloat16 for weight in run["weights"].values())


@pytest.mark.parametrize("name", cases([n for n in LOADED if "again" in n]))
def test_as_many_ranks_go_on_bit_for_bit(results, name):
    unbroken, resumed = results[name.removesuffix(" again")], results[name]
    assert resumed["extra"] == {"step": HALF}
    assert resumed["hashes"] == unbroken["hashes"]
    assert resumed["drawn"] == unbroken["drawn"] and len(set(resumed["drawn"])) == int(name[0])
    assert resumed["losses"] == unbroken["losses"][HALF:]
    for kind in ("weights", "optimizer", "schedule"):
        assert resumed["final"][kind] == unbroken["final"][kind]
    for key, weight in unbroken["weights"].items():
        assert torch.equal(resumed["weights"][key], weight), key


@pytest.mark.parametrize("name", cases([n for n in LOADED if "from" in n]))
def test_another_stage_or_number_of_ranks_goes_on_alike(results, name):
    saved = LOADED[name]["load"]
    unbroken, resumed = results[saved], results[name]
    assert resumed["extra"] == {"step": HALF}
    for kind in ("weights", "optimizer", "schedule", "normalizers"):
        assert resumed["hashes"][kind] == unbroken["hashes"][kind]
    assert resumed["losses"] == pytest.approx(unbroken["losses"][HALF:], abs=EXACT)
    assert resumed["after"] == pytest.approx(unbroken["after"], abs=EXACT)
    for key, weight in unbroken["weights"].items():
        assert torch.allclose(resumed["weights"][key], weight, atol=EXACT), key


@pytest.mark.slow
def test_more_ranks_than_were_saved_get_random_states_of_their_own(results):
    first, second = (results[f"2 stage {stage} from 1 rank"]["drawn"] for stage in (2, 3))
    assert first[0] == results["1 stage 2"]["drawn"][0], "rank 0 goes on with its own"
    assert first[1] == second[1], "the new rank's follow from seed, rank and step"
    assert first[0] != first[1]


def test_frozen_weights_are_not_saved(results):
    index = json.loads((results["folder"] / "2 lora stage 0" / "index.json").read_text())
    names = index["parameters"]
    assert all(".lora_" in name or name.startswith("head.") for name in names)


def test_each_rank_writes_its_share_in_files_that_do_not_grow_on(results):
    index = json.loads((results["folder"] / "2 stage 3" / "index.json").read_text())
    files = {entry["file"] for entry in index["parameters"].values()}
    assert len(files) > 2 and {file.split("-")[1] for file in files} == {"0", "1"}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_checkpoint_that_is_damaged_or_of_another_model_is_refused(results, kind):
    assert REFUSED[kind] in results[f"refused {kind}"]["refused"]


def test_a_checkpoint_of_another_schedule_is_refused(results):
    assert "is from a run of 20 steps, not 21" in results["another schedule"]["refused"]
