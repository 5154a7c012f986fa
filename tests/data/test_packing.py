"""No row is lost or doubled in packing, whatever the counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grm_ray.data.order import EpochOrder
from grm_ray.data.packing import WORTH_SHARING, micro_batches, pack, share_prompts, split_by_tokens

LENGTHS = st.lists(st.integers(1, 500), max_size=60)


@given(LENGTHS, st.integers(1, 2000))
def test_micro_batches_keep_every_row_and_the_budget(lengths, budget):
    groups = micro_batches(lengths, budget)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or sum(lengths[r] for r in group) <= budget


@given(LENGTHS, st.integers(1, 9))
def test_ranks_share_all_rows_evenly(lengths, ranks):
    shares = split_by_tokens(lengths, ranks)
    assert len(shares) == ranks
    assert sorted(row for share in shares for row in share) == list(range(len(lengths)))
    loads = [sum(lengths[r] for r in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths, default=0)


def test_a_packed_sequence_holds_each_prompt_once_and_its_answers_go_on_from_there():
    one, two = np.array([1, 2, 3]), np.array([9])
    packed = pack([(one, [np.array([4, 5]), np.array([6])]), (two, [np.array([7, 8])])])
    assert packed.input_ids_T.tolist() == [1, 2, 3, 4, 5, 6, 9, 7, 8]
    assert packed.position_ids_T.tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2]
    assert packed.last_A.tolist() == [4, 5, 8]
    at, before, owner = packed.answer_tokens()
    assert at.tolist() == [3, 4, 5, 7, 8]
    assert before.tolist() == [2, 3, 2, 6, 7]
    assert owner.tolist() == [0, 0, 1, 2, 2]
    at, before, owner = packed.answer_tokens([2, 1])
    assert (at.tolist(), before.tolist(), owner.tolist()) == ([7, 8, 5], [6, 7, 2], [0, 0, 1])


def test_what_all_prompts_begin_with_is_there_once():
    start = np.arange(10, 10 + WORTH_SHARING)
    one, two = np.append(start, [1, 2]), np.append(start, 3)
    packed = pack([(one, [np.array([4])]), (two, [np.array([5]), np.array([6])])])
    assert packed.shared == WORTH_SHARING
    assert packed.input_ids_T.tolist() == [*start, 1, 2, 4, 3, 5, 6]
    assert packed.position_ids_T.tolist() == [*range(8), 8, 9, 10, 8, 9, 9]
    assert packed.prompts == ((0, 10), (11, 12), (11, 12))
    assert packed.answer_tokens()[1].tolist() == [9, 11, 11]  # each prompt's own last token
    same = pack([(start, [np.array([4])]), (start, [np.array([5])])])
    assert same.shared == 0  # eight tokens, but each prompt keeps a last one of its own
    far = np.zeros(8 * WORTH_SHARING - len(two) + 1)
    assert pack([(one, [np.array([4])]), (two, [far])]).shared == 0  # little of so long a text
    assert pack([(one, [np.array([4])]), (two, [far[1:]])]).shared == WORTH_SHARING


@pytest.mark.parametrize("group", [([], [[1]]), ([1], []), ([1], [[1], []])])
def test_nothing_to_predict_from_or_to_score_is_an_error(group):
    prompt, answers = group
    with pytest.raises(ValueError, match="a prompt and one or more answers"):
        pack([(np.array(prompt), [np.array(a) for a in answers])])


@given(
    st.lists(st.tuples(st.sampled_from([(1,), (1, 2), (3, 4, 5)]), st.integers(1, 9)), max_size=40),
    st.integers(1, 40),
)
def test_rows_of_one_prompt_share_it_within_the_budget(rows, budget):
    prompts, lengths = [np.array(p) for p, _ in rows], [n for _, n in rows]
    groups = share_prompts(prompts, lengths, budget)
    assert sorted(row for group in groups for row in group) == list(range(len(rows)))
    for group in groups:
        assert len({rows[r][0] for r in group}) == 1
        tokens = len(prompts[group[0]]) + sum(lengths[r] for r in group)
        assert len(group) == 1 or tokens <= budget
    if budget == 40 and sum(lengths) <= 37:
        assert len(groups) == len({p for p, _ in rows})


@given(st.integers(1, 20), st.integers(0, 100), st.integers(1, 50), st.integers(0, 5))
def test_an_order_goes_on_where_it_stopped(count, position, number, seed):
    order = EpochOrder(count, seed)
    together = order.take(0, position + number)
    assert order.take(0, position) + EpochOrder(count, seed).take(position, number) == together
    first_epoch = [row for row, epoch in order.take(0, count)]
    assert sorted(first_epoch) == list(range(count))
