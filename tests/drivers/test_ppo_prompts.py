"""The prompts of a PPO run: which are trained on, which are held out, which are set aside."""

import pytest

from grm_ray.config.load import ConfigError
from grm_ray.config.ppo import PromptData
from grm_ray.config.schema import Source
from grm_ray.data.sources import Quarantine
from grm_ray.drivers import ppo_prompts

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
