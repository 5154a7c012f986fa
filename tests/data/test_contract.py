"""The scoring contract: how a sequence is closed and cut, the same for training and scoring."""

import pytest

from grm_ray.data.chat import ScoringContract


def contract(truncation, length=6):
    return ScoringContract("t", "v", 9, length, truncation)


def test_an_answer_is_closed_once():
    assert contract("left").close([1, 2]) == [1, 2, 9]
    assert contract("left").close([1, 9]) == [1, 9]


@pytest.mark.parametrize(
    ("truncation", "fitted"),
    [("left", ([2, 3], [4, 5, 6, 9])), ("right", ([1, 2, 3], [4, 5, 9])), ("drop", None)],
)
def test_a_row_that_is_too_long(truncation, fitted):
    assert contract(truncation).fit([1, 2, 3], [4, 5, 6, 9]) == fitted
    assert contract(truncation).fit([1], [4, 9]) == ([1], [4, 9])


def test_an_answer_longer_than_everything_is_dropped():
    assert contract("left").fit([1, 2], [3] * 8 + [9]) is None
