"""What the learner sees follows from the raw score, step by step."""

import numpy as np
import pytest

from grm_ray.rewards.pipeline import RewardPipeline

SCORES = np.array([1.0, 2.0, 3.0, 6.0])
DONE = np.ones(4)


def test_first_batch_fixes_the_scale():
    pipeline = RewardPipeline("first_batch", None, 0.0)
    first = pipeline(SCORES, DONE)
    assert first.mean() == pytest.approx(0, abs=1e-6) and first.std() == pytest.approx(1)
    assert pipeline(SCORES + 1.0, DONE).mean() == pytest.approx(1.0 / SCORES.std())


def test_clip_and_penalty():
    pipeline = RewardPipeline("none", 2.0, 0.5)
    assert pipeline(SCORES, np.array([1, 1, 1, 0.0])).tolist() == [1.0, 2.0, 2.0, 1.5]


def test_state_goes_on_after_a_restart():
    one, two = (RewardPipeline("running", 5.0, 0.0) for _ in range(2))
    one(SCORES, DONE)
    two.load_state_dict(one.state_dict())
    assert np.array_equal(one(SCORES * 2, DONE), two(SCORES * 2, DONE))


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        RewardPipeline("none", None, 0.0)(np.array([1.0, np.nan]), np.ones(2))
