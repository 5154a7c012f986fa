"""The watch acts when what the reward should follow falls while the reward rises."""

import json
import math

import numpy as np
import pytest

from grm_ray.config.ppo import Guard
from grm_ray.drivers.ppo.guard import Watch

PROMPTS = np.random.default_rng(0).normal(size=40)


def looked(watch, proxy, followed, by="true_reward"):
    said = []
    for reward, value in zip(proxy, followed, strict=True):
        metrics = {"eval/reward": reward}
        message = watch.look(metrics, {by: value + PROMPTS * 0.1})
        said.append((message, metrics.get("guard/action")))
    return said


def test_two_falls_while_the_reward_rises_are_an_alarm_and_then_it_counts_anew():
    watch = Watch(Guard(patience=2))
    said = looked(watch, [0, 1, 2, 3, 4], [1.0, 0.9, 0.8, 0.7, 0.6])
    assert [action for _, action in said] == [None, None, "warn", None, "warn"]
    mean = 0.1 * PROMPTS.mean()
    assert f"true_reward has fallen ({1 + mean:.3f} to {0.8 + mean:.3f})" in said[2][0]
    assert not watch.stopped and watch.factor == 1.0


@pytest.mark.parametrize(
    ("proxy", "followed"),
    [([0, 1, 2], [1.0, 0.9, 0.95]), ([2, 1, 0], [1.0, 0.9, 0.8]), ([0, 1], [1.0, 0.9])],
)
def test_no_alarm_without_two_falls_in_a_row_and_a_rise(proxy, followed):
    assert all(said is None for said, _ in looked(Watch(Guard(patience=2)), proxy, followed))


def test_noise_alone_hardly_ever_ends_a_run():
    rng, ended = np.random.default_rng(1), 0
    for _ in range(200):
        watch = Watch(Guard(patience=2, action="stop"))
        for step in range(10):
            watch.look({"eval/reward": float(step)}, {"true_reward": rng.normal(size=48)})
        ended += watch.stopped
    assert ended < 0.15 * 200  # the means alone: four runs of five


def test_disagreement_is_worse_when_it_rises():
    watch = Watch(Guard(by="disagreement", patience=1))
    said = looked(watch, [0, 1], [0.2, 0.4], "disagreement")
    assert "disagreement has risen" in said[1][0]


def test_an_evaluation_without_a_number_is_passed_over():
    watch = Watch(Guard(patience=1))
    said = looked(watch, [0, 1, 2], [1.0, math.nan, 0.8])
    assert [action for _, action in said] == [None, None, "warn"]


def gaps(rows, value):
    """Values of the 40 prompts, of which `rows` have none."""
    found = value + PROMPTS * 0.1
    found[rows] = math.nan
    return found


def test_prompts_without_a_value_are_left_out_and_the_others_compared():
    watch = Watch(Guard(patience=2))
    evaluations = [gaps([3], 1.0), gaps([3], 0.5), gaps([3, 7], 0.0)]
    said = [
        watch.look({"eval/reward": float(n)}, {"true_reward": values})
        for n, values in enumerate(evaluations)
    ]
    mean = 0.1 * np.delete(PROMPTS, [3, 7]).mean()
    assert said[:2] == [None, None]
    assert f"true_reward has fallen ({1 + mean:.3f} to {mean:.3f})" in said[2]


def test_a_checkpoint_keeps_what_is_not_known():
    watch, again = Watch(Guard(patience=1)), Watch(Guard(patience=1))
    watch.look({"eval/reward": 0.0}, {"true_reward": gaps([3], 1.0)})
    again.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert "has fallen" in again.look({"eval/reward": 1.0}, {"true_reward": gaps([], 0.0)})


@pytest.mark.parametrize("lacking", [range(36), range(40)])
def test_too_few_prompts_with_a_value_are_no_alarm_and_told_of_once(lacking):
    watch = Watch(Guard(patience=1))
    said = [
        watch.look({"eval/reward": float(n)}, {"true_reward": gaps(list(lacking), -float(n))})
        for n in range(3)
    ]
    assert f"only {40 - len(lacking)} of 40 held-out prompts have a true_reward" in said[0]
    assert said[1:] == [None, None]


def test_prompts_known_at_different_evaluations_are_not_compared():
    watch = Watch(Guard(patience=1))
    first, second = gaps(list(range(20)), 1.0), gaps(list(range(20, 40)), 0.0)
    assert watch.look({"eval/reward": 0.0}, {"true_reward": first}) is None
    metrics = {"eval/reward": 1.0}
    assert "only 0 of 40" in watch.look(metrics, {"true_reward": second})
    assert "guard/action" not in metrics


def test_the_penalty_is_raised_and_a_resumed_run_keeps_it_so():
    watch = Watch(Guard(patience=1, action="lower", factor=2.0))
    looked(watch, [0, 1, 2], [1.0, 0.9, 0.8])
    assert watch.factor == 4.0
    again = Watch(Guard(patience=1, action="lower", factor=2.0))
    again.load_state_dict(watch.state_dict())
    assert again.factor == 4.0
    assert looked(again, [3], [0.7])[0][1] == "lower"  # it remembers the evaluation before


@pytest.mark.parametrize("action", ["stop", "roll_back"])
def test_the_run_ends_and_stays_ended(action):
    watch = Watch(Guard(patience=1, action=action))
    said = looked(watch, [0, 1], [1.0, 0.9])
    assert watch.stopped and "the run ends here" in said[1][0]
    again = Watch(Guard(patience=1, action=action))
    again.load_state_dict(watch.state_dict())
    assert again.stopped


def test_no_guard_looks_at_nothing():
    assert Watch(None).look({}, {}) is None
