"""Weights arrive as they were sent, or not at all."""

import os

import pytest
import torch

from grm_ray.runtime import weights
from grm_ray.runtime.weights import ChecksumError, Version, WeightUpdate


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
    stale = weights.SHARED_MEMORY / "grm_ray-weights-999999999-0.1"
    stale.write_bytes(b"x")
    weights.remove_stale()
    assert not stale.exists() and update.is_here


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
