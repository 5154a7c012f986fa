"""Rewards against the rewards of reference answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grm_ray.rewards import reference
from grm_ray.rewards.reference import conjunction, lsc, par, quantile_reference
from tests.rewards.properties import near as _near
from tests.rewards.properties import property_test, seeds
from tests.rewards.properties import random as _random

ONE = torch.tensor([1.0])
UNIT_BM = torch.tensor([[-1.0, 1.0]]) / math.sqrt(2)  # mean 0, sample standard deviation 1

SHAPINGS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "centred": reference.centred,
    "par": par,
    "steep par": partial(par, slope=3.0),
    "centred_tanh": reference.centred_tanh,
    "lsc": lsc,
    "empirical lsc": partial(lsc, quantile=0.5, empirical=True),
}
each_shaping = pytest.mark.parametrize("name", SHAPINGS)

# ----------------------------------------------------------------------- PAR


def test_golden_numbers_of_par() -> None:
    assert par(ONE, ONE[:, None]).item() == 0.5
    assert par(ONE, torch.tensor([[0.0, 2.0]])).item() == 0.5
    assert par(torch.tensor([0.7]), torch.zeros(1, 1)).item() == _near(0.668188)
    assert par(torch.tensor([0.35]), torch.zeros(1, 1), slope=2.0).item() == _near(0.668188)


def test_log_of_par_is_lsc_against_the_same_single_reference() -> None:
    rewards_B, references_BM = _random(20), _random(20, 1, seed=1)
    torch.testing.assert_close(
        par(rewards_B, references_BM).log(), lsc(rewards_B, references_BM), rtol=1e-9, atol=1e-9
    )
    assert lsc(torch.tensor([0.7]), torch.zeros(1, 1)).exp().item() == _near(0.668188)


@property_test
@given(seeds)
def test_par_lies_between_0_and_1_and_rises_with_the_reward(seed: int) -> None:
    references_BM = _random(1, 4, seed=seed).expand(30, 4)
    rewards_B = torch.linspace(-20.0, 20.0, 30, dtype=torch.float64)
    shaped_B = par(rewards_B, references_BM)
    assert (shaped_B > 0).all() and (shaped_B < 1).all()
    assert (shaped_B.diff() > 0).all()


def test_the_gradient_of_par_is_at_most_a_quarter() -> None:
    rewards_B = torch.linspace(-6.0, 6.0, 13, dtype=torch.float64, requires_grad=True)
    par(rewards_B, torch.zeros(13, 1)).sum().backward()
    assert rewards_B.grad is not None
    assert rewards_B.grad.max().item() == 0.25 and rewards_B.grad.argmax().item() == 6


def test_tanh_is_par_with_slope_2_on_another_scale() -> None:
    rewards_B, references_BM = 3 * _random(20), _random(20, 5, seed=1)
    torch.testing.assert_close(
        reference.centred_tanh(rewards_B, references_BM),
        2 * par(rewards_B, references_BM, slope=2.0) - 1,
    )


def test_the_centred_reward_is_taken_from_the_mean_reference() -> None:
    found_B = reference.centred(torch.tensor([1.0, 5.0]), torch.tensor([[0.0, 4.0], [1.0, 1.0]]))
    assert found_B.tolist() == [-1.0, 4.0]


# ----------------------------------------------------------------------- LSC


def test_golden_numbers_of_lsc() -> None:
    assert quantile_reference(UNIT_BM).item() == _near(1.036433)
    assert lsc(ONE, UNIT_BM).item() == _near(-0.711530)
    assert lsc(quantile_reference(UNIT_BM), UNIT_BM).item() == _near(-math.log(2))


def test_the_derivative_of_lsc_is_1_minus_the_chance_to_be_good() -> None:
    rewards_B = torch.linspace(-5.0, 5.0, 11, dtype=torch.float64, requires_grad=True)
    lsc(rewards_B, torch.zeros(11, 1)).sum().backward()
    torch.testing.assert_close(rewards_B.grad, 1.0 - torch.sigmoid(rewards_B.detach()))


def test_lsc_stays_finite_for_the_worst_answers_unless_a_floor_holds_it() -> None:
    rewards_B, references_BM = torch.tensor([-1e4, -11.0, 0.0, 1e4]), torch.zeros(4, 1)
    found_B = lsc(rewards_B, references_BM)
    assert found_B.tolist() == pytest.approx([-1e4, -11.0, -math.log(2), 0.0], abs=1e-4)
    assert lsc(rewards_B, references_BM, floor=-10.0).tolist() == pytest.approx(
        [-10.0, -10.0, -math.log(2), 0.0], abs=1e-6
    )


def test_the_empirical_quantile_is_interpolated() -> None:
    references_BM = torch.tensor([[4.0, 1.0, 2.0, 3.0, 5.0], [0.0, 0.0, 0.0, 0.0, 10.0]])
    assert quantile_reference(references_BM, 0.5, empirical=True).tolist() == [3.0, 0.0]
    found_B = quantile_reference(references_BM, 0.85, empirical=True)
    assert found_B.tolist() == _near([4.4, 4.0])
    assert quantile_reference(references_BM, 0.5).tolist() == _near([3.0, 2.0])


def test_one_reference_is_its_own_quantile() -> None:
    for empirical in (False, True):
        assert quantile_reference(ONE[:, None], 0.85, empirical).item() == 1.0


# ----------------------------------------------------------------------- conjunction


def test_golden_numbers_of_two_properties() -> None:
    found_B = conjunction(torch.tensor([[1.0, 3.0, 0.0], [-2.0, -3.0, 0.0]]))
    assert found_B.tolist() == _near([-2.440190, -3.097175, -1.386294])
    chance = torch.sigmoid(torch.tensor(1.0)) * torch.sigmoid(torch.tensor(-2.0))
    assert found_B[0].item() == _near(chance.log().item())


def test_weights_multiply_the_terms() -> None:
    centred_KB = _random(3, 5)
    found_B = conjunction(centred_KB, torch.tensor([2.0, 0.0, 1.0]))
    expected_B = conjunction(centred_KB[[0, 0, 2]])
    torch.testing.assert_close(found_B, expected_B)
    assert torch.equal(conjunction(centred_KB, torch.ones(3)), conjunction(centred_KB))


def test_one_property_alone_is_lsc() -> None:
    rewards_B, references_BM = _random(5), _random(5, 4, seed=1)
    centred_KB = (rewards_B - quantile_reference(references_BM))[None]
    torch.testing.assert_close(conjunction(centred_KB), lsc(rewards_B, references_BM))


# ----------------------------------------------------------------------- properties


@each_shaping
@property_test
@given(seed=seeds, constants=st.lists(st.floats(-100.0, 100.0), min_size=6, max_size=6))
def test_a_constant_for_all_answers_to_a_prompt_changes_nothing(
    name: str, seed: int, constants: list[float]
) -> None:
    rewards_B, references_BM = _random(6, seed=seed), _random(6, 4, seed=seed + 1000)
    constant_B = torch.tensor(constants, dtype=torch.float64)
    found_B = SHAPINGS[name](rewards_B + constant_B, references_BM + constant_B[:, None])
    expected_B = SHAPINGS[name](rewards_B, references_BM)
    torch.testing.assert_close(found_B, expected_B, rtol=1e-9, atol=1e-9)


@each_shaping
@property_test
@given(seed=seeds)
def test_answers_to_one_prompt_keep_their_order(name: str, seed: int) -> None:
    rewards_B = _random(9, seed=seed)
    references_BM = _random(1, 4, seed=seed + 1000).expand(9, 4)
    shaped_B = SHAPINGS[name](rewards_B, references_BM)
    assert torch.equal(shaped_B.argsort(), rewards_B.argsort())


@each_shaping
def test_half_precision_is_shaped_in_fp32(name: str) -> None:
    rewards_B, references_BM = torch.tensor([0.5, 2.0]), torch.tensor([[0.0, 1.0], [0.5, -1.0]])
    found_B = SHAPINGS[name](rewards_B.bfloat16(), references_BM.bfloat16())
    assert found_B.dtype == torch.float32
    torch.testing.assert_close(found_B, SHAPINGS[name](rewards_B, references_BM))


# ----------------------------------------------------------------------- monitor, refusals


def test_a_row_is_saturated_where_it_is_far_from_every_reference() -> None:
    rewards_B = torch.tensor([8.0, 8.1, -9.0, 0.0])
    references_BM = torch.tensor([[0.0, 0.0], [0.0, 0.2], [0.0, 0.0], [20.0, -20.0]])
    assert reference.saturation(rewards_B, references_BM) == 0.5
    assert reference.saturation(rewards_B, references_BM, bound=7.0) == 1.0


@each_shaping
def test_references_that_are_missing_or_not_finite_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="row 1 has a reference that is not finite"):
        SHAPINGS[name](torch.zeros(2), torch.tensor([[0.0, 1.0], [0.0, math.nan]]))
    with pytest.raises(ValueError, match=r"rewards of shape \(3,\), but references of shape"):
        SHAPINGS[name](torch.zeros(3), torch.zeros(2, 4))
    for shape in ((2,), (2, 0), (0, 2)):
        with pytest.raises(ValueError, match="a row and a reference at least"):
            SHAPINGS[name](torch.zeros(2), torch.zeros(shape))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: par(ONE, UNIT_BM, slope=0.0), "slope must be above 0, not 0.0"),
        (lambda: lsc(ONE, UNIT_BM, floor=0.0), "floor must be below 0, not 0.0"),
        (lambda: lsc(ONE, UNIT_BM, quantile=1.0), "below 1, not 1.0"),
        (lambda: quantile_reference(UNIT_BM, 0.0), "above 0 and below 1, not 0.0"),
        (lambda: conjunction(torch.zeros(3)), r"shape \(K, B\), not \(3,\)"),
        (lambda: conjunction(torch.zeros(0, 3)), r"not \(0, 3\)"),
        (lambda: conjunction(torch.zeros(2, 3), torch.ones(3)), r"2 reward models, but weights"),
        (lambda: conjunction(torch.zeros(2, 3), torch.tensor([1.0, -1.0])), "0 or more"),
    ],
)
def test_parameters_out_of_range_are_refused(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
