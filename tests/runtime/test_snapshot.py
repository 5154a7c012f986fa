"""A checkpoint is whole or not there; the old goes only after the new has come."""

import json

import pytest

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


def test_a_failed_write_leaves_the_old_one_standing(tmp_path):
    snapshots = Snapshots(tmp_path, keep=1)
    snapshots.write(1, fill("good"))

    def fail(folder):
        raise OSError("disk full")

    with pytest.raises(OSError):
        snapshots.write(2, fail)
    assert snapshots.latest()[1]["step"] == 1


def test_an_unfinished_folder_is_not_taken(tmp_path):
    (tmp_path / "step-00003.part").mkdir(parents=True)
    (tmp_path / "step-00003.part" / "state.json").write_text(json.dumps({"step": 3}))
    (tmp_path / "step-00004").mkdir()
    assert Snapshots(tmp_path, keep=1).latest() is None
