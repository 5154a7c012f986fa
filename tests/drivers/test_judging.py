"""From tables of scores to figures: contests stay together, ensembles weigh their members alike."""

import json

import numpy as np
import pyarrow as pa
import pytest

from grm_ray.config.schema import Source
from grm_ray.drivers import judging
from grm_ray.drivers.scoring import SCORED


def table(*contests, subset="a"):
    """One contest an argument: (chosen scores, rejected scores)."""
    rows = [
        {
            "contest": number,
            "chosen": good,
            "score": float(score),
            "characters": 10 + number,
            "subset": subset,
            "prompt_id": f"p{number}",
        }
        for number, sides in enumerate(contests)
        for good, scores in ((True, sides[0]), (False, sides[1]))
        for score in scores
    ]
    return pa.Table.from_pylist(rows, SCORED)


def test_answers_of_a_contest_come_together():
    first, second = judging.contests(table(([3], [1, 2]), ([1], [5])))
    assert first.chosen.tolist() == [3] and first.rejected.tolist() == [1, 2]
    assert second.cluster == "p1" and second.rejected_lengths.tolist() == [11]


def test_an_empty_table_has_no_contests():
    assert judging.contests(SCORED.empty_table()) == []


def test_ties_are_failures_and_told():
    found = judging.judged(judging.contests(table(([1], [1]), ([2], [1]))), "trl")
    assert found["accuracy"]["mean"] == 0.5 and found["ties"] == 1


def test_a_member_with_large_scores_has_no_more_say():
    small = {"s": table(([1], [0]), ([0], [1]), ([1], [0]))}
    large = {"s": table(([0], [1000]), ([1000], [0]), ([0], [1000]))}
    mean = judging.combine([small, large], "mean", "s")["s"]
    assert np.allclose(mean, 0)
    least = judging.combine([small, large], "min", "s")["s"]
    assert np.allclose(least, least[0]) and least[0] < 0


def test_an_ensemble_of_equals_is_its_member():
    member = {"s": table(([3], [1]), ([0], [2]))}
    scores = judging.combine([member, member], "min", "s")["s"]
    alone = judging.judged(judging.contests(member["s"]), "trl")["accuracy"]
    together = judging.judged(judging.contests(member["s"], scores), "trl")["accuracy"]
    assert alone == together


def test_a_member_without_an_opinion_is_refused():
    constant = {"s": table(([1], [1]))}
    with pytest.raises(ValueError, match="scores all of 's' alike"):
        judging.combine([constant, constant], "mean", "s")


def test_side_by_side_is_plain_json_and_compares_with_the_baseline():
    good = {"s": judging.contests(table(*[([1], [0])] * 8))}
    bad = {"s": judging.contests(table(*[([0], [1])] * 8))}
    found = judging.side_by_side(
        {"bad": bad, "good": good},
        {"s": Source(path="x.jsonl")},
        {"bad": "bad", "good": "bad"},
    )
    json.dumps(found, allow_nan=False)
    assert "versus" not in found["results"]["s"]["bad"]
    gain = found["results"]["s"]["good"]["versus"]
    assert gain["baseline"] == "bad" and gain["difference"]["mean"] == 1.0
    assert found["sets"]["s"]["contests"] == 8


def test_rows_that_are_not_the_benchmark_s_are_said_to_be_so():
    found = judging.judged(judging.contests(table(([1], [0]), subset="own")), "rm_bench")
    assert "own" in found["suite"]["cannot"] or "three" in found["suite"]["cannot"]
