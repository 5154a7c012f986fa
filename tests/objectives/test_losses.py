"""Preference losses and GRM's regulariser."""

from __future__ import annotations

import pytest
import torch

from grm_ray.objectives.preference import bradley_terry
from grm_ray.objectives.regularizers import grm_loss, sft


def test_golden_numbers_of_the_grm_loss() -> None:
    preference_B = bradley_terry(torch.tensor([1.5]), torch.tensor([1.0]))
    regularizer_B = sft(torch.tensor([-50.0]), beta=0.1)
    loss_B = grm_loss(preference_B, regularizer_B, alpha=0.01)
    assert preference_B.item() == pytest.approx(0.474077, abs=1e-6)
    assert regularizer_B.item() == pytest.approx(5.006715, abs=1e-6)
    assert loss_B.item() == pytest.approx(0.519403, abs=1e-6)


def test_losses_are_one_a_pair_and_fp32() -> None:
    chosen_B, rejected_B = torch.randn(2, 5).bfloat16()
    for loss_B in (bradley_terry(chosen_B, rejected_B), sft(chosen_B, 0.1)):
        assert loss_B.shape == (5,)
        assert loss_B.dtype == torch.float32


def test_losses_stay_finite_far_from_zero() -> None:
    far_B = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss_B = bradley_terry(far_B, torch.zeros(2))
    loss_B.sum().backward()
    assert loss_B.tolist() == [1e4, 0.0]
    assert far_B.grad is not None
    assert far_B.grad.tolist() == [-1.0, 0.0]
    assert sft(torch.tensor([-1e4]), 0.1).item() == pytest.approx(1e3)


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


def test_sft_gradient_lies_between_half_and_all_of_beta() -> None:
    logp_B = torch.tensor([0.0, -1.0, -20.0, -500.0], requires_grad=True)
    sft(logp_B, beta=0.1).sum().backward()
    assert logp_B.grad is not None
    assert ((-logp_B.grad >= 0.05 - 1e-8) & (-logp_B.grad <= 0.1)).all()


def test_alpha_without_a_regularizer_or_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a regularizer"):
        grm_loss(torch.zeros(1), None, 0.01)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            grm_loss(torch.zeros(1), torch.zeros(1), alpha)
