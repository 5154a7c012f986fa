"""The prompts of a PPO run: which are trained on, which are held out, which are set aside."""

import json

import pytest

from grm_ray.config.errors import ConfigError
from grm_ray.config.ppo import PpoJob, PromptData
from grm_ray.config.schema import Source
from grm_ray.data.sources import Quarantine
from grm_ray.drivers.ppo import prompts as ppo_prompts

REFUSED = "refused by the chat template: no system turns"


@pytest.fixture
def given(monkeypatch):
    """What the encoder said comes without Ray."""
    monkeypatch.setattr(ppo_prompts, "fetch", lambda info: info)
    return PromptData(train=Source(path="prompts.jsonl"), max_prompt_length=64)


def test_prompts_that_cannot_be_encoded_are_set_aside_with_their_reasons(given):
    quarantine = Quarantine()
    left_out = [("b", REFUSED), ("c", "longer than data.max_prompt_length")]
    refs = ("table", {"prompt_ids": ["a"], "left_out": left_out})
    assert ppo_prompts.encoded(refs, given, given.train, quarantine) == ("table", ["a"])
    assert [(row["row"], row["reason"]) for row in quarantine.rows] == left_out
    assert {row["file"] for row in quarantine.rows} == {"prompts.jsonl"}


def test_a_set_of_which_no_prompt_is_left_says_why(given):
    refs = ("table", {"prompt_ids": [], "left_out": [("a", REFUSED), ("b", REFUSED)]})
    words = f"prompts.jsonl: none of 2 prompts can be used .* the first is {REFUSED}"
    with pytest.raises(ConfigError, match=words):
        ppo_prompts.encoded(refs, given, given.train, Quarantine())


def job(folder, prompts, held_out=None, **keys):
    """A PPO job on files of these prompts."""
    data = {"train": {"path": written(folder / "prompts.jsonl", prompts), "shuffle": False}}
    if held_out is not None:
        data["eval"] = {"path": written(folder / "held_out.jsonl", held_out), **keys}
    evaluation = {"prompts": 2}
    reward = {"path": "r"}
    return PpoJob(name="p", policy={"path": "m"}, reward=reward, data=data, evaluation=evaluation)


def written(path, prompts):
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return str(path)


def said(prompts):
    return [prompt.messages[-1][1] for prompt in prompts]


def test_prompts_without_a_like_keep_their_place(tmp_path):
    quarantine = Quarantine()
    train, held_out = ppo_prompts.read_prompts(job(tmp_path, ["a", "b", "c", "d"]), quarantine)
    assert said(train) == ["a", "b"] and said(held_out) == ["c", "d"] and not quarantine.rows


def test_a_prompt_like_a_held_out_one_is_not_trained_on(tmp_path):
    kind = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "c"}]
    quarantine = Quarantine()
    config = job(tmp_path, ["a", "The  Cat?", kind, "b", "c", "the cat?"])
    train, held_out = ppo_prompts.read_prompts(config, quarantine)
    assert said(train) == ["a", "b"] and said(held_out) == ["c", "the cat?"]
    assert quarantine.counts() == {"prompt shared with the held-out part": 2}


def test_a_prompt_like_one_of_an_evaluation_set_is_not_trained_on(tmp_path):
    quarantine = Quarantine()
    config = job(tmp_path, ["a", "B", "b", "c"], ["b ", "x"])
    train, held_out = ppo_prompts.read_prompts(config, quarantine)
    assert said(train) == ["a", "c"] and len(held_out) == 2
    assert quarantine.counts() == {"prompt shared with an evaluation set": 2}


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (3, 2), (None, 2)])
def test_held_out_prompts_are_limited_by_their_source_and_by_the_evaluation(tmp_path, limit, count):
    config = job(tmp_path, ["a", "b"], ["u", "v", "w", "x"], limit=limit)
    assert said(ppo_prompts.read_prompts(config, Quarantine())[1]) == ["u", "v"][:count]
