"""From tables of scores to figures: contests stay together, ensembles weigh their members alike."""

import json

import numpy as np
import pyarrow as pa
import pytest

from grm_ray.config.schema import Source
from grm_ray.data.tables import SCORED
from grm_ray.drivers import judging
from grm_ray.drivers.scoring import without_refused


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


def test_a_contest_that_a_model_gives_no_finite_score_is_left_out_of_all():
    a = table(([1], [0]), ([np.nan], [0]), ([2], [0]))
    b = table(([1], [0]), ([1], [0]), ([np.inf], [0]))
    kept, gone = without_refused({"a": a, "b": b})
    assert gone == 2 and {m: set(t["contest"].to_pylist()) for m, t in kept.items()} == {
        "a": {0},
        "b": {0},
    }


def test_a_member_without_an_opinion_is_refused():
    constant = {"s": table(([1], [1]))}
    with pytest.raises(ValueError, match="set 's': member 0 gives the same score to all"):
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


def spread(*contests, offset=0.0, subset="a"):
    """`table` with other answer lengths in every row, all scores moved by `offset`."""
    found = table(*contests, subset=subset)
    moved = pa.array(found["score"].to_numpy() + np.float32(offset))
    lengths = pa.array(10 + 7 * np.arange(found.num_rows, dtype=np.int32) % 5)
    return found.set_column(2, "score", moved).set_column(3, "characters", lengths)


def test_one_repetition_is_judged_as_it_is():
    found = judging.contests(table(([1], [0]), ([0], [1])))
    assert judging.averaged([found], "trl") == judging.judged(found, "trl")
    assert judging.gained([found], [found]) == judging.versus(found, found)


def test_repetitions_are_judged_one_by_one():
    tables = [
        spread(([1], [0]), ([0], [1]), ([3], [2])),
        spread(([1], [0]), ([2], [1]), ([3], [5]), offset=100),
        spread(([1], [0]), ([1], [1]), ([3], [0]), offset=-50),
    ]
    each = [judging.judged(judging.contests(t), "trl") for t in tables]
    found = judging.averaged([judging.contests(t) for t in tables], "trl")
    assert found["accuracy"]["each"] == pytest.approx([2 / 3] * 3)
    assert found["ties"] == pytest.approx(1 / 3) and found["pairs"] == 3
    for figure in ("pearson", "spearman"):
        assert found["length"][figure] == pytest.approx(
            np.mean([one["length"][figure] for one in each])
        )
    eces = [one["calibration"]["ece"] for one in each]
    assert found["calibration"]["ece"] == pytest.approx(np.mean(eces))
    *_, last = found["calibration"]["bins"]
    of_last = [one["calibration"]["bins"][-1] for one in each]
    won = sum(b["pairs"] * (b["accuracy"] or 0) for b in of_last) / sum(b["pairs"] for b in of_last)
    assert last["accuracy"] == pytest.approx(won) and last["pairs"] <= 3


def test_a_benchmark_of_repetitions_is_the_mean_of_theirs():
    """RewardBench 2 asks its ties twice, `ref` and `tied`: repetitions are not more of them."""
    rows = [
        {
            "contest": contest,
            "chosen": i < good,
            "score": float(5 - i if i < good else 0),
            "characters": 10,
            "subset": "Ties",
            "prompt_id": "ties:7",
        }
        for contest, good in ((0, 1), (1, 3))
        for i in range(good + 3)
    ]
    first = pa.Table.from_pylist(rows, SCORED)
    other = first.set_column(2, "score", pa.array(first["score"].to_numpy()[::-1].copy()))
    runs = [judging.contests(t) for t in (first, other, first)]
    each = [judging.judged(run, "reward_bench_2")["suite"]["score"] for run in runs]
    suite = judging.averaged(runs, "reward_bench_2")["suite"]
    assert "cannot" not in suite and each[0] != each[1]
    assert suite["score"] == pytest.approx(np.mean(each))


def test_several_answers_have_intervals_over_repetitions():
    runs = [
        judging.contests(table(([3], [1, 2]), ([0], [5, 6]))),
        judging.contests(table(([3], [1, 2]), ([9], [5, 6]))),
    ]
    found = judging.averaged(runs, "trl")["one_to_many"]
    assert found["strict"]["each"] == [0.5, 1.0]
    assert found["mrr"]["each"] == pytest.approx([(1 + 1 / 3) / 2, 1])


def test_what_was_made_once_stands_against_each_repetition():
    lost, won = (judging.contests(table(*[sides] * 6)) for sides in (([0], [1]), ([1], [0])))
    found = judging.gained([lost, won], [won])
    assert found["difference"]["each"] == [1.0, 0.0]
    assert found["difference"]["low"] == -1.0 and found["difference"]["high"] == 1.0
    assert found["discordance"] == 0.5


def test_an_ensemble_s_scores_are_no_chances():
    found = {m: {"s": judging.contests(table(([1], [0])))} for m in ("one", "both")}
    baselines = dict.fromkeys(found, "one")
    shown = judging.side_by_side(found, {"s": Source(path="x.jsonl")}, baselines, ["both"])
    assert shown["results"]["s"]["both"]["calibration"] == {"ece": None, "bins": []}
    assert shown["results"]["s"]["one"]["calibration"]["ece"] > 0
