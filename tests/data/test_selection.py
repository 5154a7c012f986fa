"""Which rows are used follows from prompts and a seed, and stays what it was."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_ray.data.selection import choose, hold_out, shared

NAMES = st.lists(st.integers(0, 2**64 - 1), max_size=60)


@settings(deadline=None)
@given(NAMES, st.integers(0, 5), st.integers(1, 70))
def test_a_limit_takes_the_seeds_rows_and_never_more(prompts, seed, limit):
    rows = choose(prompts, limit=limit, seed=seed)
    reference = np.random.default_rng([seed, 1]).permutation(len(prompts))[:limit]
    assert rows.tolist() == sorted(reference)
    assert choose(prompts, limit=limit, shuffle=False).tolist() == list(range(len(prompts)))[:limit]


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), max_size=60), st.integers(1, 5), st.booleans())
def test_no_prompt_has_more_than_its_pairs_and_none_is_lost(prompts, most, shuffle):
    rows = choose(prompts, pairs_per_prompt=most, shuffle=shuffle)
    kept = [prompts[row] for row in rows]
    assert {p: kept.count(p) for p in prompts} == {p: min(most, prompts.count(p)) for p in prompts}
    assert rows.tolist() == sorted(set(rows.tolist()))


def test_the_seed_says_which_pairs_of_a_prompt_are_kept_and_the_limit_comes_after():
    prompts = [1] * 50 + [2]
    drawn = {tuple(choose(prompts, pairs_per_prompt=1, seed=seed)) for seed in range(5)}
    assert len(drawn) > 2 and {rows[-1] for rows in drawn} == {50}
    assert len(choose(prompts, limit=2, pairs_per_prompt=1)) == 2
    assert choose(prompts, 10, seed=0, source=0).tolist() != choose(prompts, 10, source=1).tolist()


@settings(deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=3), st.floats(0.01, 0.9), st.integers(0, 5))
def test_held_out_prompts_are_a_share_of_all(prompts, share, seed):
    names = sorted({name for source in prompts for name in source})
    out = hold_out(prompts, share, seed)
    expected = max(1, round(share * len(names))) if names else 0
    assert len(out) == len(set(out.tolist())) == expected
    assert set(out.tolist()) <= set(names)
    assert not len(hold_out(prompts, 0.0, seed))


@pytest.mark.parametrize(("count", "share", "seed"), [(1, 0.1, 0), (48, 0.25, 0), (500, 0.1, 7)])
def test_a_seeds_split_is_that_of_its_prompt_ids_in_sorted_order(count, share, seed):
    # Runs before sources were mixtures drew from the sorted ids as strings.
    names = np.random.default_rng(99).integers(0, 2**63, count).astype(np.uint64)
    ids = sorted(f"{name:016x}" for name in names.tolist())
    drawn = np.random.default_rng(seed).permutation(ids)[: max(1, round(share * count))]
    out = hold_out([np.repeat(names, 3)], share, seed)
    assert {f"{name:016x}" for name in out.tolist()} == set(drawn.tolist())


def test_shared_prompts_are_found_at_the_ends_of_their_range():
    assert shared([0, 2**64 - 1, 5], [2**64 - 1, 7]).tolist() == [False, True, False]
    assert shared([], [1]).tolist() == [] and shared([1], []).tolist() == [False]
