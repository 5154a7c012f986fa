"""What the learner sees follows from the raw scores, stage by stage."""

import json
import math

import numpy as np
import pytest

from grm_ray.config.errors import ConfigError
from grm_ray.config.rewards import Reward
from grm_ray.drivers.reward_stages import build, check, references, rules_of
from grm_ray.rewards.pipeline import PipelineInput
from grm_ray.workers import rules

SCORES = np.array([1.0, 2.0, 3.0, 6.0])
DONE = np.ones(4)
TOKENS = np.array([10.0, 18.0, 19.0, 20.0])
THREE = {"members": {"a": "a", "b": "b", "c": "c"}}


def rewards(pipeline, scores=SCORES, finished=DONE, longest=20, **more):
    scores = scores[:, None] if scores.ndim == 1 else scores
    return list(
        pipeline(PipelineInput(scores, finished, TOKENS, longest=longest, **more)).values()
    )[-1]


def of(**keys):
    reward = Reward(**({} if "members" in keys else {"path": "r"}), **keys)
    return build(reward, len(reward.models))


def test_first_batch_fixes_the_scale():
    pipeline = of(clip=None)
    first = rewards(pipeline)
    assert first.mean() == pytest.approx(0, abs=1e-6) and first.std() == pytest.approx(1)
    assert rewards(pipeline, SCORES + 1.0).mean() == pytest.approx(1.0 / SCORES.std())


def test_clip_and_penalty():
    pipeline = of(normalize="none", clip=2.0, missing_eos_penalty=0.5)
    assert rewards(pipeline, finished=np.array([1, 1, 1, 0.0])).tolist() == [1.0, 2.0, 2.0, 1.5]


def test_long_answers_pay_more_and_more():
    pipeline = of(normalize="none", clip=2.0, overlong={"margin": 4, "penalty": 0.8})
    assert rewards(pipeline) == pytest.approx([1.0, 1.6, 1.4, 1.2])


def test_spread_is_that_of_the_first_rewards():
    raw, scaled = of(normalize="none", clip=None), of(clip=None)
    for pipeline in (raw, scaled):
        rewards(pipeline)
        rewards(pipeline, SCORES * 3)
    assert raw.spread == pytest.approx(SCORES.std()) and scaled.spread == pytest.approx(1.0)
    again = of(normalize="none", clip=None)
    again.load_state_dict(raw.state_dict())
    assert again.spread == raw.spread


@pytest.mark.parametrize(
    "stages",
    [
        [{"stage": "normalize", "by": "running"}, {"stage": "clip", "bound": 5.0}],
        ["range", {"stage": "clip_to_spread", "width": 2.0}],
    ],
)
def test_state_goes_on_after_a_restart(stages):
    one, two = of(stages=stages), of(stages=stages)
    rewards(one)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert np.array_equal(rewards(one, SCORES * 2), rewards(two, SCORES * 2))


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        rewards(of(), np.array([1.0, np.nan, 1.0, 1.0]))


def test_a_stage_that_gives_no_number_is_named():
    with pytest.raises(ValueError, match=r"stage 1 \(tests.judges:broken_stage\): gives 4 rewards"):
        rewards(of(stages=["tests.judges:broken_stage"]))


def test_every_stage_is_a_column_and_none_is_overwritten():
    stages = [{"stage": "tanh", "scale": 2.0}, {"stage": "missing_eos", "penalty": 1.0}]
    made = of(stages=stages)(PipelineInput(SCORES[:, None], 1 - DONE, TOKENS))
    assert list(made) == ["proxy", "1 tanh", "2 missing_eos"]
    assert made["proxy"].tolist() == SCORES.tolist()
    assert made["1 tanh"] == pytest.approx(2 * np.tanh(SCORES / 2))
    assert made["2 missing_eos"] == pytest.approx(made["1 tanh"] - 1)


def test_members_are_brought_to_one_scale_before_they_are_joined():
    rng = np.random.default_rng(0)
    anchor, scores = rng.normal(size=(50, 3)), rng.normal(size=(4, 3))
    found = []
    for factor, offset in ((1.0, 0.0), (np.array([1.0, 10.0, 0.1]), np.array([0.0, -5.0, 900.0]))):
        pipeline = of(**THREE, aggregate="wco", stages=[])
        pipeline.fit(anchor * factor + offset)
        found.append(pipeline.proxy(scores * factor + offset))
        assert pipeline.disagreement(scores * factor + offset) == pytest.approx(
            ((scores - anchor.mean(0)) / anchor.std(0)).std(1)
        )
    assert found[0] == pytest.approx(found[1])
    assert found[0] == pytest.approx(((scores - anchor.mean(0)) / anchor.std(0)).min(1))


def test_par_compares_with_the_rows_own_references_and_forgets_a_models_offset():
    pipeline = of(stages=["par"])
    row = np.array([0.0, 2.0])
    references_BMK = np.tile(row, (4, 1))[:, :, None]
    made = rewards(pipeline, np.array([1.0, 0.0, 2.0, 9.0]), references_BMK=references_BMK)
    assert made[0] == pytest.approx(0.5)  # midway between its two references
    moved = rewards(
        pipeline, np.array([1.0, 0.0, 2.0, 9.0]) + 70, references_BMK=references_BMK + 70
    )
    assert made == pytest.approx(moved)


def test_a_conjunction_needs_all_properties():
    pipeline = of(members={"a": "a", "b": "b"}, aggregate="conjunction", stages=[])
    scores = np.array([[3.0, -3.0], [0.0, 0.0], [1.0, -2.0], [0.0, 0.0]])
    found = pipeline.proxy(scores, np.zeros((4, 1, 2)))
    assert found[:3] == pytest.approx([-3.097, -1.386, -2.440], abs=1e-3)


def test_rules_count_where_the_gate_is_open():
    stages = [
        {"stage": "rule", "rule": {"name": "repetition", "n": 1}, "weight": -2.0, "above": 2.0},
        {"stage": "rule", "rule": "tests.judges:shorter", "weight": 0.5},
    ]
    reward = Reward(path="r", stages=stages)
    named = rules_of(reward)
    assert named == [{"name": "repetition", "n": 1}, {"name": "tests.judges:shorter"}]
    answers = ["a a", "a b", "a a", "b"]
    said = rules.values(rules.resolve(named), ["?"] * 4, answers)
    assert said[:, 0].tolist() == [0.5, 0.0, 0.5, 0.0]
    made = build(reward, 1)(PipelineInput(SCORES[:, None], DONE, TOKENS, rules_BR=said))
    assert made["1 rule"].tolist() == [1.0, 2.0, 2.0, 6.0]
    assert made["2 rule"] == pytest.approx(made["1 rule"] + 0.5 * said[:, 1])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stages": ["parr"]}, "did you mean 'par'"),
        ({"stages": [{"stage": "par", "slop": 1}]}, "did you mean 'slope'"),
        ({"stages": [{"stage": "par", "slope": -1}]}, "slope must be above 0"),
        ({"stages": [{"stage": "par", "slope": "steep"}]}, "reward: "),
        ({"stages": ["clip"]}, r"stages\[0\] \(clip\): needs bound"),
        ({"stages": [{"stage": "normalize", "by": "batch"}]}, "first_batch or running"),
        (
            {
                "stages": [
                    {"stage": "rule", "rule": {"name": "matches", "pattern": "("}, "weight": 1}
                ]
            },
            "not a regular expression",
        ),
        (
            {"stages": [{"stage": "rule", "rule": {"name": "matches"}, "weight": 1}]},
            "needs pattern",
        ),
        ({"stages": [{"stage": "rule", "rule": "repetiton", "weight": 1}]}, "did you mean 'rep"),
        (
            {
                "stages": [
                    {"stage": "rule", "rule": {"name": "http", "url": "ftp://x"}, "weight": 1}
                ]
            },
            "not an http or https address",
        ),
        ({"aggregate": "wco"}, "needs no aggregate"),
        ({"references": 3}, "no stage compares with them"),
        ({**THREE, "aggregate": {"name": "uwo"}}, "needs weight"),
        ({**THREE, "aggregate": {"name": "cvar", "tau": 2}}, "at most 1"),
        ({**THREE, "aggregate": "conjunction", "stages": ["par"]}, "leave it out"),
        ({**THREE, "aggregate": "conjunction"}, "2 or more, preferably 8"),
        ({"stages": ["lsc"]}, "2 or more, preferably 8"),
        ({"stages": ["normalize", "par"]}, "put par before it"),
        ({"stages": ["par", "lsc"], "references": 4}, "put lsc before it"),
        ({"stages": ["centred", {"stage": "factor", "rule": "repetition"}]}, "0 or more"),
        ({"stages": [{"stage": "clip_to_spread", "width": "a"}]}, "clip_to_spread"),
        ({"stages": ["math:pi"]}, "is not a function"),
        ({"stages": [{"stage": "tests.judges:shorter"}]}, "needs response"),
        ({"stages": [{"stage": "rule", "rule": "math:sqrt", "weight": 1}]}, "rule math:sqrt"),
        (
            {"stages": [{"stage": "rule", "rule": {"name": "repetition", "n": 2.5}, "weight": 1}]},
            "rule repetition",
        ),
    ],
)
def test_what_a_stage_refuses_is_refused_before_the_run(keys, message):
    reward = Reward(**({} if "members" in keys else {"path": "r"}), **keys)
    with pytest.raises(ConfigError, match=message):
        check(reward, 20, len(reward.models))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "not both"),
        ({"path": "a", **THREE}, "not both"),
        ({"members": {"a": "a"}}, "2 or more"),
        ({"path": "a", "stages": [], "missing_eos_penalty": 1}, "give it as one of them"),
        ({"path": "a", "stages": ["rule"]}, "need the key rule"),
        ({"members": {"a": "x", "b": "x"}}, "never disagree"),
        (
            {"path": "a", "stages": [{"stage": "missing_eos", "penalty": math.inf}]},
            "not a finite number",
        ),
        ({"path": ""}, "an empty path"),
    ],
)
def test_sections_that_contradict_themselves_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        Reward(**keys)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mean", {}),
        ("median", {}),
        ("wco", {}),
        ("uwo", {"weight": 0.1, "ddof": 1}),
        ("mean_minus_std", {}),
        ("entropic", {"beta": 1.0}),
        ("cvar", {"tau": 0.5}),
        ("conjunction", {}),
    ],
)
def test_every_aggregate_can_be_named(name, parameters):
    several = {"references": 4} if name == "conjunction" else {}
    check(Reward(**THREE, **several, aggregate={"name": name, **parameters}), 20, 3)


def test_stages_that_compare_need_references():
    stages = ["par", "range", "clip_to_spread", {"stage": "length", "limit": 3}]
    check(Reward(path="r", stages=stages, references=4), 20, 1)
    assert references(Reward(path="r", stages=stages), 1) == 1
    assert references(Reward(path="r"), 1) == 0 and references(Reward(**THREE), 3) == 1
    check(Reward(path="r", stages=["par", {"stage": "factor", "rule": "repetition"}]), 20, 1)
    lsc = ["lsc", {"stage": "overlong", "margin": 4, "penalty": 1.0}]
    check(Reward(path="r", stages=lsc, references=8), 20, 1)
