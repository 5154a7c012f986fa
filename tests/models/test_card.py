"""The model card says what a stranger needs, and its metadata is what the hub reads."""

import ast
import re
from dataclasses import asdict

import pytest
import yaml

from grm_ray.config.schema import Head
from grm_ray.data.chat import ScoringContract
from grm_ray.models.card import exported, head_in_words, model_card, usage

CONTRACT = asdict(ScoringContract("t", "v", 7, 512, "left"))
TEMPLATED = asdict(ScoringContract("t", "v", None, 512, "drop", layout="template"))
SOURCES = [
    {"path": "somebody/pairs", "use": "training", "rows": 900, "left_out": {"tie": 7, "cut": 2}},
    {"path": "own.jsonl", "use": "training", "rows": 50, "weight": 2.0},
    {"path": "held.jsonl", "use": "held_out", "rows": 100},
]


def card(**changes):
    given = {
        "base_model": "somebody/small",
        "data": SOURCES,
        "losses": {"preference": "bradley_terry", "alpha": 0.01},
        "scores": [{"set": "held_out", "value": 0.7123, "low": 0.65, "high": 0.7749, "rows": 100}],
        "head": Head().model_dump(),
        "contract": CONTRACT,
    }
    return model_card("my-rm", **(given | changes))


def metadata(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_metadata_names_hub_ids_only():
    stated = metadata(card(license="apache-2.0"))
    assert stated["license"] == "apache-2.0"
    assert stated["base_model"] == "somebody/small"
    assert stated["datasets"] == ["somebody/pairs"]
    local = metadata(card(base_model="/models/small", data=SOURCES[1:]))
    assert not {"license", "base_model", "datasets"} & set(local)


def test_the_tables_say_what_was_used_left_out_and_reached():
    text = card()
    assert "| `somebody/pairs` | training | 900 | 7 tie; 2 cut |" in text
    assert "| `own.jsonl` | training (weight 2) | 50 | - |" in text
    assert "| held_out | accuracy | 0.712 | 0.650 to 0.775 | 100 |" in text
    assert "- preference: bradley_terry\n- alpha: 0.01" in text
    assert "It was not evaluated." in card(scores=[])


def test_the_contract_is_told_in_words():
    text = card()
    assert "then token 7 once, and nothing after it." in text
    assert "At most 512 tokens are read; if there are more, the beginning" in text
    other = card(contract=TEMPLATED | {"special_tokens_twice": True})
    assert "so that the BOS token occurs twice" in other and "the pair is left out" in other


def test_attributes_are_told_with_their_weights():
    head = Head(kind="mlp", hidden=64, attributes=["help", "length"], weights=[0.7, -0.2])
    said = head_in_words(head.model_dump())
    assert "ReLU layer of 64" in said and "0.7 help + -0.2 length" in said


@pytest.mark.parametrize("format", ["folder", "adapter", "sequence-classification"])
@pytest.mark.parametrize("differ", [(), ("several turns",)])
@pytest.mark.parametrize("contract", [CONTRACT, TEMPLATED], ids=["answer", "template"])
def test_every_snippet_is_python(format, differ, contract):
    snippets = re.findall(r"```python\n(.*?)```", usage(format, contract, differ), re.DOTALL)
    assert snippets
    for snippet in snippets:
        assert len(snippet.splitlines()) <= 14
        ast.parse(snippet)


def test_an_exported_card_has_one_usage_and_keeps_the_rest():
    text = exported(card(config={"job": "rm"}), "sequence-classification", CONTRACT)
    assert text.count("## Usage") == 1
    assert "AutoModelForSequenceClassification" in text and "load_reward_model" not in text
    assert "## Evaluation" in text and '"job": "rm"' in text
    assert "AutoModelForSequenceClassification" in exported("", "sequence-classification", CONTRACT)


def test_a_template_that_falls_short_is_told_with_the_way_to_build_ids():
    text = exported(card(), "sequence-classification", CONTRACT, ["several turns"])
    assert "trained on: several turns" in text
    assert "add_generation_prompt=True" in text and "[7]" in text
