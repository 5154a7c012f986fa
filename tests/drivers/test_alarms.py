"""A run that goes wrong says so, once; one that goes well says nothing."""

import pytest

from grm_ray.drivers.reward_model.alarms import Alarms


def told(rows, per_step=16, total=100):
    alarms = Alarms(per_step, total)
    return [text for row in rows for text in alarms.after(row)]


def test_a_good_run_is_silent():
    rows = [{"step": s, "accuracy": 0.5 + 0.003 * s} for s in range(1, 101)]
    rows[50] |= {"head_moved": 0.5, "eval/length_correlation": 0.2, "loss/gradient_ratio": 0.1}
    assert told(rows) == []


def test_accuracy_at_chance_is_told_once():
    (text,) = told([{"step": s, "accuracy": 0.5} for s in range(1, 101)])
    assert "not clearly different from 50 %" in text


def test_accuracy_below_chance_names_swapped_labels():
    (text,) = told([{"step": s, "accuracy": 0.3} for s in range(1, 101)])
    assert "below 50 %" in text and "are swapped" in text


def test_few_pairs_are_no_reason_to_worry():
    assert told([{"step": s, "accuracy": 0.5} for s in range(1, 101)], per_step=1) == []


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"step": 20, "head_moved": 1e-5}, "reward head"),
        ({"step": 20, "eval/length_correlation": 0.8}, "longer"),
        ({"step": 20, "eval/length_correlation": -0.8}, "shorter"),
        ({"step": 20, "loss/gradient_ratio": 5.0}, "lower loss.alpha"),
        ({"step": 20, "loss/gradient_ratio": 1e-5}, "raise loss.alpha"),
    ],
)
def test_each_sign_has_its_warning(row, word):
    (text,) = told([row, row])
    assert word in text


def test_the_head_has_time_to_move():
    assert told([{"step": 0, "head_moved": 0.0}]) == []
