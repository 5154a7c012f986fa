"""A checkpoint is whole or not there; the old goes only after the new has come."""

import json

import pytest

from grm_ray.config.errors import ConfigError, NotWritten
from grm_ray.runtime.snapshot import Snapshots


def fill(value):
    def write(folder):
        (folder / "data").write_text(value)
        return {"value": value}

    return write


def test_the_newest_are_kept(tmp_path):
    snapshots = Snapshots(tmp_path, keep=2)
    for step in (5, 10, 15):
        snapshots.write(step, fill(str(step)))
    assert [p.name for p in snapshots.all()] == ["step-00010", "step-00015"]
    path, state = snapshots.latest()
    assert state == {"step": 15, "value": "15"} and (path / "data").read_text() == "15"


def test_a_later_step_with_more_digits_is_the_newer_one(tmp_path):
    snapshots = Snapshots(tmp_path, keep=2)
    for step in (99_000, 100_000, 101_000):
        snapshots.write(step, fill(str(step)))
    assert [p.name for p in snapshots.all()] == ["step-100000", "step-101000"]
    assert snapshots.latest()[1]["step"] == 101_000


def test_a_failed_write_leaves_the_old_one_standing(tmp_path):
    snapshots = Snapshots(tmp_path, keep=1)
    snapshots.write(1, fill("good"))

    def fail(folder):
        raise OSError("disk full")

    with pytest.raises(NotWritten, match="step-00002 could not be written .disk full"):
        snapshots.write(2, fail)
    assert snapshots.latest()[1]["step"] == 1


def test_an_unfinished_folder_is_not_taken(tmp_path):
    (tmp_path / "step-00003.part").mkdir(parents=True)
    (tmp_path / "step-00003.part" / "state.json").write_text(json.dumps({"step": 3}))
    (tmp_path / "step-00004").mkdir()
    assert Snapshots(tmp_path, keep=1).latest() is None


def test_a_checkpoint_that_meets_a_full_disk_leaves_nothing_and_stops_nothing(small_disk):
    """A real full disk: the older checkpoint stays readable, and the next one has room again."""
    snapshots, said = Snapshots(small_disk, keep=2), []

    def large(folder):
        (folder / "data").write_bytes(bytes(4 << 20))
        return {}

    snapshots.attempt(1, fill("good"), said.append)
    snapshots.attempt(2, large, said.append)
    (warning,) = said
    assert "step 2" in warning and "No space left" in warning and "step-00001" in warning
    assert [path.name for path in small_disk.iterdir()] == ["step-00001"]
    snapshots.attempt(3, fill("good again"), said.append)
    assert snapshots.latest()[1] == {"step": 3, "value": "good again"} and len(said) == 1
    with pytest.raises(NotWritten, match="step-00004 could not be written .No space left"):
        snapshots.write(4, large)
    assert [path.name for path in snapshots.all()] == ["step-00001", "step-00003"]


def test_a_mistake_of_ours_is_no_full_disk(tmp_path):
    def fail(folder):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Snapshots(tmp_path, keep=1).attempt(1, fail, print)


def test_what_is_wrong_with_the_newest_is_told_with_the_way_to_the_one_before(tmp_path):
    snapshots = Snapshots(tmp_path, keep=2)
    for step in (5, 10):
        snapshots.write(step, fill(str(step)))
    newest = tmp_path / "step-00010"
    way = f"; to continue from step-00005, move {newest} away"
    with pytest.raises(ConfigError, match="weights differ" + way), snapshots.reading(newest):
        raise ConfigError("weights differ")
    (newest / "state.json").write_text("{")
    with pytest.raises(ConfigError, match="state.json is damaged .*" + way):
        snapshots.latest()
    newest.rename(tmp_path / "away")
    assert snapshots.latest()[1]["step"] == 5
    (tmp_path / "step-00005" / "state.json").write_text("{")
    with pytest.raises(ConfigError, match=r"is damaged \(.*\)$"):
        snapshots.latest()
