"""From the scores of several reward models to one reward a row."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grm_ray.rewards import aggregate
from grm_ray.rewards.aggregate import MemberNormalizer
from tests.rewards.properties import near as _near
from tests.rewards.properties import property_test
from tests.rewards.properties import random as _random

R = torch.tensor([[1.0], [2.0], [6.0]])

AGGREGATES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": aggregate.mean,
    "median": aggregate.median,
    "minimum": aggregate.minimum,
    "mean_minus_variance": partial(aggregate.mean_minus_variance, weight=0.5),
    "mean_minus_std": aggregate.mean_minus_std,
    "entropic": partial(aggregate.entropic, beta=0.7),
    "cvar": partial(aggregate.cvar, tau=0.45),
}
HOMOGENEOUS = ("mean", "median", "minimum", "mean_minus_std", "cvar")
each_aggregate = pytest.mark.parametrize("name", AGGREGATES)


@st.composite
def scores(draw: st.DrawFn) -> torch.Tensor:
    members, rows = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    values = st.floats(-20.0, 20.0)
    drawn = draw(st.lists(values, min_size=members * rows, max_size=members * rows))
    return torch.tensor(drawn, dtype=torch.float64).view(members, rows)


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# ----------------------------------------------------------------------- golden numbers


def test_golden_numbers_of_the_scores_1_2_6() -> None:
    assert aggregate.mean(R).item() == 3.0
    assert aggregate.median(R).item() == 2.0
    assert aggregate.minimum(R).item() == 1.0
    assert aggregate.mean_minus_variance(R, 0.5).item() == _near(2 / 3)
    assert aggregate.mean_minus_variance(R, 0.1).item() == _near(2.5333333)
    assert aggregate.mean_minus_variance(R, 0.1, ddof=1).item() == _near(2.3)
    assert aggregate.mean_minus_std(R).item() == _near(0.839753)
    assert aggregate.disagreement(R).square().item() == _near(4.6666667)


@pytest.mark.parametrize(
    ("beta", "expected"), [(0.01, 1.010986), (1.0, 1.780437), (5.0, 2.581299), (100.0, 2.976768)]
)
def test_golden_numbers_of_the_entropic_aggregate(beta: float, expected: float) -> None:
    assert aggregate.entropic(R, beta).item() == _near(expected)


@pytest.mark.parametrize(
    ("tau", "expected"), [(0.01, 1.0), (1 / 3, 1.0), (0.5, 4 / 3), (2 / 3, 1.5), (1.0, 3.0)]
)
def test_golden_numbers_of_cvar(tau: float, expected: float) -> None:
    assert aggregate.cvar(R, tau).item() == _near(expected)


def test_rows_are_aggregated_each_for_itself() -> None:
    scores_KB = torch.tensor([[1.0, 6.0, 0.0], [2.0, 1.0, 0.0], [6.0, 2.0, 0.0]])
    for name, of in AGGREGATES.items():
        found_B = of(scores_KB)
        assert found_B.tolist() == _near([of(R).item(), of(R).item(), 0.0]), name


def test_the_median_of_an_even_number_is_the_mean_of_the_two_in_the_middle() -> None:
    assert aggregate.median(torch.tensor([[4.0], [1.0], [100.0], [2.0]])).item() == 3.0


# ----------------------------------------------------------------------- limits


@each_aggregate
def test_one_member_or_identical_members_give_that_member(name: str) -> None:
    one_KB = _random(1, 7)
    _close(AGGREGATES[name](one_KB), one_KB[0])
    _close(AGGREGATES[name](one_KB.expand(4, 7)), one_KB[0])
    assert aggregate.disagreement(one_KB).tolist() == [0.0] * 7


def test_entropic_goes_from_the_minimum_to_the_mean() -> None:
    for dtype in (torch.float32, torch.float64):
        scores_KB = R.to(dtype)
        for beta in (1e-300, 1e-12, 1e-4):
            assert aggregate.entropic(scores_KB, beta).item() == pytest.approx(1.0, abs=2e-4)
        for beta in (1e6, 1e12, 1e300):
            assert aggregate.entropic(scores_KB, beta).item() == pytest.approx(3.0, abs=1e-5)


def test_entropic_is_uwo_to_second_order() -> None:
    uwo = aggregate.mean_minus_variance(R, 1 / 200).item()
    assert uwo == _near(2.976667)
    assert aggregate.entropic(R, 100.0).item() == pytest.approx(uwo, abs=2e-4)


def test_uwo_can_fall_below_the_minimum_and_entropic_cannot() -> None:
    assert aggregate.mean_minus_variance(R, 1.0).item() < 1.0 < aggregate.entropic(R, 0.5).item()


def test_entropic_holds_far_from_zero() -> None:
    far_KB = torch.tensor([[1e4], [-1e4]])
    assert aggregate.entropic(far_KB, 0.1).item() == pytest.approx(-1e4 + 0.1 * math.log(2))


def test_cvar_is_the_best_threshold_plus_the_mean_shortfall() -> None:
    scores_KB, tau = _random(1000, 1), 0.1
    shortfall = (scores_KB - scores_KB.T).clamp(max=0.0).mean(dim=0)  # for each score as threshold
    best = (scores_KB[:, 0] + shortfall / tau).max().item()
    assert aggregate.cvar(scores_KB, tau).item() == pytest.approx(best, abs=1e-12)


# ----------------------------------------------------------------------- properties


@each_aggregate
@property_test
@given(data=st.data())
def test_the_order_of_members_changes_nothing(name: str, data: st.DataObject) -> None:
    scores_KB = data.draw(scores())
    order_K = data.draw(st.permutations(range(len(scores_KB))))
    _close(AGGREGATES[name](scores_KB[order_K]), AGGREGATES[name](scores_KB))
    _close(aggregate.disagreement(scores_KB[order_K]), aggregate.disagreement(scores_KB))


@each_aggregate
@property_test
@given(scores_KB=scores(), shift=st.floats(-50.0, 50.0))
def test_a_shift_of_all_members_shifts_the_aggregate(
    name: str, scores_KB: torch.Tensor, shift: float
) -> None:
    # Far looser than `_close`: a spread near 0 loses half of its digits in the square root.
    shifted_B = AGGREGATES[name](scores_KB + shift)
    torch.testing.assert_close(shifted_B, AGGREGATES[name](scores_KB) + shift, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", HOMOGENEOUS)
@property_test
@given(scores_KB=scores(), factor=st.floats(0.01, 100.0))
def test_a_positive_factor_goes_through(name: str, scores_KB: torch.Tensor, factor: float) -> None:
    _close(AGGREGATES[name](factor * scores_KB), factor * AGGREGATES[name](scores_KB))


@property_test
@given(scores(), st.floats(0.001, 1000.0), st.floats(0.001, 1.0))
def test_minimum_entropic_cvar_and_mean_come_in_this_order(
    scores_KB: torch.Tensor, beta: float, tau: float
) -> None:
    low_B, high_B = aggregate.minimum(scores_KB) - 1e-9, aggregate.mean(scores_KB) + 1e-9
    for between_B in (aggregate.entropic(scores_KB, beta), aggregate.cvar(scores_KB, tau)):
        assert (low_B <= between_B).all() and (between_B <= high_B).all()
    assert (aggregate.mean_minus_std(scores_KB) <= high_B).all()


@property_test
@given(scores(), st.floats(0.0, 5.0), st.floats(0.0, 5.0))
def test_uwo_does_not_rise_with_its_weight(scores_KB: torch.Tensor, a: float, b: float) -> None:
    less, more = sorted((a, b))
    lower_B = aggregate.mean_minus_variance(scores_KB, more)
    assert (lower_B <= aggregate.mean_minus_variance(scores_KB, less) + 1e-9).all()
    assert torch.equal(aggregate.mean_minus_variance(scores_KB, 0.0), aggregate.mean(scores_KB))


@property_test
@given(scores(), st.floats(0.001, 1.0), st.floats(0.001, 1.0))
def test_cvar_rises_with_tau(scores_KB: torch.Tensor, a: float, b: float) -> None:
    less, more = sorted((a, b))
    assert (aggregate.cvar(scores_KB, less) <= aggregate.cvar(scores_KB, more) + 1e-9).all()


@property_test
@given(scores(), st.floats(0.001, 1.0))
def test_cvar_ends_at_minimum_and_mean(scores_KB: torch.Tensor, share: float) -> None:
    lowest_B = aggregate.cvar(scores_KB, share / len(scores_KB))
    _close(lowest_B, aggregate.minimum(scores_KB))
    _close(aggregate.cvar(scores_KB, 1.0), aggregate.mean(scores_KB))


# ----------------------------------------------------------------------- normaliser


def test_reference_answers_get_mean_0_and_std_1_from_each_member() -> None:
    references_KM = _random(3, 50) * torch.tensor([[0.1], [1.0], [30.0]]) + 5.0
    normalizer = MemberNormalizer.fit(references_KM)
    normal_KM = normalizer.normalize(references_KM)
    assert normal_KM.mean(dim=1).tolist() == _near([0.0] * 3)
    assert normal_KM.std(dim=1, correction=0).tolist() == _near([1.0] * 3)
    assert normalizer.normalize(references_KM[:, :2].float()).dtype == torch.float32


def test_the_spread_is_that_of_the_population() -> None:
    normalizer = MemberNormalizer.fit(torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]]))
    assert normalizer.means == [3.0, 1.0]
    assert normalizer.stds == _near([math.sqrt(14 / 3), math.sqrt(2)])
    assert normalizer.normalize(torch.tensor([[3.0], [1.0]])).tolist() == [[0.0], [0.0]]


@each_aggregate
@property_test
@given(
    seed=st.integers(0, 99),
    shifts=st.lists(st.floats(-100.0, 100.0), min_size=3, max_size=3),
    factors=st.lists(st.floats(0.01, 100.0), min_size=3, max_size=3),
)
def test_a_members_zero_and_unit_change_no_normalised_aggregate(
    name: str, seed: int, shifts: list[float], factors: list[float]
) -> None:
    references_KM, scores_KB = _random(3, 20, seed=seed), _random(3, 5, seed=seed + 1000)
    shift_K, factor_K = torch.tensor([shifts, factors], dtype=torch.float64)[..., None]
    plain = MemberNormalizer.fit(references_KM).normalize(scores_KB)
    other = MemberNormalizer.fit(factor_K * references_KM + shift_K)
    found_B = AGGREGATES[name](other.normalize(factor_K * scores_KB + shift_K))
    torch.testing.assert_close(found_B, AGGREGATES[name](plain), rtol=1e-6, atol=1e-6)


def test_the_normalizers_state_survives_json_bit_for_bit() -> None:
    normalizer = MemberNormalizer.fit(_random(3, 7))
    restored = MemberNormalizer(**json.loads(json.dumps(normalizer.state_dict())))
    assert restored == normalizer
    assert torch.equal(restored.normalize(_random(3, 4)), normalizer.normalize(_random(3, 4)))


def test_a_member_without_spread_is_named() -> None:
    with pytest.raises(ValueError, match="member 1 gives the same score to all of 3 reference"):
        MemberNormalizer.fit(torch.tensor([[1.0, 2.0, 3.0], [0.1, 0.1, 0.1]]))
    with pytest.raises(ValueError, match="member 0 gives the same score to all of 1 reference"):
        MemberNormalizer.fit(torch.tensor([[1.0]]))


def test_scores_of_another_number_of_members_are_refused() -> None:
    with pytest.raises(ValueError, match="scores of 1 members, but scales of 3"):
        MemberNormalizer.fit(_random(3, 7)).normalize(_random(1, 4))


# ----------------------------------------------------------------------- refusals


@each_aggregate
def test_scores_that_are_not_finite_or_not_there_are_refused(name: str) -> None:
    bad_KB = torch.tensor([[0.0, 1.0, 2.0], [0.0, math.nan, -math.inf]])
    with pytest.raises(ValueError, match="member 1 has 2 scores that are not finite"):
        AGGREGATES[name](bad_KB)
    for shape in ((3,), (0, 3), (3, 0), (1, 2, 3)):
        with pytest.raises(ValueError, match="2 dimensions, none of them empty, not shape"):
            AGGREGATES[name](torch.zeros(shape))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: aggregate.mean_minus_variance(R, -0.1), "0 or more, not -0.1"),
        (lambda: aggregate.mean_minus_variance(R, math.nan), "0 or more, not nan"),
        (lambda: aggregate.mean_minus_variance(R, 0.1, ddof=2), "0 or 1, not 2"),
        (lambda: aggregate.mean_minus_variance(R[:1], 0.1, ddof=1), "2 members or more"),
        (lambda: aggregate.mean_minus_std(R, -1.0), "0 or more, not -1.0"),
        (lambda: aggregate.entropic(R, 0.0), "beta must be above 0, not 0.0"),
        (lambda: aggregate.cvar(R, 0.0), "at most 1, not 0.0"),
        (lambda: aggregate.cvar(R, 1.1), "at most 1, not 1.1"),
    ],
)
def test_parameters_out_of_range_are_refused(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_half_precision_is_aggregated_in_fp32() -> None:
    for name, of in AGGREGATES.items():
        found_B = of(R.bfloat16())
        assert found_B.dtype == torch.float32, name
        assert found_B.item() == _near(of(R).item()), name
