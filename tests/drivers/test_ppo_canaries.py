"""Canary prompts: read or refused, and what the guard makes of them."""

import json

import numpy as np
import pytest

from grm_ray.config.errors import ConfigError
from grm_ray.config.ppo import Guard
from grm_ray.config.schema import Source
from grm_ray.data.sources import Quarantine
from grm_ray.drivers.ppo.canaries import Canaries, read_canaries
from grm_ray.drivers.ppo.guard import Watch


def written(folder, *rows):
    path = folder / "canaries.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(path=str(path))


def test_rows_without_a_pattern_are_set_aside(tmp_path):
    quarantine = Quarantine()
    rows = [
        {"prompt": "2 + 2?", "matches": r"\b4\b"},
        {"prompt": "none", "matches": ""},
        {"prompt": [{"role": "user", "content": "Say yes."}], "matches": "(?i)yes"},
        {"prompt": "", "matches": "x"},
    ]
    found = read_canaries(written(tmp_path, *rows), quarantine)
    assert [canary.prompt.messages[-1][1] for canary in found] == ["2 + 2?", "Say yes."]
    assert len(quarantine.rows) == 2 and quarantine.rows[0]["line"] == 2
    canaries = Canaries(found, None, None, tmp_path, None, [c.prompt.prompt_id for c in found])
    four, yes = (canary.prompt.prompt_id for canary in found)
    assert canaries.is_right(four, "It is 4.") and not canaries.is_right(four, "It is 44.")
    assert canaries.is_right(yes, "YES!")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "a", "matches": "("}], r"line 1: matches: '\(' is not a regular expression"),
        ([{"prompt": "a", "matches": "a{99999999999}"}], "is not a regular expression .*too large"),
        (
            [{"prompt": "a", "matches": "(" * 2000 + ")" * 2000}],
            r"line 1: matches: '\(+\.\.\.\)+' is not a regular expression .*recursion",
        ),
        ([{"prompt": "a", "matches": "b"}] * 2, "line 2: this prompt is already in the file"),
        ([{"prompt": "a", "matches": ""}], "no usable canary"),
        ([{"prompt": "a"}], "matches"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path, rows, words):
    with pytest.raises(ConfigError, match=words):
        read_canaries(written(tmp_path, *rows), Quarantine())


def test_canaries_that_fall_silent_while_the_reward_rises_are_an_alarm():
    watch = Watch(Guard(by="canary", patience=1))
    right = np.ones(20)
    assert watch.look({"eval/reward": 0.0}, {"canary": right}) is None
    metrics = {"eval/reward": 1.0}
    said = watch.look(metrics, {"canary": np.where(np.arange(20) < 8, 0.0, 1.0)})
    assert "canary has fallen (1.000 to 0.600)" in said and metrics["guard/action"] == "warn"
