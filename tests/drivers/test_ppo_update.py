"""Which rows an update has, and with which rank they are."""

from itertools import chain

import numpy as np
import pytest

from grm_ray.drivers.ppo.update import minibatches, of_ranks

ITEMS = [[0, 4], [1], [2, 3, 5], [6], [7, 8]]
SIZES = [30, 10, 50, 10, 20]


def flat(update):
    return sorted(row for item in update for row in item)


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_an_epoch_has_every_row_once_whatever_the_ranks(count):
    plan = minibatches(ITEMS, 3, count, [0, 1])
    assert len(plan) == 3 * count
    for epoch in range(3):
        updates = plan[epoch * count : (epoch + 1) * count]
        assert sorted(chain(*map(flat, updates))) == list(range(9))
    for ranks in (1, 2, 3, 11):
        shares = of_ranks(plan, ITEMS, SIZES, ranks)
        for number, update in enumerate(plan):
            assert sorted(chain(*(share[number] for share in shares))) == flat(update)
        homes = {}
        for rank, share in enumerate(shares):
            for row in chain(*share):
                assert homes.setdefault(row, rank) == rank


def test_orders_differ_between_epochs_and_steps_and_come_again():
    def order(seed, epochs=1):
        return [
            row
            for update in minibatches([[i] for i in range(50)], epochs, 5, seed)
            for [row] in update
        ]

    assert order([0, 1]) == order([0, 1]) != order([0, 2])
    two = order([0, 1], epochs=2)
    assert two[:50] != two[50:]


def test_answers_to_a_prompt_stay_together_where_there_are_prompts_enough():
    items = [[2 * i, 2 * i + 1] for i in range(8)]
    shares = of_ranks(minibatches(items, 1, 2, [0, 1]), items, [10] * 8, 2)
    for share in shares:
        assert [len(part) for part in share] == [4, 4]
        for part in share:
            assert {row // 2 for row in part} == {row // 2 for row in part if row % 2}
    # With fewer, a rank would have nothing to do.
    shares = of_ranks(minibatches(items, 1, 8, [0, 1]), items, [10] * 8, 2)
    assert all(len(part) == 1 for share in shares for part in share)


def test_loads_are_even_in_each_update():
    rng = np.random.default_rng(0)
    items = [[i] for i in range(40)]
    sizes = rng.integers(20, 200, 40).tolist()
    shares = of_ranks(minibatches(items, 1, 4, [0, 1]), items, sizes, 2)
    for one, other in zip(*shares, strict=True):
        loads = [sum(sizes[row] for row in part) for part in (one, other)]
        assert max(loads) < 1.2 * min(loads)


def test_nothing_to_learn_from_is_no_update_of_anybody():
    plan = minibatches([], 2, 3, [0, 1])
    assert of_ranks(plan, [], [], 2) == [[[]] * 6, [[]] * 6]
