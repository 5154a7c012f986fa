"""Answers that cannot be scored: told of, kept out of the update, and never a reason to stop."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from grm_ray.config.errors import RunStopped
from grm_ray.config.ppo import PpoJob
from grm_ray.drivers.ppo.refused import RefusedLog, told_of_gaps, told_of_untrue, without_gaps
from grm_ray.drivers.ppo.rewards import PolicyRewards
from grm_ray.drivers.ppo.step import GENERATED, SCORED, Step
from grm_ray.drivers.ppo.update import begin_update
from grm_ray.runtime.ledger import StepLedger
from grm_ray.training.policy_loss import PolicyLoss
from grm_ray.workers import rules


def step(reasons, scores=None, ruled=None):
    uids = [f"p:0:{i}" for i in range(len(reasons))]
    made = Step(StepLedger(uids, frozenset({GENERATED, SCORED})))
    for i, name in enumerate(uids):
        made.rows[name] = {
            "refused": reasons[i],
            "scores": [1.0] if scores is None else scores[i],
            "rules": [] if ruled is None else ruled[i],
            "true_reward": None if i == 0 else float(i),
            **{"penalty": 0.0, "finished": 1.0, "length": 4.0, "tokens": 9.0},
        }
    return made


def test_each_refused_answer_is_written_down_with_its_reason(tmp_path):
    refused = RefusedLog(tmp_path)
    assert refused.note(step([None, None]), "step-00001") is None
    assert not (tmp_path / "refused.jsonl").exists()
    told = refused.note(step([None, "ValueError: no box", None]), "step-00002")
    assert told == "step-00002: 1 of 3 answers not scored (refused.jsonl): ValueError: no box"
    refused.note(step(["a", None]), "step-00003")
    lines = [json.loads(line) for line in (tmp_path / "refused.jsonl").read_text().splitlines()]
    assert [(x["samples"], x["uid"], x["reason"]) for x in lines] == [
        ("step-00002", "p:0:1", "ValueError: no box"),
        ("step-00003", "p:0:0", "a"),
    ]


def test_steps_that_are_made_again_are_told_of_once(tmp_path):
    refused, path = RefusedLog(tmp_path), tmp_path / "refused.jsonl"
    refused.cut_after(3)
    for where in ("step-00002", "step-00003", "step-00004"):
        refused.note(step(["a", None]), where)
    with path.open("a") as out:
        out.write('{"samples": "step-00002", "ui')
    refused.cut_after(3)
    refused.note(step(["b", None]), "step-00004")
    lines = [json.loads(line)["samples"] for line in path.read_text().splitlines()]
    assert lines == ["step-00002", "step-00003", "step-00004"]


def test_a_step_of_which_nothing_can_be_scored_ends_the_run(tmp_path):
    with pytest.raises(RunStopped, match="none of 2 answers could be scored: NameError: x"):
        RefusedLog(tmp_path).note(step(["NameError: x", "NameError: x"]), "step-00001")


def test_refused_rows_stand_at_the_mean_of_the_others():
    scores = np.array([[1.0, 4.0], [math.nan, 2.0], [3.0, 0.0]])
    assert without_gaps(scores).tolist() == [[1.0, 4.0], [2.0, 2.0], [3.0, 0.0]]
    assert without_gaps(np.zeros((3, 0))).shape == (3, 0)
    with pytest.raises(ValueError, match="no row"):
        without_gaps(np.full((2, 1), math.nan))
    # Two answers a prompt: the second prompt's has another to stand for it, the third's has none.
    scores = np.array([[1.0], [3.0], [9.0], [math.nan], [math.nan], [math.nan], [5.0], [7.0]])
    filled = [1.0, 3.0, 9.0, 9.0, 5.0, 5.0, 5.0, 7.0]
    assert without_gaps(scores, each=2)[:, 0].tolist() == filled


def test_only_rows_with_scores_and_rules_are_learned_from():
    made = step(
        [None, "x", "y", None],
        scores=[[1.0], [math.nan], [2.0], [3.0]],
        ruled=[[0.0], [0.0], [math.nan], [0.0]],
    )
    assert made.learnable.tolist() == [True, False, False, True]
    assert made.mean("true_reward") == 2.0
    assert step([None, None]).learnable.tolist() == [True, True]


def test_a_function_that_fails_on_one_answer_says_why_and_scores_the_others():
    def number(prompt, answer):
        return float(answer)

    found, reasons = rules.each(number, ["?"] * 4, ["1", "two", "inf", "4"])
    assert found[0] == 1.0 and math.isnan(found[1]) and math.isnan(found[2]) and found[3] == 4.0
    assert reasons[0] is reasons[3] is None
    assert (
        reasons[1].startswith("ValueError: could not convert") and reasons[2] == "it returned inf"
    )


def test_some_answers_may_lack_a_score_but_not_all_of_them():
    asked = step([None, "scorers died on it", None])
    scores = np.array([[1.0], [np.nan], [3.0]])
    assert told_of_gaps(asked, np.ones((3, 1)), "answers") is None
    assert told_of_gaps(asked, scores, "answers to compare with") == (
        "1 of 3 answers to compare with not scored, the mean of the others is used for them: "
        "scorers died on it"
    )
    assert without_gaps(scores)[1] == 2.0
    with pytest.raises(RunStopped, match="none of the answers could be scored: no text"):
        told_of_gaps(step(["no text"] * 2), np.full((2, 1), np.nan), "answers")


def learned_from(estimator, made, prompts, **reward):
    """`(rewards of the rows, uid -> what it takes to its rank)` of one update on one rank."""
    config = PpoJob(
        name="n",
        policy={"path": "p"},
        reward={"path": "r", **reward},
        data={"train": {"path": "d"}},
        ppo={"estimator": estimator},
        rollout={"prompts_per_step": 2, "samples_per_prompt": 3},
    )
    rewards = PolicyRewards(config, None, None, [], print, None)
    reward = list(rewards.of_step(made, prompts).values())[-1]
    taken = {}
    learn = SimpleNamespace(remote=lambda _, __, of_rows, *___: taken.update(of_rows))
    ranks = SimpleNamespace(ranks=[SimpleNamespace(learn=learn)])
    loss = PolicyLoss(config.ppo, config.rollout)
    begin_update(config, ranks, loss, made, reward, prompts, 0.0, 1)
    return reward, taken


@pytest.mark.parametrize("estimator", ["rloo", "grpo", "dr_grpo", "reinforce_pp_baseline", "gae"])
@pytest.mark.parametrize("stages", [[], [{"stage": "normalize", "by": "running"}]])
def test_a_refused_answer_changes_nothing_for_the_others(estimator, stages):
    """Prompt 0 is asked of 10, 12 and no score; prompt 1 of -10, -12 and -8."""
    kept, scores = [0, 1, 3, 4, 5], [[10.0], [12.0], [math.nan], [-10.0], [-12.0], [-8.0]]
    prompts = [0, 0, 0, 1, 1, 1]
    gap = step([None, None, "x", None, None, None], scores=scores)
    reward, taken = learned_from(estimator, gap, prompts, stages=stages)
    # As if the refused one had never been asked for.
    without = step([None] * 5, scores=[scores[i] for i in kept])
    alone, expected = learned_from(estimator, without, [prompts[i] for i in kept], stages=stages)
    assert math.isnan(reward[2]) and reward[kept].tolist() == alone.tolist()
    assert list(taken) == [f"p:0:{i}" for i in kept]
    assert list(taken.values()) == list(expected.values())
    if estimator == "rloo" and not stages:
        assert list(taken.values())[:2] == [-2.0, 2.0]


def test_the_only_scored_answer_to_a_prompt_has_nothing_to_be_compared_with():
    scores = [[math.nan], [12.0], [math.nan], [-10.0], [-12.0], [-8.0]]
    made = step(["x", None, "x", None, None, None], scores=scores)
    _, taken = learned_from("rloo", made, [0, 0, 0, 1, 1, 1])
    assert list(taken) == ["p:0:3", "p:0:4", "p:0:5"]
    _, taken = learned_from("grpo", made, [0, 0, 0, 1, 1, 1])
    assert taken["p:0:1"] == 0.0


def test_held_out_answers_without_a_true_reward_are_told_of():
    asked = step(["true reward: ValueError: no box", None, None])
    assert told_of_untrue(asked, "answers") == (
        "1 of 3 answers have no true reward, the figures are those of the others: "
        "true reward: ValueError: no box"
    )
    one = step([None])
    assert told_of_untrue(one, "answers") == (
        "none of the answers has a true reward: it returned no number"
    )
    one.rows["p:0:0"]["true_reward"] = 1.0
    assert told_of_untrue(one, "answers") is None


@pytest.mark.parametrize(("judge", "lines"), [("m:f", 1), (None, 0)])
def test_an_evaluation_tells_of_them_where_there_is_a_true_reward(judge, lines):
    said = []
    rewards = SimpleNamespace(
        _config=SimpleNamespace(reward=SimpleNamespace(true_reward=judge)),
        _say=said.append,
        _references={},
        pipeline=SimpleNamespace(proxy=lambda scores_BK, references: scores_BK[:, 0]),
    )
    proxy = PolicyRewards.of_held_out(rewards, step(["true reward: x", None]))
    assert proxy.tolist() == [1.0, 1.0] and len(said) == lines
