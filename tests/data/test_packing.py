"""No row is lost or doubled in packing, whatever the counts."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grm_ray.data.order import EpochOrder
from grm_ray.data.packing import micro_batches, pad_right, split_by_tokens

LENGTHS = st.lists(st.integers(1, 500), max_size=60)


@given(LENGTHS, st.integers(1, 2000))
def test_micro_batches_keep_every_row_and_the_budget(lengths, budget):
    groups = micro_batches(lengths, budget)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[r] for r in group) <= budget


@given(LENGTHS, st.integers(1, 9))
def test_ranks_share_all_rows_evenly(lengths, ranks):
    shares = split_by_tokens(lengths, ranks)
    assert len(shares) == ranks
    assert sorted(row for share in shares for row in share) == list(range(len(lengths)))
    loads = [sum(lengths[r] for r in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths, default=0)


def test_right_padding():
    ids, lengths = pad_right([np.array([1, 2, 3]), np.array([4])], 0)
    assert ids.tolist() == [[1, 2, 3], [4, 0, 0]] and lengths.tolist() == [3, 1]


@given(st.integers(1, 20), st.integers(0, 100), st.integers(1, 50), st.integers(0, 5))
def test_an_order_goes_on_where_it_stopped(count, position, number, seed):
    order = EpochOrder(count, seed)
    together = order.take(0, position + number)
    assert order.take(0, position) + EpochOrder(count, seed).take(position, number) == together
    first_epoch = [row for row, epoch in order.take(0, count)]
    assert sorted(first_epoch) == list(range(count))
