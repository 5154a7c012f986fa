"""Weights arrive as they were sent, or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from grm_ray.runtime import weights
from grm_ray.runtime.weights import ChecksumError, Version, WeightUpdate
from tests.conftest import ROOT


@pytest.fixture
def sent():
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(7, dtype=torch.bfloat16),
        "c": torch.ones(()),
    }
    files = weights.WeightFiles()
    yield tensors, files.write(tensors.items(), Version(1, 2))
    files.remove()


def test_round_trip(sent):
    tensors, update = sent
    again = WeightUpdate.from_dict(update.as_dict())
    assert again == update and again.is_here
    for name, tensor in weights.read(again):
        assert tensor.dtype == tensors[name].dtype and torch.equal(tensor, tensors[name])


def test_one_flipped_byte_is_refused(sent):
    _, update = sent
    with open(update.path, "r+b") as file:
        file.seek(9)
        byte = file.read(1)
        file.seek(9)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ChecksumError, match="1.2"):
        list(weights.read(update))


def test_two_versions_stand_side_by_side_and_a_smaller_one_leaves_no_tail():
    files = weights.WeightFiles()
    first = files.write([("a", torch.zeros(100))], Version(0, 1))
    second = files.write([("a", torch.ones(100))], Version(0, 2))
    assert [dict(weights.read(u))["a"][0].item() for u in (first, second)] == [0.0, 1.0]
    third = files.write([("a", torch.full((3,), 3.0))], Version(0, 3))
    assert third.path == first.path and dict(weights.read(third))["a"].tolist() == [3.0] * 3
    files.remove()
    assert not any(map(os.path.exists, (first.path, second.path)))


def test_versions_grow_although_the_step_goes_back():
    assert Version(0, 9) < Version(1, 3) < Version(1, 4)


def test_files_of_dead_writers_are_removed(sent):
    _, update = sent
    code = (
        "import os; from grm_ray.runtime.weights import WeightFiles; files = WeightFiles(); "
        "print(files._paths[0], flush=True); os._exit(1)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    stale = Path(said.stdout.strip())
    assert stale.exists(), said.stderr
    weights.remove_stale()
    assert not stale.exists() and update.is_here


def test_files_that_another_user_left_are_left(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "SHARED_MEMORY", tmp_path)
    (tmp_path / "grm_ray-weights-1-a").write_bytes(b"x")

    def refuse(path):
        raise PermissionError(1, "not yours", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    weights.remove_stale()


def test_bytes_of_another_machine_are_here_as_long_as_they_are_read(sent):
    tensors, update = sent
    blob = np.fromfile(update.path, dtype=np.uint8)
    with weights.laid_here(blob, update) as local:
        weights.remove_stale()
        assert local.path != update.path and local.is_here
        assert {name for name, _ in weights.read(local)} == set(tensors)
    assert not os.path.exists(local.path)


def test_room_taken_up_beforehand_is_written_over_and_cut_to_size():
    files = weights.WeightFiles()
    try:
        files.reserve(4096)
        update = files.write([("a", torch.ones(3))], Version(1, 1))
        assert os.path.getsize(update.path) == 64
        assert [name for name, _ in weights.read(update)] == ["a"]
        files.reserve(2**62)  # more than there is: nothing happens
    finally:
        files.remove()
