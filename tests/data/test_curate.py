"""Votes find wrong labels; what is done about them can be taken back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_ray.data import curate

KEYS = st.lists(st.binary(min_size=16, max_size=16), max_size=80)


def votes(seed=0, pairs=1500, features=8, wrong=0.2, voters=3, k=3):
    """Linear reward models, cross-fitted on pairs of which a share of the labels is wrong.

    Returns the votes on the labels as they are, and which labels are wrong.
    """
    rng = np.random.default_rng(seed)
    gold = rng.normal(size=features)
    difference = rng.normal(size=(pairs, features))
    difference *= np.sign(difference @ gold)[:, None]  # chosen minus rejected, right
    prompts = [f"prompt {i // 3}" for i in range(pairs)]
    wrong = curate.flipped([str(i).encode() for i in range(pairs)], wrong, seed)
    labelled = np.where(wrong[:, None], -difference, difference)
    fold = curate.folds(prompts, k, seed)
    d_PM = np.empty((pairs, voters))
    for voter in range(voters):
        for part in range(k):
            seen = np.flatnonzero(fold != part)
            seen = rng.choice(seen, len(seen))  # voters differ by their sample
            weights = np.zeros(features)
            for _ in range(200):  # logistic regression, no intercept: Bradley-Terry
                chance = 1 / (1 + np.exp(labelled[seen] @ weights))
                weights += 0.5 * (labelled[seen] * chance[:, None]).mean(axis=0)
            d_PM[fold == part, voter] = labelled[fold == part] @ weights
    return d_PM, wrong


def test_strength_is_the_voters_mean_and_population_deviation():
    mean_P, std_P = curate.strength([[1, 0.5, -0.2, 0.9]])
    assert mean_P == pytest.approx([0.55]) and std_P == pytest.approx([0.471699], abs=1e-6)
    assert curate.strength([[2.0]])[1].tolist() == [0.0]
    for bad in ([1.0, 2.0], np.zeros((3, 0)), [[1.0, float("nan")]]):
        with pytest.raises(ValueError, match=r"shape \(pairs, voters\)"):
            curate.strength(bad)


def test_low_strength_finds_the_flipped_labels():
    d_PM, wrong = votes()
    mean_P, _ = curate.strength(d_PM)
    low, high = -mean_P[wrong], -mean_P[~wrong]
    auc = np.mean([(low > other).mean() + 0.5 * (low == other).mean() for other in high])
    assert 0.15 < wrong.mean() < 0.25 and auc > 0.9


def test_flipping_the_weakest_mends_most_wrong_labels():
    d_PM, wrong = votes()
    curated = curate.flip_weakest(curate.judged(d_PM), 0.2)
    assert np.mean(curated.flipped_P == wrong) > 0.9 > 1 - wrong.mean()


@settings(deadline=None)
@given(KEYS, st.floats(0, 1), st.floats(0, 1), st.integers(0, 5))
def test_flips_depend_on_the_pair_alone_and_grow_with_the_rate(keys, one, other, seed):
    flips = curate.flipped(keys, one, seed)
    assert flips.tolist() == [bool(curate.flipped([key], one, seed)[0]) for key in keys]
    more = curate.flipped(keys, max(one, other), seed)
    assert not (flips & ~more).any()
    assert not curate.flipped(keys, 0.0, seed).any() and curate.flipped(keys, 1.0, seed).all()


def test_the_share_of_flips_is_the_rate():
    keys = [str(i).encode() for i in range(20000)]
    assert abs(curate.flipped(keys, 0.25, 0).mean() - 0.25) < 0.01
    assert (curate.flipped(keys, 0.25, 0) != curate.flipped(keys, 0.25, 1)).any()


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=90), st.integers(2, 6), st.integers(0, 3))
def test_a_prompt_is_in_one_fold_and_folds_are_even(prompts, k, seed):
    names = [f"p{p}" for p in prompts]
    distinct = sorted(set(names))
    if k > len(distinct):
        with pytest.raises(ValueError, match="folds for"):
            curate.folds(names, k, seed)
        return
    fold = dict(zip(names, curate.folds(names, k, seed).tolist(), strict=True))
    assert curate.folds(names, k, seed).tolist() == [fold[name] for name in names]
    sizes = [list(fold.values()).count(part) for part in range(k)]
    assert sum(sizes) == len(distinct) and max(sizes) - min(sizes) <= 1
    assert curate.folds(names[::-1], k, seed).tolist() == [fold[name] for name in names[::-1]]


def test_a_confident_voter_is_brought_to_the_others_scale():
    d_PM = np.array([[1.0, -100.0], [-1.0, 100.0], [2.0, 200.0], [0.5, 50.0]])
    scale_M = curate.robust_scale(d_PM, axis=0)
    assert scale_M.tolist() == [1.0, 100.0]
    assert curate.strength(d_PM / scale_M)[0] == pytest.approx([0.0, 0.0, 2.0, 0.5])
    assert curate.robust_scale(np.zeros(3)) == 1.0  # nothing to divide by


MEAN = np.array([-2.0, -0.5, 0.1, 1.0, 4.0])


def judged():
    return curate.judged(MEAN[:, None])


def test_each_policy_acts_on_the_weakest_share_and_keeps_the_strength():
    flip = curate.flip_weakest(judged(), 0.6)
    assert flip.action_P.tolist() == ["flip", "flip", "keep", "keep", "keep"]  # 0.1 agrees
    assert flip.signed_P.tolist() == [2.0, 0.5, 0.1, 1.0, 4.0]
    drop = curate.drop_weakest(judged(), 0.2)
    assert drop.action_P.tolist() == ["drop", *["keep"] * 4]
    softened = curate.soften_weakest(judged(), 0.6, 0.1, flip_before_smooth=False)
    assert softened.action_P.tolist() == ["smooth"] * 3 + ["keep"] * 2
    assert softened.columns()["label_smoothing"] == [0.1, 0.1, 0.1, None, None]
    for curated in (flip, drop, softened):
        assert curated.strength_mean_P.tolist() == MEAN.tolist()
        assert set(curated.columns()) == {
            "strength_mean",
            "strength_std",
            "action",
            "label_smoothing",
            "margin",
        }


def test_softening_may_flip_first_and_says_so():
    softened = curate.soften_weakest(judged(), 0.6, 0.1, flip_before_smooth=True)
    assert softened.action_P.tolist() == ["flip+smooth", "flip+smooth", "smooth", "keep", "keep"]
    assert softened.flipped_P.tolist() == [True, True, False, False, False]
    with pytest.raises(TypeError):
        curate.soften_weakest(judged(), 0.6, 0.1)
    after = curate.soften_weakest(
        curate.flip_weakest(judged(), 0.2), 0.4, 0.1, flip_before_smooth=False
    )
    assert after.action_P.tolist() == ["flip+smooth", "smooth", "keep", "keep", "keep"]


def test_margins_are_scaled_and_capped_and_follow_the_label():
    plain = curate.with_margins(judged(), cap=3.0)
    assert plain.margin_P.tolist() == pytest.approx([-2.0, -0.5, 0.1, 1.0, 3.0])
    flipped = curate.with_margins(curate.flip_weakest(judged(), 0.4), cap=3.0)
    assert flipped.margin_P.tolist() == pytest.approx([2.0, 0.5, 0.1, 1.0, 3.0])
    wide = curate.with_margins(curate.judged(10 * MEAN[:, None]), cap=3.0)
    assert wide.margin_P.tolist() == pytest.approx(plain.margin_P.tolist())


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_shares_and_smoothings_that_cannot_be_are_refused(share):
    with pytest.raises(ValueError, match="from 0 to 1"):
        curate.drop_weakest(judged(), share)
    with pytest.raises(ValueError, match=r"below 0\.5"):
        curate.soften_weakest(judged(), 0.1, 0.5, flip_before_smooth=True)


@pytest.mark.parametrize(
    ("policy", "actions", "margins", "smoothings"),
    [
        ("none", [], False, 0),
        ("flip", ["flip", "flip"], False, 0),
        ("soft", ["smooth", "smooth"], False, 2),
        ("flip_soft", ["flip+smooth", "flip+smooth"], False, 2),
        ("margin", [], True, 0),
        ("flip_margin", ["flip", "flip"], True, 0),
        ("drop", ["drop", "drop"], False, 0),
    ],
)
def test_policies_go_by_name(policy, actions, margins, smoothings):
    curated = curate.act(judged(), policy, 0.4, 0.1, 3.0)
    assert curated.action_P.tolist() == [*actions, *["keep"] * (5 - len(actions))]
    columns = curated.columns()
    assert all((margin is not None) == margins for margin in columns["margin"])
    assert sum(value is not None for value in columns["label_smoothing"]) == smoothings
    with pytest.raises(ValueError, match="'flipp' is not known"):
        curate.act(judged(), "flipp", 0.4, 0.1, 3.0)
