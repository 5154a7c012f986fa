"""Curation from votes that are there: whose they are, which pairs they are of, what is kept."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from grm_ray.config.errors import ConfigError
from grm_ray.config.judging import CurateJob
from grm_ray.data.sources import Quarantine
from grm_ray.data.tables import SCORED
from grm_ray.drivers import scoring
from grm_ray.drivers.checks.check import check
from grm_ray.drivers.curate import run as curate
from grm_ray.drivers.curate.votes import PairReader
from grm_ray.drivers.curate.votes import ballots as in_folds
from grm_ray.runtime.placement import Node
from tests.conftest import rows


def written(path, given):
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


def numbered(count, **more):
    """Pairs whose answers say how good they are."""
    return [
        {"prompt": f"question {i}", "chosen": f"{i + 1}", "rejected": f"{-i - 1}", **more}
        for i in range(count)
    ]


@pytest.fixture
def given(tmp_path, tiny_model):
    return {
        "name": "curated",
        "runs": str(tmp_path / "runs"),
        "data": {"path": str(written(tmp_path / "pairs.jsonl", numbered(12)))},
        "base": {
            "model": {"path": str(tiny_model), "dtype": "float32"},
            "data": {"max_length": 64},
            "workers": {"count": 1},
        },
        "folds": 2,
        "scoring": {"dtype": "float32"},
        "judges": {"count": 1},
    }


def ballots(given):
    config = CurateJob(**given)
    folder = Path(config.runs) / config.name
    folder.mkdir(parents=True, exist_ok=True)
    return list(in_folds(config, folder, PairReader(config, Quarantine()))), folder


def curated(given, score=float):
    """The rows of a run whose voters give an answer `score(its text)`; nothing is trained."""
    found, folder = ballots(given)
    for ballot in found:
        scored = [
            {
                "contest": i,
                "chosen": side == "chosen",
                "score": score(row[side]),
                "characters": len(row[side]),
                "subset": None,
                "prompt_id": row["prompt"][0]["content"],
            }
            for i, row in enumerate(rows(Path(ballot.votes.path)))
            for side in ("chosen", "rejected")
        ]
        scoring.write(pa.Table.from_pylist(scored, SCORED), ballot.file(folder))
    return pq.read_table(curate.run(CurateJob(**given))).to_pylist()


def names(given):
    return {ballot.job.name for ballot in ballots(given)[0]}


def test_votes_of_another_voter_or_of_other_pairs_are_not_taken(given, tmp_path):
    before = names(given)
    assert len(before) == 2 and names(given) == before
    base = given["base"]
    for change in (
        {"seed": 1},
        {"base": {**base, "training": {"epochs": 3}}},
        {"base": {**base, "loss": {"alpha": 0.5}}},
        {"scoring": {"dtype": "bfloat16"}},
        {"data": {**given["data"], "limit": 11}},
        {"data": {**given["data"], "flip": 0.5}},
    ):
        assert not names(given | change) & before, change
    written(tmp_path / "pairs.jsonl", numbered(13))
    assert not names(given) & before
    assert len(names(given | {"voters": 3}) & names(given)) == 2  # what is the same stays


def test_strengths_are_those_of_their_pairs(given):
    found = curated(given | {"policy": "flip", "weakest": 1.0}, lambda text: -abs(float(text) - 9))
    assert len(found) == 12
    for row, before in zip(found, numbered(12), strict=True):
        good, bad = float(before["chosen"]), float(before["rejected"])
        against = abs(good - 9) > abs(bad - 9)
        assert (row["strength_mean"] < 0) == against and (row["action"] == "flip") == against
        assert row["prompt"][0]["content"] == before["prompt"]
    given["data"]["flip"] = 0.5
    found = curated(given | {"policy": "flip", "weakest": 1.0})
    assert 0 < sum(row["action"] == "flip" for row in found) < 12
    assert all(float(row["chosen"]) > 0 for row in found)


def test_what_chooses_training_rows_chooses_these_too(given, tmp_path):
    given["data"] |= {"limit": 5, "shuffle": False}
    assert [row["chosen"] for row in curated(given)] == ["1", "2", "3", "4", "5"]
    prompts = [{**row, "prompt": f"question {i % 4}"} for i, row in enumerate(numbered(12))]
    written(tmp_path / "pairs.jsonl", prompts)
    given["data"] = {"path": given["data"]["path"], "pairs_per_prompt": 2}
    assert len(curated(given)) == 8


def test_prompts_alike_but_for_case_and_spacing_lie_in_one_fold(given, tmp_path):
    alike = [
        {"prompt": prompt, "chosen": f"{i}", "rejected": f"-{i}"}
        for word in "abcdefgh"
        for i, prompt in enumerate((f"what is {word}", f"What  is {word.upper()} "), start=1)
    ]
    written(tmp_path / "pairs.jsonl", alike)
    for ballot in ballots(given)[0]:
        asked = {" ".join(r["prompt"][0]["content"].lower().split()) for r in rows_of(ballot.votes)}
        other = {
            " ".join(r["prompt"][0]["content"].lower().split())
            for r in rows_of(ballot.job.data.train[0])
        }
        assert len(asked) == 4 and not asked & other


def rows_of(source):
    return rows(Path(source.path))


def test_the_data_s_own_margin_and_smoothing_stay(given, tmp_path):
    written(tmp_path / "pairs.jsonl", numbered(12, margin=2.5, label_smoothing=0.2))
    train = rows_of(ballots(given)[0][0].job.data.train[0])
    assert {(row["margin"], row["label_smoothing"]) for row in train} == {(2.5, 0.2)}
    assert {(r["margin"], r["label_smoothing"]) for r in curated(given)} == {(2.5, 0.2)}
    against = {"policy": "flip", "weakest": 0.5}
    flipped = [r for r in curated(given | against, lambda t: -float(t)) if r["action"] == "flip"]
    # They were about the other label.
    assert len(flipped) == 6
    assert {(row["margin"], row["label_smoothing"]) for row in flipped} == {(None, None)}
    soft = {"policy": "soft", "weakest": 0.5, "label_smoothing": 0.3}
    assert sorted({row["label_smoothing"] for row in curated(given | soft)}) == [0.2, 0.3]
    margins = {row["margin"] for row in curated(given | {"policy": "margin"})}
    assert len(margins) > 1


def test_where_every_row_counts_repeated_and_contrary_ones_keep_their_votes(given, tmp_path):
    def judgement(i, labels):
        return {
            "input": f"question {i % 4}",
            "targets": {"choices": [f"{i % 4 + 1}", f"-{i % 4 + 1}"], "labels": labels},
        }

    # Four questions, of which the first two are answered again, once the other way round.
    given_rows = [judgement(i, [1, 0]) for i in range(4)]
    given_rows += [judgement(0, [1, 0]), judgement(1, [0, 1])]
    written(tmp_path / "pairs.jsonl", given_rows)
    given["data"]["format"] = "hhh_alignment"
    found = curated(given | {"policy": "flip", "weakest": 1.0})
    assert len(found) == 6
    assert [row["action"] for row in found] == [*["keep"] * 5, "flip"]
    assert found[4]["strength_mean"] == found[0]["strength_mean"] > 0
    assert found[5]["strength_mean"] == -found[1]["strength_mean"]
    assert found[5]["chosen"] == found[1]["chosen"] == "2"


def test_what_a_template_refuses_is_left_out_and_told(given):
    found = curated(given, lambda text: float("nan") if text == "3" else float(text))
    assert len(found) == 11 and "3" not in {row["chosen"] for row in found}
    told = rows(Path(given["runs"]) / "curated" / "quarantine.jsonl")
    assert [row["rows"] for row in told if "template" in row["reason"]] == [1]


def test_scores_of_other_pairs_are_refused(given):
    found, folder = ballots(given)
    for ballot in found:
        scoring.write(SCORED.empty_table(), ballot.file(folder))
    with pytest.raises(ValueError, match="scores of 0 pairs, expected 6"):
        curate.run(CurateJob(**given))


def test_answers_of_several_turns_are_left_out_and_told(given, tmp_path):
    def judgement(i, turn):
        spoken = {
            side: [
                {"role": role, "content": f"{i} {role if role == 'user' else side} {turn}"}
                for turn in (1, 2)
                for role in ("user", "assistant")
            ]
            for side in ("good", "bad")
        }
        return {
            "winner": "model_a",
            "turn": turn,
            "conversation_a": spoken["good"],
            "conversation_b": spoken["bad"],
        }

    written(tmp_path / "pairs.jsonl", [judgement(i, 1 + (i == 4)) for i in range(5)])
    given["data"]["format"] = "mt_bench_human"
    assert len(curated(given, lambda text: float("good" in text))) == 4
    told = rows(Path(given["runs"]) / "curated" / "quarantine.jsonl")
    assert [row["rows"] for row in told if "several turns" in row["reason"]] == [1]


def test_more_folds_than_prompts_are_the_user_s_to_mend(given):
    with pytest.raises(ConfigError, match="folds: 20 folds for 12 prompts"):
        curate.run(CurateJob(**given | {"folds": 20}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": {"alfa": 0.1}}, "base: unknown key 'loss.alfa'"),
        ({"model": {"path": "./nowhere"}}, "base: model folder ./nowhere"),
        ({"workers": {"count": 9}}, "base: the workers ask for 4.5 CPU"),
        ({"data": {"holdout": 0.0}}, "base: data.holdout"),
    ],
)
def test_a_dry_run_finds_what_is_wrong_with_the_base(given, change, words):
    given["base"] |= change
    with pytest.raises(ConfigError, match=words):
        check(CurateJob(**given), [Node("here", 2, 0)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"policy": "soft", "label_smoothing": 0}, "soft needs label_smoothing above 0"),
        ({"policy": "flip_soft", "label_smoothing": 0}, "flip_soft needs label_smoothing above 0"),
        ({"base": {"seed": 3}}, "are set by the curation"),
        ({"base": {"data": {"train": {"path": "demo"}}}}, "data.train is set by the curation"),
    ],
)
def test_a_config_that_would_do_something_else_is_refused(given, change, words):
    with pytest.raises(ValidationError, match=words):
        CurateJob(**given | change)


def test_votes_are_in_units_of_their_voter(given):
    quiet = [row["strength_mean"] for row in curated(given)]
    loud = [row["strength_mean"] for row in curated(given, lambda text: 100 * float(text))]
    assert np.allclose(quiet, loud)
