"""GRM's regularisers, their length-normalised variants, and the whole loss."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from grm_ray.config.registry import wants
from grm_ray.objectives.preference import bradley_terry
from grm_ray.objectives.regularizers import (
    dpo,
    dpo_noref,
    dpo_noref_per_token,
    dpo_per_token,
    grm_loss,
    nll,
    nll_per_token,
    sft,
    sft_per_token,
)

GIVEN = {
    "chosen_logp_B": torch.tensor([-50.0, -3.0]),
    "rejected_logp_B": torch.tensor([-52.0, -1.0]),
    "chosen_ref_logp_B": torch.tensor([-47.0, -3.5]),
    "rejected_ref_logp_B": torch.tensor([-50.0, -1.5]),
    "chosen_tokens_B": torch.tensor([25, 2]),
    "rejected_tokens_B": torch.tensor([20, 1]),
    "beta": 0.1,
}
PLAIN = [sft, nll, dpo_noref, dpo]
PER_TOKEN = [sft_per_token, nll_per_token, dpo_noref_per_token, dpo_per_token]


def _call(regularizer: Callable[..., torch.Tensor], **changed: object) -> torch.Tensor:
    given = {**GIVEN, **changed}
    return regularizer(**{name: given[name] for name in wants(regularizer)})


def test_golden_numbers_of_the_grm_loss() -> None:
    preference_B = bradley_terry(torch.tensor([1.5]), torch.tensor([1.0]))
    regularizer_B = sft(torch.tensor([-50.0]), beta=0.1)
    loss_B = grm_loss(preference_B, regularizer_B, alpha=0.01)
    assert preference_B.item() == pytest.approx(0.474077, abs=1e-6)
    assert regularizer_B.item() == pytest.approx(5.006715, abs=1e-6)
    assert loss_B.item() == pytest.approx(0.519403, abs=1e-6)


@pytest.mark.parametrize(
    ("regularizer", "first"),
    [
        (sft, math.log1p(math.exp(5.0))),
        (nll, 50.0),
        (dpo_noref, math.log1p(math.exp(-0.2))),
        (dpo, math.log1p(math.exp(0.1))),  # ratios -3 and -2
        (sft_per_token, math.log1p(math.exp(0.2))),
        (nll_per_token, 2.0),
        (dpo_noref_per_token, math.log1p(math.exp(-0.06))),  # -2 and -2.6 a token
        (dpo_per_token, math.log1p(math.exp(0.002))),  # -0.12 and -0.1 a token
    ],
)
def test_each_form_gives_the_number_worked_out_by_hand(
    regularizer: Callable[..., torch.Tensor], first: float
) -> None:
    assert _call(regularizer)[0].item() == pytest.approx(first, abs=1e-6)


def test_a_policy_that_is_the_reference_costs_log_2_exactly() -> None:
    same = {f"{answer}_ref_logp_B": GIVEN[f"{answer}_logp_B"] for answer in ("chosen", "rejected")}
    for regularizer in (dpo, dpo_per_token):
        assert torch.equal(_call(regularizer, **same), torch.full((2,), math.log(2.0)))


def test_dpo_with_a_reference_that_has_no_opinion_is_dpo_without_one() -> None:
    flat = {"chosen_ref_logp_B": torch.zeros(2), "rejected_ref_logp_B": torch.zeros(2)}
    assert torch.equal(_call(dpo, **flat), _call(dpo_noref))
    assert torch.equal(_call(dpo_per_token, **flat), _call(dpo_noref_per_token))


@pytest.mark.parametrize(("plain", "per_token"), list(zip(PLAIN, PER_TOKEN, strict=True)))
def test_of_one_token_answers_both_forms_are_one(
    plain: Callable[..., torch.Tensor], per_token: Callable[..., torch.Tensor]
) -> None:
    ones = torch.ones(2, dtype=torch.int64)
    single = _call(per_token, chosen_tokens_B=ones, rejected_tokens_B=ones)
    assert torch.equal(single, _call(plain))


@pytest.mark.parametrize("regularizer", PER_TOKEN)
def test_answers_twice_as_long_at_the_same_log_prob_a_token_cost_the_same(
    regularizer: Callable[..., torch.Tensor],
) -> None:
    doubled = {name: 2 * value for name, value in GIVEN.items() if name != "beta"}
    torch.testing.assert_close(_call(regularizer, **doubled), _call(regularizer))


@pytest.mark.parametrize("regularizer", PLAIN + PER_TOKEN)
def test_forms_are_one_a_row_fp32_and_finite_far_from_zero(
    regularizer: Callable[..., torch.Tensor],
) -> None:
    half = {n: v.bfloat16() for n, v in GIVEN.items() if n.endswith("logp_B")}
    loss_B = _call(regularizer, **half)
    assert loss_B.shape == (2,) and loss_B.dtype == torch.float32
    far_B = torch.tensor([-1e6, -1e5], requires_grad=True)
    _call(regularizer, chosen_logp_B=far_B).sum().backward()
    assert far_B.grad is not None
    assert far_B.grad.isfinite().all() and (far_B.grad < 0).all()


@pytest.mark.parametrize("regularizer", PLAIN + PER_TOKEN)
def test_gradients_are_those_of_finite_differences(
    regularizer: Callable[..., torch.Tensor],
) -> None:
    names = sorted(name for name in wants(regularizer) if name.endswith("logp_B"))
    inputs = tuple(GIVEN[name].double().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(
        lambda *values: _call(regularizer, **dict(zip(names, values, strict=True))), inputs
    )


def test_sft_is_almost_linear_its_gradient_between_half_and_all_of_beta() -> None:
    logp_B = torch.tensor([0.0, -1.0, -20.0, -500.0], requires_grad=True)
    sft(logp_B, beta=0.1).sum().backward()
    assert logp_B.grad is not None
    assert ((-logp_B.grad >= 0.05 - 1e-8) & (-logp_B.grad <= 0.1)).all()
    assert sft(torch.tensor([-1e4]), 0.1).item() == pytest.approx(1e3)


@pytest.mark.parametrize("regularizer", PER_TOKEN)
def test_an_answer_without_tokens_is_named(regularizer: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="row 1 has an answer without tokens"):
        _call(regularizer, chosen_tokens_B=torch.tensor([25, 0]))


# -------------------------------------------------------------- the whole loss


def test_alpha_0_is_the_preference_loss_itself_and_leaves_the_language_head_alone() -> None:
    logp_B = torch.tensor([-50.0, -3.0], requires_grad=True)
    rewards_B = torch.tensor([0.3, -2.0], requires_grad=True)
    preference_B = bradley_terry(rewards_B, torch.zeros(2))
    loss_B = grm_loss(preference_B, sft(logp_B, 0.1), alpha=0.0)
    assert torch.equal(loss_B, preference_B)
    assert torch.equal(grm_loss(preference_B, None, 0.0), preference_B)
    loss_B.sum().backward()
    assert logp_B.grad is None


def test_alpha_1_has_no_gradient_on_the_reward() -> None:
    rewards_B = torch.tensor([0.3, -2.0], requires_grad=True)
    logp_B = torch.tensor([-50.0, -3.0], requires_grad=True)
    preference_B = bradley_terry(rewards_B, torch.zeros(2))
    grm_loss(preference_B, sft(logp_B, 0.1), alpha=1.0).sum().backward()
    assert rewards_B.grad is not None and logp_B.grad is not None
    assert rewards_B.grad.tolist() == [0.0, 0.0]
    assert (logp_B.grad < 0).all()


def test_alpha_without_a_regularizer_or_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a regularizer"):
        grm_loss(torch.zeros(1), None, 0.01)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            grm_loss(torch.zeros(1), torch.zeros(1), alpha)
