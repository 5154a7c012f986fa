"""GAE on flat rows, and whitening that any split leaves the same."""

from __future__ import annotations

import pytest
import torch

from grm_ray.objectives.advantages import (
    gae,
    group_relative,
    leave_one_out,
    moments,
    returns_to_go,
    whiten,
)

OFFSETS = torch.tensor([0, 3, 3, 4, 9])  # four rows, one of them empty


def _plain_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """One row, written as the definition: a discounted sum of the errors still to come."""
    after = [*values, 0.0][1:]
    errors = [r + gamma * n - v for r, n, v in zip(rewards, after, values, strict=True)]
    return [
        sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, len(errors)))
        for t in range(len(errors))
    ]


def _random() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(9, generator=generator), torch.randn(9, generator=generator)


def test_hand_worked_row() -> None:
    # errors: 1 + 0.5*2 - 1 = 1; 0 + 0.5*4 - 2 = 0; 8 - 4 = 4.  gamma * lam = 0.25
    advantages_T, returns_T = gae(
        torch.tensor([1.0, 0.0, 8.0]),
        torch.tensor([1.0, 2.0, 4.0]),
        torch.tensor([0, 3]),
        gamma=0.5,
        lam=0.5,
    )
    assert advantages_T.tolist() == [1.25, 1.0, 4.0]
    assert returns_T.tolist() == [2.25, 3.0, 8.0]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_equals_the_definition_on_every_row(gamma: float, lam: float) -> None:
    rewards_T, values_T = _random()
    advantages_T, returns_T = gae(rewards_T, values_T, OFFSETS, gamma, lam)
    expected: list[float] = []
    for start, end in zip(OFFSETS[:-1].tolist(), OFFSETS[1:].tolist(), strict=True):
        expected += _plain_gae(
            rewards_T[start:end].tolist(), values_T[start:end].tolist(), gamma, lam
        )
    torch.testing.assert_close(advantages_T, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    assert torch.equal(returns_T, advantages_T + values_T)


def test_lambda_1_gives_the_return_minus_the_value() -> None:
    rewards_T, values_T = _random()
    advantages_T, returns_T = gae(rewards_T, values_T, torch.tensor([0, 9]), 1.0, 1.0)
    to_come_T = rewards_T.flip(0).cumsum(0).flip(0)
    torch.testing.assert_close(advantages_T, to_come_T - values_T)
    torch.testing.assert_close(returns_T, to_come_T)


def test_lambda_0_gives_the_one_step_error() -> None:
    rewards_T, values_T = _random()
    advantages_T, _ = gae(rewards_T, values_T, torch.tensor([0, 9]), 0.9, 0.0)
    after_T = torch.cat([values_T[1:], torch.zeros(1)])
    torch.testing.assert_close(advantages_T, rewards_T + 0.9 * after_T - values_T)


def test_rows_do_not_leak_into_each_other() -> None:
    rewards_T, values_T = _random()
    before_T, _ = gae(rewards_T, values_T, OFFSETS, 1.0, 0.95)
    rewards_T[3:4], values_T[3:4] = 1e3, -1e3  # the third row alone
    after_T, _ = gae(rewards_T, values_T, OFFSETS, 1.0, 0.95)
    assert torch.equal(before_T[:3], after_T[:3])
    assert torch.equal(before_T[4:], after_T[4:])
    assert not torch.equal(before_T[3:4], after_T[3:4])


def test_permuting_rows_permutes_the_result() -> None:
    rewards_T, values_T = _random()
    advantages_T, _ = gae(rewards_T, values_T, torch.tensor([0, 3, 9]), 0.9, 0.95)
    turned_T, _ = gae(
        torch.cat([rewards_T[3:], rewards_T[:3]]),
        torch.cat([values_T[3:], values_T[:3]]),
        torch.tensor([0, 6, 9]),
        0.9,
        0.95,
    )
    assert torch.equal(turned_T, torch.cat([advantages_T[3:], advantages_T[:3]]))


def test_no_rows_give_nothing() -> None:
    nothing_T = torch.zeros(0)
    advantages_T, returns_T = gae(nothing_T, nothing_T, torch.tensor([0]), 1.0, 0.95)
    assert len(advantages_T) == len(returns_T) == 0


def test_targets_carry_no_gradient_and_inputs_stay() -> None:
    rewards_T, values_T = torch.ones(3), torch.ones(3, requires_grad=True)
    advantages_T, returns_T = gae(rewards_T, values_T, torch.tensor([0, 3]), 1.0, 0.95)
    assert not advantages_T.requires_grad and not returns_T.requires_grad
    assert rewards_T.tolist() == values_T.tolist() == [1.0, 1.0, 1.0]


def test_offsets_that_do_not_fit_are_refused() -> None:
    wrong = {"end at 8": [0, 8], "first is 0": [1, 9], "backwards": [0, 5, 3, 9]}
    for message, offsets in wrong.items():
        with pytest.raises(ValueError, match=message):
            gae(*_random(), torch.tensor(offsets), 1.0, 1.0)
    with pytest.raises(ValueError, match="9 rewards, but 8 values"):
        gae(torch.zeros(9), torch.zeros(8), torch.tensor([0, 9]), 1.0, 1.0)


def _whitened_in_parts(x_T: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    parts = x_T.split(sizes)
    count, total, squares = (
        sum(numbers) for numbers in zip(*(moments(p) for p in parts), strict=True)
    )
    mean = total / count
    return torch.cat([whiten(p, mean, squares / count - mean * mean) for p in parts])


def test_any_split_over_ranks_gives_the_same_whitening() -> None:
    x_T = 100.0 + torch.randn(50, generator=torch.Generator().manual_seed(1))
    whole_T = _whitened_in_parts(x_T, [50])
    torch.testing.assert_close(whole_T, _whitened_in_parts(x_T, [7, 0, 42, 1]))
    assert whole_T.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert whole_T.std(correction=0).item() == pytest.approx(1.0, abs=1e-4)


def test_moments_are_sums() -> None:
    x_T = torch.tensor([1.0, 3.0])
    assert moments(x_T) == (2.0, 4.0, 10.0)
    assert moments(x_T[:0]) == (0.0, 0.0, 0.0)


def test_equal_values_whiten_to_zero_even_if_the_variance_rounds_below_it() -> None:
    whitened_T = whiten(torch.full((4,), 0.1), float(torch.tensor(0.1)), -1e-18)
    torch.testing.assert_close(whitened_T, torch.zeros(4), atol=1e-3, rtol=0.0)


def test_returns_to_go_are_discounted_sums_within_a_row() -> None:
    returns_T = returns_to_go(torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 3, 4]), 0.5)
    assert returns_T.tolist() == [3.0, 4.0, 4.0, 8.0]


# Two prompts, their answers mixed: rewards 1, 2, 6 of one and 4, 0 of the other.
REWARDS, PROMPTS = torch.tensor([1.0, 4.0, 2.0, 0.0, 6.0]), torch.tensor([7, 3, 7, 3, 7])


def test_leave_one_out_by_hand() -> None:
    advantages_B = leave_one_out(REWARDS, PROMPTS)
    torch.testing.assert_close(advantages_B, torch.tensor([-3.0, 4.0, -1.5, -4.0, 4.5]))


def test_group_relative_by_hand() -> None:
    centred_B = torch.tensor([-2.0, 2.0, -1.0, -2.0, 3.0])
    torch.testing.assert_close(group_relative(REWARDS, PROMPTS, scale=False), centred_B)
    std_B = torch.tensor([7.0**0.5, 8.0**0.5, 7.0**0.5, 8.0**0.5, 7.0**0.5])
    torch.testing.assert_close(
        group_relative(REWARDS, PROMPTS, scale=True, eps=0.0), centred_B / std_B
    )


@pytest.mark.parametrize(
    "estimate",
    [
        leave_one_out,
        lambda r, p: group_relative(r, p, True),
        lambda r, p: group_relative(r, p, False),
    ],
    ids=["rloo", "grpo", "dr_grpo"],
)
def test_group_estimators_follow_a_permutation_and_ignore_a_shift(estimate) -> None:
    order = torch.tensor([4, 0, 3, 1, 2])
    plain_B = estimate(REWARDS, PROMPTS)
    torch.testing.assert_close(estimate(REWARDS[order], PROMPTS[order]), plain_B[order])
    shifted_B = REWARDS + torch.tensor([5.0, -9.0, 5.0, -9.0, 5.0])
    torch.testing.assert_close(estimate(shifted_B, PROMPTS), plain_B)
    equal_B = estimate(torch.full((5,), 0.1), PROMPTS)
    torch.testing.assert_close(equal_B, torch.zeros(5))


def test_one_answer_has_no_others() -> None:
    with pytest.raises(ValueError, match="row 1 is its prompt's only answer"):
        leave_one_out(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 1, 0]))
    assert group_relative(torch.tensor([5.0]), torch.tensor([0]), scale=True).tolist() == [0.0]
