"""A mixture's rows come as often as their weights say, in an order that a position restores."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_ray.data.order import EpochOrder, MixtureOrder

WEIGHTS = st.sampled_from([0.1, 0.29, 0.3, 0.5, 1.0, 1.5, 2.0, 3.7])
SOURCES = st.lists(st.tuples(st.integers(1, 12), WEIGHTS), min_size=1, max_size=3)


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(0, 60), st.integers(1, 50), st.integers(0, 5), st.booleans())
def test_one_source_of_weight_one_is_an_epoch_order(count, position, number, seed, shuffle):
    mixture = MixtureOrder([count], [1.0], seed, shuffle)
    assert mixture.take(position, number) == EpochOrder(count, seed, shuffle).take(position, number)


@settings(deadline=None)
@given(SOURCES, st.integers(0, 80), st.integers(1, 40), st.integers(0, 3), st.booleans())
def test_a_mixture_goes_on_where_it_stopped(sources, position, number, seed, shuffle):
    counts, weights = zip(*sources, strict=True)

    def order():
        return MixtureOrder(counts, weights, seed, shuffle)

    together = order().take(0, position + number)
    assert len(together) == position + number
    assert order().take(0, position) + order().take(position, number) == together


@settings(deadline=None)
@given(SOURCES, st.integers(0, 3))
def test_ten_epochs_hand_out_ten_times_the_weight(sources, seed):
    counts, weights = zip(*sources, strict=True)
    order = MixtureOrder(counts, weights, seed)
    taken = order.take(0, order.length(10))
    assert {epoch for _, epoch in taken} <= set(range(10))
    offset = 0
    for count, weight in sources:
        rows = [row for row, _ in taken if offset <= row < offset + count]
        assert abs(len(rows) - 10 * weight * count) < 1
        offset += count
    assert len(taken) == len([row for row, _ in taken if 0 <= row < sum(counts)])


def test_an_epoch_has_the_whole_part_of_a_weight_of_every_row():
    order = MixtureOrder([10, 100], [2.5, 0.2], seed=1)
    epochs = [Counter() for _ in range(3)]
    for row, epoch in order.take(0, order.length(3)):
        epochs[epoch][row] += 1
    fresh = set()
    for rows in epochs:
        first = [rows[row] for row in range(10)]
        assert sorted(first) == [2] * 5 + [3] * 5
        second = [row for row in rows if row >= 10]
        assert len(second) == 20 and all(rows[row] == 1 for row in second)
        fresh.add(tuple(sorted(second)))
    assert len(fresh) == 3  # another fifth each epoch


def test_a_row_too_rare_for_every_epoch_comes_in_some():
    order = MixtureOrder([1, 4], [0.3, 1.0], seed=0)
    rows = [row for row, _ in order.take(0, order.length(10))]
    assert rows.count(0) == 3 and rows.count(1) == 10


def test_lengths_of_broken_epochs_lie_between():
    order = MixtureOrder([10, 20], [1.0, 0.5])
    assert [order.length(e) for e in (0, 0.5, 1, 1.5, 2)] == [0, 10, 20, 30, 40]


def test_sources_are_shuffled_together_or_not_at_all():
    rows = [row for row, _ in MixtureOrder([50, 50], seed=0).take(0, 100)]
    assert sorted(rows) == list(range(100)) and 10 < sum(row < 50 for row in rows[:50]) < 40
    plain = [row for row, _ in MixtureOrder([3, 3], [1, 2], shuffle=False).take(0, 9)]
    assert plain == [0, 1, 2, 3, 4, 5, 3, 4, 5]


@pytest.mark.parametrize(
    ("counts", "weights"), [([], []), ([0], [1.0]), ([2], [1.0, 1.0]), ([2], [0.0]), ([2], [-1.0])]
)
def test_nothing_to_hand_out_or_no_weight_is_an_error(counts, weights):
    with pytest.raises(ValueError, match="at least one row|weights above 0"):
        MixtureOrder(counts, weights)
