"""The over-optimisation study: its labels, what makes a cell another, what is not done again."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from grm_ray.config.errors import ConfigError, RunStopped
from grm_ray.config.overoptimization import OveroptimizationJob
from grm_ray.data.sources import Quarantine
from grm_ray.drivers.checks.check import check
from grm_ray.drivers.job_key import Keys
from grm_ray.drivers.overoptimization import figures, labels, plan
from grm_ray.drivers.overoptimization import run as overoptimization
from grm_ray.runtime.placement import Node
from tests import judges
from tests.conftest import rows

TRUTH = "tests.judges:shorter"


@pytest.fixture
def given(tmp_path, tiny_model, tiny_data):
    """Two models, an ensemble of the first, two seeds."""
    model = {"path": str(tiny_model), "dtype": "float32"}
    prompts = {"path": str(tiny_data["prompts"])}
    pairs = {"path": str(tiny_data["pairs"])}
    return {
        "name": "study",
        "runs": str(tmp_path / "runs"),
        "true_reward": TRUTH,
        "data": {"train": {**pairs, "limit": 32}, "test": pairs},
        "flips": {"clean": 0.0, "noisy": 0.25},
        "seeds": [0, 1],
        "ppo_seeds": 1,
        "reward_model": {
            "model": model,
            "loss": {"alpha": 0.0},
            "data": {"max_length": 64},
            "workers": {"count": 1, "cpus": 1},
        },
        "models": {"bt": {}, "grm": {"loss.alpha": 0.1, "loss.regularizer": "sft"}},
        "proxies": {
            "bt": {"model": "bt"},
            "wco": {"ensemble_of": "bt", "aggregate": "wco"},
            "grm": {"model": "grm"},
        },
        "baseline": "bt",
        "best_of_n": {
            "policy": model,
            "data": {"prompts": prompts, "max_prompt_length": 40},
            "rollout": {"samples_per_prompt": 4, "max_new_tokens": 12},
        },
        "ppo": {
            "policy": model,
            "data": {"train": prompts, "eval": {**prompts, "limit": 6}, "max_prompt_length": 40},
            "rollout": {"max_new_tokens": 12},
            "ppo": {"steps": 2},
        },
    }


def planned(given, tmp_path, truth="truth"):
    """(models, best of n, policies) as the driver plans them, labels made."""
    config = OveroptimizationJob(**given)
    folder = tmp_path / "study"
    for part in ("cells", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    made = labels.label(config, folder / "labels", Quarantine())
    keys = Keys()
    trained = plan.reward_models(config, made, folder, keys)
    models = {name: cell.key for name, cell in trained.items()}
    return (
        trained,
        plan.best_of_n(config, models, truth, folder, keys),
        plan.policies(config, models, truth, folder, keys),
    )


def finish(folder, cell):
    plan.result_of(folder, cell.key).write_text(json.dumps({"about": cell.about}))


def test_the_true_reward_says_which_answer_is_better(given, tmp_path):
    config = OveroptimizationJob(**given)
    made = labels.label(config, tmp_path, Quarantine())
    assert 20 < len(rows(made["train"])) <= 32  # less those that are alike to the true reward
    for row in rows(made["test"]):
        prompt = row["prompt"][-1]["content"]
        better, worse = (judges.shorter(prompt, row[k]) for k in ("chosen", "rejected"))
        assert better > worse and row["margin"] == pytest.approx(better - worse)
    written = made["train"].stat().st_mtime_ns
    assert labels.label(config, tmp_path, Quarantine()) == made
    assert made["train"].stat().st_mtime_ns == written


def test_pairs_that_the_true_reward_does_not_tell_apart_are_set_aside(given, tmp_path):
    own = tmp_path / "pairs.jsonl"
    pairs = [("a cat", "a dog"), ("no", "yes it is")]
    own.write_text(
        "".join(json.dumps({"prompt": "?", "chosen": c, "rejected": r}) + "\n" for c, r in pairs)
    )
    given["data"] = {"train": {"path": str(own)}, "test": {"path": str(own)}}
    quarantine = Quarantine()
    made = labels.label(OveroptimizationJob(**given), tmp_path, quarantine)
    assert [row["chosen"] for row in rows(made["train"])] == ["no"]
    assert quarantine.counts() == {
        "the true reward is the same for both answers": 2
    }  # of two files


def test_pairs_that_the_true_reward_fails_on_are_set_aside_with_the_reason(given, tmp_path):
    own = tmp_path / "pairs.jsonl"
    pairs = [("good", "not so good"), ("inf", "a"), ("b", "nan"), ("raises", "c"), ("d", "none")]

    def write(pairs):
        found = [{"prompt": "?", "chosen": c, "rejected": r} for c, r in pairs]
        own.write_text("".join(json.dumps(row) + "\n" for row in found))

    write(pairs)
    given["data"] = {"train": {"path": str(own)}, "test": {"path": str(own)}}
    given["true_reward"] = "tests.judges:moody"
    quarantine = Quarantine()
    made = labels.label(OveroptimizationJob(**given), tmp_path, quarantine)
    (row,) = rows(made["train"])
    assert (row["chosen"], row["margin"]) == ("good", pytest.approx(1 / 5 - 1 / 12))
    reasons = [row["reason"] for row in quarantine.rows[:4]]
    assert [reason.removeprefix("no true reward: ").split(":")[0] for reason in reasons] == [
        "it returned inf",
        "it returned nan",
        "KeyError",
        "TypeError",
    ]
    write(pairs[1:])
    with pytest.raises(ConfigError, match=r"ranks no pair of answers \(no true reward: TypeErr"):
        labels.label(OveroptimizationJob(**given), tmp_path, Quarantine())


def test_noise_models_and_seeds_are_cells_of_their_own(given, tmp_path):
    trained, chosen, policies = planned(given, tmp_path)
    assert len({cell.key for cell in trained.values()}) == 2 * 2 * 2
    assert [cell.name for cell in chosen] == ["clean/best of n", "noisy/best of n"]
    assert set(chosen[0].job.proxies) == {"bt_0", "bt_1", "grm_0", "grm_1"}
    assert len({cell.key for cell in policies.values()}) == 2 * 3
    job = policies["noisy", "wco", 0].job
    assert set(job.reward.members) == {"s0", "s1"} and job.reward.aggregate.name == "wco"
    assert policies["noisy", "bt", 0].job.reward.path == str(
        Path(trained["noisy", "bt", 0].job.runs) / trained["noisy", "bt", 0].key / "model"
    )
    # Wrong labels are drawn once, for all models and seeds; or by the seed of each training.
    files = {cell.job.data.train[0].path for name, cell in trained.items() if name[0] == "noisy"}
    assert len(files) == 1 and trained["noisy", "bt", 0].job.data.train[0].flip == 0
    own = planned(given | {"flip_seed": None}, tmp_path)[0]
    assert own["noisy", "bt", 0].job.data.train[0].flip == 0.25
    assert own["noisy", "bt", 1].key != trained["noisy", "bt", 1].key
    assert trained["noisy", "bt", 0].job.seed == 0 != trained["noisy", "bt", 1].job.seed


def keys_of(planned):
    trained, chosen, policies = planned
    return {c.key for c in [*trained.values(), *chosen, *policies.values()]}


def test_what_is_added_leaves_the_cells_that_were_there(given, tmp_path):
    before = keys_of(planned(given, tmp_path))
    more = copy.deepcopy(given)
    more["proxies"]["uwo"] = {"ensemble_of": "bt", "aggregate": {"name": "uwo", "weight": 0.1}}
    more["proxies"]["par"] = {"model": "grm", "ppo": {"reward.stages": ["par"]}}
    more["name"], more["at_once"] = "other", 3
    assert before < keys_of(planned(more, tmp_path))


@pytest.mark.parametrize(
    ("change", "stay"),
    [
        ({"reward_model": {"training": {"epochs": 2}}}, (False, False)),
        ({"ppo": {"ppo": {"steps": 3}}}, (True, False)),
        ({"best_of_n": {"rollout": {"samples_per_prompt": 5}}}, (True, True)),
    ],
)
def test_a_cell_changes_with_what_its_result_depends_on(given, tmp_path, change, stay):
    before = planned(given, tmp_path)
    (part, changes), *_ = change.items()
    for section, keys in changes.items():
        given[part].setdefault(section, {}).update(keys)
    after = planned(given, tmp_path)
    same = [
        {c.key for c in before[i].values()} == {c.key for c in after[i].values()} for i in (0, 2)
    ]
    assert tuple(same) == stay
    assert ({c.key for c in before[1]} == {c.key for c in after[1]}) == (part == "ppo")


@pytest.mark.parametrize(
    "changes",
    [
        {"ppo": {"optimizer": {"tokens_per_micro_batch": 99, "zero_stage": 3}}},
        {"rollout": {"engine": {"kv_cache_gb": 2}, "rows_per_batch": 3}},
        {"evaluation": {"greedy": True}},
        {"reward": {"tokens_per_micro_batch": 99}},
    ],
)
def test_a_policy_s_cell_stays_with_what_changes_speed_and_memory_alone(given, tmp_path, changes):
    before = planned(given, tmp_path)[2]
    for section, keys in changes.items():
        given["ppo"].setdefault(section, {}).update(keys)
    after = planned(given, tmp_path)[2]
    assert [c.key for c in before.values()] == [c.key for c in after.values()]


def test_another_true_reward_is_another_study(given, tmp_path):
    before, after = planned(given, tmp_path), planned(given, tmp_path, "other truth")
    assert not {c.key for c in before[1]} & {c.key for c in after[1]}
    assert not {c.key for c in before[2].values()} & {c.key for c in after[2].values()}
    given["true_reward"] = "tests.judges:longer"
    trained = planned(given, tmp_path)[0]
    assert not {c.key for c in trained.values()} & {c.key for c in before[0].values()}


def test_only_what_no_finished_cell_has_scored_is_searched(given, tmp_path):
    folder = tmp_path / "study"
    part = copy.deepcopy(given)
    part["only"] = ["noisy/bt"]
    (first,) = planned(part, tmp_path)[1]
    assert set(first.job.proxies) == {"bt_0", "bt_1"}
    finish(folder, first)
    assert planned(part, tmp_path)[1] == []
    # The ensemble is of models that one cell has scored together.
    part["only"] = ["noisy/*"]
    (second,) = planned(part, tmp_path)[1]
    assert set(second.job.proxies) == {"grm_0", "grm_1"}
    finish(folder, second)
    # A seed that came later takes all seeds of its model along: they are compared on one cell.
    part["seeds"] = [0, 1, 2]
    (third,) = planned(part, tmp_path)[1]
    assert len(third.job.proxies) == 6
    part["scored_together"] = 4
    third, fourth = planned(part, tmp_path)[1]
    assert set(third.job.proxies) == {"bt_0", "bt_1", "bt_2"} and len(fourth.job.proxies) == 3


def test_another_search_is_other_figures(given, tmp_path):
    """Cells of another number of answers, or of other sizes, are not read."""
    folder = tmp_path / "study"
    (first, _) = planned(given, tmp_path)[1]
    finish(folder, first)
    given["best_of_n"]["ns"] = [2]
    (again, _) = planned(given, tmp_path)[1]
    assert again.about["search"] != first.about["search"]
    config = OveroptimizationJob(**given)
    trained = planned(given, tmp_path)[0]
    search = again.about["search"]
    assert figures._choices(config, "clean", folder, search, trained) == {}


def test_a_share_of_the_labels_is_turned_round_and_margins_stay(given, tmp_path):
    config = OveroptimizationJob(**given)
    made = labels.label(config, tmp_path, Quarantine())
    clean, noisy = rows(made["train/clean"]), rows(made["train/noisy"])
    assert clean == rows(made["train"])
    turned = [a for a, b in zip(clean, noisy, strict=True) if a["chosen"] == b["rejected"]]
    assert 2 <= len(turned) <= 14 and len(clean) > 20
    for before, after in zip(clean, noisy, strict=True):
        assert before["margin"] == after["margin"] and before["prompt"] == after["prompt"]
        assert {before["chosen"], before["rejected"]} == {after["chosen"], after["rejected"]}


def test_an_early_end_lasts_to_the_end_of_the_others():
    assert figures._lasting([1, 2], 4) == [1, 2, 2, 2]


def test_two_names_for_one_job_are_refused(given, tmp_path):
    given["models"]["again"] = {"loss.alpha": 0.0}
    given["proxies"]["again"] = {"model": "again"}
    with pytest.raises(ConfigError, match="clean/bt/0 and clean/again/0 are the same job"):
        planned(given, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"baseline": "nobody"}, r"baseline: proxies has no 'nobody'"),
        ({"seeds": [1, 1]}, "seeds: a seed is listed twice"),
        ({"ppo_seeds": 3}, "ppo_seeds: 3 is more than the 2 seeds"),
        ({"seeds": [4]}, r"proxies\.wco: an ensemble needs two seeds"),
        ({"only": []}, "only\n.*at least 1 item"),
        ({"only": ["noisy/btt"]}, "only: 'noisy/btt' matches none of"),
        ({"proxies": {"bt": {"model": "xx"}}}, r"proxies\.bt: models has no 'xx'"),
        ({"proxies": {"bt": {"model": "bt", "aggregate": "wco"}}}, "only for ensemble_of"),
        ({"proxies": {"bt": {}}}, "give either model .* or ensemble_of"),
        ({"best_of_n": None, "ppo": None}, "give best_of_n, ppo, or both"),
        ({"models": {"bt": {"seed": 3}, "grm": {}}}, r"models\.bt: seed and data are set"),
        ({"proxies": {"bt": {"model": "bt", "ppo": {"data.eval.limit": 3}}}}, "on the same policy"),
        (
            {"proxies": {"bt": {"ensemble_of": "bt", "aggregate": "conjunction"}}},
            "best-of-n does not have",
        ),
        ({"ppo": {"reward": {"path": "x"}}}, r"ppo\.reward\.path is set by the study"),
        ({"best_of_n": {"proxies": {}}}, r"best_of_n\.proxies is set by the study"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(given, change, words):
    with pytest.raises(ValueError, match=words):
        OveroptimizationJob(**{**given, **change})


@pytest.mark.parametrize(
    ("part", "key", "value", "words"),
    [
        ("reward_model", "loss", {"alfa": 1}, r"models\.bt: unknown key 'loss\.alfa'"),
        ("best_of_n", "ns", [9], "best_of_n: ns: 9 is more than the 4 answers"),
        ("ppo", "rollot", {}, r"proxies\.bt: unknown key 'rollot'"),
        ("ppo", "policy", {"path": "./nowhere"}, "model folder ./nowhere does not exist"),
        ("reward_model", "workers", {"count": 9, "cpus": 1}, r"clean/bt/0: the workers ask for"),
        ("reward_model", "data", {"max_length": 52}, r"models\.bt reads 52 tokens .* is 53"),
        ("proxies", "odd", {"ensemble_of": "bt", "aggregate": "wcoo"}, "unknown aggregate 'wcoo'"),
    ],
)
def test_every_kind_of_cell_is_checked_beforehand(given, part, key, value, words):
    given[part][key] = value
    with pytest.raises(ConfigError, match=words):
        check(OveroptimizationJob(**given), [Node("here", 2, 0)])


def test_held_out_prompts_are_the_same_for_all_policies(given):
    del given["ppo"]["data"]["eval"]
    with pytest.raises(ConfigError, match=r"ppo\.data\.eval: leave it out; policies are compared"):
        check(OveroptimizationJob(**given), [Node("here", 2, 0)])


def test_proxies_are_compared_prompt_by_prompt():
    rng = np.random.default_rng(0)
    easy_P = rng.normal(0, 5, 60)
    base_RP = easy_P + rng.normal(0, 0.1, (3, 60))
    better = figures._versus(base_RP, base_RP + 0.2 + rng.normal(0, 0.1, (3, 60)))
    assert 0.1 < better["low"] < better["mean"] < better["high"] < 0.3
    # An ensemble has one repetition, and is compared with the baseline's mean one.
    alone = figures._versus(base_RP, base_RP[:1] + 0.2)
    assert alone["low"] < 0.2 < alone["high"] and alone["high"] - alone["low"] < 0.2
    assert figures._versus(None, base_RP) is None
    assert figures._versus(base_RP[:, :50], base_RP) is None


def test_a_policy_whose_answers_nobody_could_judge_ends_the_study_and_has_no_result(
    given, tmp_path
):
    cell = planned(given, tmp_path)[2]["clean", "bt", 0]
    run_folder = Path(cell.job.runs) / cell.job.name
    run_folder.mkdir(parents=True)
    (run_folder / "metrics.jsonl").write_text(json.dumps({"step": 2, "eval/reward": 1.0}))
    with pytest.raises(RunStopped, match="clean/bt/0: no answer .* has a true reward"):
        overoptimization._finish(cell, tmp_path / "study", 1.0)
    assert not plan.result_of(tmp_path / "study", cell.key).exists()
