"""Shaping of scalar rewards."""

from __future__ import annotations

import json

import pytest
import torch

from grm_ray.rewards.shape import (
    RunningNormalizer,
    RunningRange,
    clip,
    clip_to_spread,
    missing_eos_penalty,
    overlong_penalty,
    tanh,
)


def _scores() -> torch.Tensor:
    return 1000.0 + 3.0 * torch.randn(100, generator=torch.Generator().manual_seed(0))


def test_running_moments_are_those_of_all_scores_whatever_the_batches() -> None:
    scores_B = _scores()
    for sizes in ([100], [1, 0, 59, 40], [1] * 100):
        normalizer = RunningNormalizer()
        for part in scores_B.split(sizes):
            normalizer.update(part)
        assert normalizer.count == 100
        assert normalizer.mean == pytest.approx(scores_B.double().mean().item(), rel=1e-12)
        assert normalizer.std == pytest.approx(scores_B.double().std(correction=0).item(), rel=1e-9)


def test_normalized_scores_have_mean_0_and_std_1() -> None:
    normalizer = RunningNormalizer()
    normalizer.update(_scores())
    normal_B = normalizer.normalize(_scores())
    assert normal_B.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert normal_B.std(correction=0).item() == pytest.approx(1.0, abs=1e-5)


def test_before_two_scores_differ_only_the_mean_is_taken_off() -> None:
    normalizer = RunningNormalizer()
    assert normalizer.normalize(torch.tensor([2.0])).tolist() == [2.0]
    normalizer.update(torch.tensor([5.0, 5.0]))
    assert normalizer.normalize(torch.tensor([5.0, 7.0])).tolist() == [0.0, 2.0]


def test_equal_scores_whose_mean_is_rounded_have_no_spread() -> None:
    normalizer = RunningNormalizer()
    for _ in range(3):
        normalizer.update(torch.full((7,), 0.7))
    assert not normalizer.spread_known and normalizer.std == 1.0
    held_B = clip_to_spread(torch.tensor([0.2, 0.7]), normalizer)
    assert held_B.tolist() == torch.tensor([0.2, 0.7]).tolist()
    normalizer.update(torch.tensor([0.7001]))
    assert normalizer.spread_known and normalizer.std < 1e-4


def test_state_survives_json_bit_for_bit() -> None:
    normalizer, restored = RunningNormalizer(), RunningNormalizer()
    normalizer.update(_scores())
    restored.load_state_dict(json.loads(json.dumps(normalizer.state_dict())))
    assert restored.state_dict() == normalizer.state_dict()
    assert torch.equal(restored.normalize(_scores()), normalizer.normalize(_scores()))


def test_a_score_that_is_not_finite_is_refused_and_leaves_no_trace() -> None:
    normalizer = RunningNormalizer()
    normalizer.update(torch.tensor([1.0, 2.0]))
    before = normalizer.state_dict()
    with pytest.raises(ValueError, match="2 of 3 scores are not finite"):
        normalizer.update(torch.tensor([1.0, float("nan"), float("inf")]))
    assert normalizer.state_dict() == before


def test_clip_bounds_both_ways() -> None:
    assert clip(torch.tensor([-9.0, 0.5, 9.0]), 5.0).tolist() == [-5.0, 0.5, 5.0]
    with pytest.raises(ValueError, match="above 0"):
        clip(torch.zeros(1), 0.0)


def test_only_unfinished_answers_pay() -> None:
    scores_B = torch.tensor([1.0, 2.0])
    for finished_B in (torch.tensor([True, False]), torch.tensor([1, 0]), torch.tensor([1.0, 0.0])):
        assert missing_eos_penalty(scores_B, finished_B, 0.5).tolist() == [1.0, 1.5]
    assert scores_B.tolist() == [1.0, 2.0]


def test_a_penalty_that_pays_or_sizes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        missing_eos_penalty(torch.zeros(1), torch.ones(1), -1.0)
    with pytest.raises(ValueError, match="2 scores, but 3"):
        missing_eos_penalty(torch.zeros(2), torch.ones(3), 1.0)


def test_the_overlong_penalty_grows_evenly_within_the_margin() -> None:
    lengths_B = torch.tensor([1, 16, 17, 18, 20, 25])
    found_B = overlong_penalty(torch.ones(6), lengths_B, longest=20, margin=4, penalty=0.5)
    torch.testing.assert_close(found_B, torch.tensor([1.0, 1.0, 0.875, 0.75, 0.5, 0.5]))
    for margin, penalty, said in (
        (0, 1.0, "1 to 20 tokens"),
        (21, 1.0, "1 to 20"),
        (4, -1.0, "0 or"),
    ):
        with pytest.raises(ValueError, match=said):
            overlong_penalty(torch.ones(6), lengths_B, 20, margin, penalty)
    with pytest.raises(ValueError, match="5 rewards, but 6 lengths"):
        overlong_penalty(torch.ones(5), lengths_B, 20, 4, 0.5)


def test_the_lowest_score_so_far_becomes_0_and_the_highest_1() -> None:
    scores_B = _scores()
    for sizes in ([100], [1, 0, 59, 40], [1] * 100):
        span = RunningRange()
        for part in scores_B.split(sizes):
            span.update(part)
        normal_B = span.normalize(scores_B)
        assert (normal_B.min().item(), normal_B.max().item()) == (0.0, 1.0)
        assert torch.equal(normal_B.argsort(), scores_B.argsort())
    span.update(torch.tensor([2000.0]))
    assert span.normalize(scores_B).max().item() < 0.02


def test_scores_beyond_the_range_are_held_within_it() -> None:
    span = RunningRange()
    span.update(torch.tensor([2.0, 6.0]))
    assert span.normalize(torch.tensor([1.0, 3.0, 9.0])).tolist() == [0.0, 0.25, 1.0]


def test_before_two_scores_differ_all_lie_in_the_middle() -> None:
    span = RunningRange()
    assert span.normalize(torch.tensor([2, 3])).tolist() == [0.5, 0.5]
    span.update(torch.tensor([5.0, 5.0]))
    assert span.normalize(torch.tensor([5.0, 7.0])).tolist() == [0.5, 0.5]


def test_a_ranges_state_survives_json_bit_for_bit() -> None:
    for scores_B in (_scores()[:0], _scores()):
        span, restored = RunningRange(), RunningRange()
        span.update(scores_B)
        restored.load_state_dict(json.loads(json.dumps(span.state_dict())))
        assert restored.state_dict() == span.state_dict()
        assert torch.equal(restored.normalize(_scores()), span.normalize(_scores()))


def test_a_score_that_is_not_finite_leaves_no_trace_in_a_range() -> None:
    span = RunningRange()
    span.update(torch.tensor([1.0, 2.0]))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not all of 2 scores are finite"):
            span.update(torch.tensor([9.0, bad]))
    assert span.state_dict() == {"low": 1.0, "high": 2.0}


def test_scores_are_clipped_to_the_spread_of_all_seen() -> None:
    seen, scores_B = RunningNormalizer(), torch.tensor([-9.0, 2.5, 9.0])
    seen.update(torch.tensor([2.0, 2.0]))
    assert torch.equal(clip_to_spread(scores_B, seen), scores_B)
    seen.update(torch.tensor([4.0, 4.0]))  # mean 3, standard deviation 1
    assert clip_to_spread(scores_B, seen).tolist() == [2.0, 2.5, 4.0]
    assert clip_to_spread(scores_B, seen, width=2.0).tolist() == [1.0, 2.5, 5.0]
    with pytest.raises(ValueError, match="above 0, not 0.0"):
        clip_to_spread(scores_B, seen, 0.0)


def test_tanh_is_a_smooth_clip() -> None:
    found_B = tanh(torch.tensor([-100.0, 0.0, 0.5, 100.0]))
    assert found_B.tolist() == pytest.approx([-1.0, 0.0, 0.462117, 1.0], abs=1e-6)
    assert tanh(torch.tensor([0.01, 1.5, 100.0]), 3.0).tolist() == pytest.approx(
        [0.01, 3 * 0.462117, 3.0], abs=1e-5
    )
    with pytest.raises(ValueError, match="above 0, not -1.0"):
        tanh(torch.zeros(1), -1.0)
