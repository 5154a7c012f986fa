"""Losses on pairs of rewards and on graded attributes, and the penalties on rewards."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from grm_ray.objectives.preference import (
    bradley_terry,
    centering,
    margin,
    regression,
    scaled,
    score_l2,
)

NAN = math.nan
ONE = torch.tensor([1.0])


def _near(value: float) -> object:
    return pytest.approx(value, abs=1e-6)


# ----------------------------------------------------------------------- pairs


def test_golden_numbers_of_a_pair_half_a_unit_apart() -> None:
    assert bradley_terry(1.5 * ONE, ONE).item() == _near(0.474077)
    assert bradley_terry(1.5 * ONE, ONE, smoothing_B=0.1 * ONE).item() == _near(0.524077)
    assert margin(1.5 * ONE, ONE, 0.7 * ONE).item() == _near(0.798139)


def test_golden_numbers_of_the_strengths_1_2_3() -> None:
    pairs = torch.full((3,), 0.5), torch.zeros(3), torch.tensor([1, 2, 3])
    assert margin(*pairs).tolist() == _near([0.974077, 1.701413, 2.578890])
    assert scaled(*pairs).tolist() == _near([0.474077, 0.948154, 1.422231])


def test_golden_numbers_of_the_penalties() -> None:
    assert 0.01 * centering(2.0 * ONE, ONE).item() == _near(0.09)
    assert 0.005 * score_l2(2.0 * ONE, ONE).item() == _near(0.025)


def test_margin_0_and_weight_1_are_bradley_terry() -> None:
    chosen_B, rejected_B = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    for smoothing_B in (None, torch.linspace(0.0, 0.4, 9)):
        expected_B = bradley_terry(chosen_B, rejected_B, smoothing_B)
        assert torch.equal(margin(chosen_B, rejected_B, torch.zeros(9), smoothing_B), expected_B)
        assert torch.equal(scaled(chosen_B, rejected_B, torch.ones(9), smoothing_B), expected_B)


def test_no_smoothing_and_smoothing_0_are_the_same() -> None:
    chosen_B = torch.linspace(-80.0, 80.0, 9)
    plain_B = bradley_terry(chosen_B, torch.zeros(9))
    assert torch.equal(bradley_terry(chosen_B, torch.zeros(9), torch.zeros(9)), plain_B)


def test_smoothing_pulls_the_difference_to_the_log_odds_of_a_right_label() -> None:
    chosen_B = torch.log(torch.tensor([9.0, 9.0 * 1.1, 9.0 / 1.1])).requires_grad_()
    bradley_terry(chosen_B, torch.zeros(3), torch.full((3,), 0.1)).sum().backward()
    assert chosen_B.grad is not None
    at, above, below = chosen_B.grad.tolist()
    assert at == pytest.approx(0.0, abs=1e-7)
    assert below < -1e-3 and above > 1e-3


def test_scaled_has_the_gradient_of_pairs_that_stand_there_m_times() -> None:
    chosen_B = torch.tensor([0.3, -1.0, 2.0], requires_grad=True)
    rejected_B, times_B = torch.tensor([0.1, 0.5, -0.5]), torch.tensor([3, 1, 2])
    (once,) = torch.autograd.grad(scaled(chosen_B, rejected_B, times_B).sum(), chosen_B)
    repeated_B = bradley_terry(
        chosen_B.repeat_interleave(times_B), rejected_B.repeat_interleave(times_B)
    )
    (often,) = torch.autograd.grad(repeated_B.sum(), chosen_B)
    torch.testing.assert_close(once, often)


def test_scaled_multiplies_pair_by_pair_and_not_the_means() -> None:
    chosen_B, margin_B = torch.tensor([-2.0, 2.0]), torch.tensor([3.0, 1.0])
    loss_B = scaled(chosen_B, torch.zeros(2), margin_B)
    plain_B = bradley_terry(chosen_B, torch.zeros(2))
    assert loss_B.mean().item() == pytest.approx(((3 * plain_B[0] + plain_B[1]) / 2).item())
    assert loss_B.mean().item() > 1.2 * (plain_B.mean() * margin_B.mean()).item()


def test_losses_are_one_a_pair_and_fp32_whatever_the_data_holds() -> None:
    chosen_B, rejected_B = torch.randn(2, 5).bfloat16()
    strength_B = torch.ones(5, dtype=torch.float64)
    for loss_B in (
        bradley_terry(chosen_B, rejected_B, 0.1 * strength_B),
        margin(chosen_B, rejected_B, strength_B),
        scaled(chosen_B, rejected_B, torch.ones(5, dtype=torch.int64)),
        centering(chosen_B, rejected_B),
        score_l2(chosen_B, rejected_B),
    ):
        assert loss_B.shape == (5,)
        assert loss_B.dtype == torch.float32


def test_half_types_are_upcast_before_they_are_subtracted() -> None:
    chosen_B = torch.tensor([256.0]).bfloat16()  # in bfloat16, 256 - 0.5 rounds to 256
    assert margin(chosen_B, torch.tensor([0.5]).bfloat16(), 255.5 * ONE).item() == pytest.approx(
        math.log(2.0)
    )


def test_losses_stay_finite_far_from_zero() -> None:
    far_B = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss_B = bradley_terry(far_B, torch.zeros(2))
    loss_B.sum().backward()
    assert loss_B.tolist() == [1e4, 0.0]
    assert far_B.grad is not None
    assert far_B.grad.tolist() == [-1.0, 0.0]
    smoothed_B = bradley_terry(far_B, torch.zeros(2), torch.full((2,), 0.1))
    assert smoothed_B.tolist() == pytest.approx([9e3, 1e3])


def test_centering_is_zero_only_where_the_pair_lies_around_zero() -> None:
    assert centering(torch.tensor([3.0, 3.0]), torch.tensor([-3.0, -2.0])).tolist() == [0.0, 1.0]


def test_gradients_of_pair_losses_are_those_of_finite_differences() -> None:
    chosen_B, rejected_B = torch.tensor(
        [[0.3, -1.0, 4.0], [0.1, 0.5, -3.0]], dtype=torch.float64
    ).requires_grad_()
    column_B = torch.tensor([0.1, 0.0, 0.4], dtype=torch.float64)
    for loss in (
        bradley_terry,
        partial(bradley_terry, smoothing_B=column_B),
        partial(margin, margin_B=column_B, smoothing_B=column_B),
        partial(scaled, margin_B=column_B, smoothing_B=column_B),
        centering,
        score_l2,
    ):
        assert torch.autograd.gradcheck(loss, (chosen_B, rejected_B))


REWARD = st.floats(-30.0, 30.0, width=32)


@given(REWARD, REWARD, st.floats(0.0, 1.0), st.floats(-5.0, 5.0))
def test_a_pair_loss_sees_only_the_difference_and_a_swap_swaps_the_smoothing(
    chosen: float, rejected: float, wrong: float, shift: float
) -> None:
    c_B, r_B = torch.tensor([[chosen], [rejected]], dtype=torch.float64)
    a_B = torch.tensor([wrong], dtype=torch.float64)
    loss_B = bradley_terry(c_B, r_B, a_B)
    torch.testing.assert_close(bradley_terry(c_B + shift, r_B + shift, a_B), loss_B)
    torch.testing.assert_close(bradley_terry(r_B, c_B, 1.0 - a_B), loss_B)
    torch.testing.assert_close(margin(c_B + shift, r_B, a_B * 0 + shift, a_B), loss_B)


def test_a_pair_without_its_number_is_named() -> None:
    two = torch.zeros(2)
    for loss in (margin, scaled):
        with pytest.raises(ValueError, match="pair 1 has no margin"):
            loss(two, two, torch.tensor([1.0, NAN]))
        with pytest.raises(
            ValueError, match=r"margin has shape \(2, 1\), but the pairs have \(2,\)"
        ):
            loss(two, two, torch.zeros(2, 1))
    with pytest.raises(ValueError, match="pair 0 has no smoothing"):
        bradley_terry(two, two, torch.tensor([NAN, 0.1]))
    with pytest.raises(ValueError, match="pair 1 has margin -0.5: a scaled loss needs 0 or more"):
        scaled(two, two, torch.tensor([1.0, -0.5]))


# ------------------------------------------------------------------ attributes


def test_regression_sums_what_was_graded() -> None:
    predicted_BA = torch.tensor([[1.0, 2.0, 3.0], [0.0, 4.0, 9.0]])
    labels_BA = torch.tensor([[3.0, 2.0, 0.0], [NAN, 1.0, NAN]])
    squared_B, counted_B = regression(predicted_BA, labels_BA)
    assert squared_B.tolist() == [13.0, 9.0]
    assert counted_B.tolist() == [3.0, 1.0]
    assert squared_B.dtype == counted_B.dtype == torch.float32


def test_an_attribute_without_grade_has_gradient_0_and_not_nan() -> None:
    predicted_BA = torch.tensor([[1.0, 2.0], [0.0, 1e30]], requires_grad=True)
    squared_B, _ = regression(predicted_BA, torch.tensor([[NAN, 0.0], [3.0, NAN]]))
    squared_B.sum().backward()
    assert predicted_BA.grad is not None
    assert predicted_BA.grad.tolist() == [[0.0, 4.0], [-6.0, 0.0]]


def test_one_attribute_without_gaps_is_the_mean_squared_error() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted_BA, labels_BA = torch.randn(2, 7, 1, generator=generator)
    squared_B, counted_B = regression(predicted_BA, labels_BA)
    mean = squared_B.sum() / counted_B.sum()
    torch.testing.assert_close(mean, F.mse_loss(predicted_BA, labels_BA))


def test_a_constant_prediction_costs_the_variance_and_the_squared_bias() -> None:
    labels_BA = torch.tensor([[0.0], [1.0], [4.0], [3.0]])
    squared_B, counted_B = regression(torch.full((4, 1), 2.5), labels_BA)
    variance, bias = labels_BA.var(correction=0).item(), 2.5 - labels_BA.mean().item()
    assert (squared_B.sum() / counted_B.sum()).item() == pytest.approx(variance + bias**2)


def test_gradient_of_the_regression_is_that_of_finite_differences() -> None:
    predicted_BA = torch.tensor([[1.0, 2.0], [0.5, 3.0]], dtype=torch.float64, requires_grad=True)
    labels_BA = torch.tensor([[NAN, 4.0], [1.0, 0.0]])
    assert torch.autograd.gradcheck(lambda p: regression(p, labels_BA)[0], predicted_BA)


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), min_size=1, max_size=8))
def test_the_mean_over_grades_is_the_same_however_rows_are_split(grades: list[list[int]]) -> None:
    labels_BA = torch.tensor([[*map(float, row), *[NAN] * (3 - len(row))] for row in grades])
    predicted_BA = torch.full_like(labels_BA, 1.5)
    squared_B, counted_B = regression(predicted_BA, labels_BA)
    parts = [regression(p[None], v[None]) for p, v in zip(predicted_BA, labels_BA, strict=True)]
    assert torch.equal(squared_B, torch.cat([squared for squared, _ in parts]))
    flat = [grade for row in grades for grade in row]
    assert counted_B.sum().item() == len(flat)
    assert squared_B.sum().item() == sum((1.5 - grade) ** 2 for grade in flat)


def test_wrong_attributes_are_named() -> None:
    with pytest.raises(ValueError, match="row 1 has no label"):
        regression(torch.zeros(2, 2), torch.tensor([[1.0, NAN], [NAN, NAN]]))
    for predicted, labels in (((2, 3), (2, 1)), ((2,), (2,))):
        with pytest.raises(ValueError, match="both must be rows by attributes"):
            regression(torch.zeros(predicted), torch.zeros(labels))
