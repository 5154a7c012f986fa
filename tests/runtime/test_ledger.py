"""Every uid counts once, and the file tells what was truly learned from."""

import pytest

from grm_ray.config.errors import NotWritten
from grm_ray.runtime.ledger import LedgerFile, StepLedger, seed, uid


def test_a_row_reported_twice_counts_once():
    ledger = StepLedger(["a", "b"], frozenset({"generated", "scored"}))
    assert ledger.record("generated", ["a"]) == ["a"]
    assert ledger.record("generated", ["a", "b"]) == ["b"]
    assert ledger.lacking("scored") == ["a", "b"] and not ledger.complete
    ledger.record("scored", ["b", "a"])
    assert ledger.complete


def test_a_row_that_is_forgotten_needs_all_of_it_again():
    ledger = StepLedger(["a", "b"], frozenset({"generated", "scored"}))
    ledger.record("generated", ["a", "b"])
    ledger.record("scored", ["a"])
    ledger.forget(["a"])
    assert (ledger.left("generated"), ledger.left("scored")) == (1, 2)
    assert ledger.lacking("generated") == ["a"] and not ledger.has("scored", "a")
    for stage in ("generated", "scored"):
        ledger.record(stage, ["a", "b"])
    assert ledger.complete


def test_an_unknown_row_is_an_error():
    with pytest.raises(KeyError):
        StepLedger(["a"], frozenset()).record("scored", ["x"])


def test_seeds_follow_from_names():
    assert seed(uid("p", 0, 1), 3) == seed("p:0:1", 3)
    assert len({seed(uid("p", e, s), 3) for e in range(10) for s in range(10)}) == 100
    assert 0 <= seed("x", 0) < 2**31


def test_the_file_is_cut_at_the_checkpoint_and_forgives_a_torn_line(tmp_path):
    ledger = LedgerFile(tmp_path / "ledger.jsonl")
    for step in (1, 2, 3):
        ledger.append(step, [f"p{step}"])
    with (tmp_path / "ledger.jsonl").open("a") as out:
        out.write('{"step": 4, "ui')
    assert list(ledger.steps()) == [1, 2, 3]
    ledger.cut_after(2)
    ledger.append(3, ["again"])
    assert ledger.steps() == {1: ["p1"], 2: ["p2"], 3: ["again"]}


def test_a_step_that_cannot_be_written_stops_the_run_and_costs_no_earlier_one(small_disk):
    ledger = LedgerFile(small_disk / "ledger.jsonl")
    ledger.append(1, ["a:0:0"])
    with pytest.raises(NotWritten, match=r"ledger.jsonl could not be written \(No space left"):
        ledger.append(2, ["b:0:0" * 900_000])
    assert ledger.steps() == {1: ["a:0:0"]}
