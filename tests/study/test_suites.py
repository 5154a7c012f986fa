import math

import numpy as np
import pytest

from grm_ray.study.preferences import ScoredContest
from grm_ray.study.suites import (
    PRIOR_SETS,
    REWARD_BENCH,
    reward_bench,
    reward_bench_2,
    rm_bench,
    ties,
)

CODE = [name for name in REWARD_BENCH["Reasoning"] if name != "math-prm"]


def contest(chosen, rejected, subset="Math", cluster="p"):
    return ScoredContest(chosen, rejected, [1] * len(chosen), [1] * len(rejected), subset, cluster)


def everything(value):
    return {name: value for section in REWARD_BENCH.values() for name in section}


def test_reward_bench_has_2985_prompts_in_23_subsets():
    sizes = [size for section in REWARD_BENCH.values() for size in section.values()]
    assert (len(sizes), sum(sizes)) == (23, 2985)


def test_reward_bench_weighs_subsets_by_prompts():
    result = reward_bench(everything(0.0) | {"alpacaeval-easy": 1.0, "mt-bench-med": 0.5})
    assert result.sections["Chat"] == pytest.approx((100 + 20) / 358)
    assert result.score == pytest.approx(120 / 358 / 4)


def test_reward_bench_weighs_mathematics_as_much_as_code():
    result = reward_bench(everything(0.5) | {"math-prm": 0.9} | dict.fromkeys(CODE, 0.3))
    assert result.sections["Reasoning"] == pytest.approx(0.6)
    lopsided = reward_bench(everything(0.0) | {"hep-cpp": 1.0})
    assert lopsided.sections["Reasoning"] == pytest.approx(164 / (984 + 984))


def test_reward_bench_gives_prior_sets_half_a_sections_weight():
    prior = dict(zip(PRIOR_SETS, [0.2, 0.4, 0.6, 0.8], strict=True))
    result = reward_bench(everything(1.0) | prior)
    assert result.sections["Prior Sets"] == pytest.approx(0.5)
    assert result.score == pytest.approx((4 * 1.0 + 0.5 * 0.5) / 4.5)
    assert result.missing == ()
    assert str(result) == "0.944"


def test_reward_bench_names_what_is_missing_and_averages_the_rest():
    result = reward_bench({"donotanswer": 0.4, "refusals-offensive": 0.8, "hep-go": 1.0})
    assert result.sections == pytest.approx(
        {"Safety": (136 * 0.4 + 100 * 0.8) / 236, "Reasoning": 1.0}
    )
    assert result.score == pytest.approx(np.mean(list(result.sections.values())))
    assert len(result.missing) == 23 + 4 - 3
    assert "math-prm" in str(result) and "donotanswer" not in str(result)


def test_reward_bench_takes_the_counts_of_a_smaller_run():
    accuracies = {"hep-go": 0.0, "hep-js": 1.0, "math-prm": 0.5, "donotanswer": 0.25}
    counts = {"hep-go": 10, "hep-js": 30, "math-prm": 7, "donotanswer": 5}
    result = reward_bench(accuracies, counts)
    assert result.sections["Reasoning"] == pytest.approx((30 + 0.5 * 40) / 80)
    assert reward_bench({"math-prm": 0.5}, {"math-prm": 7}).score == 0.5


def test_best_of_four_shares_a_win_among_equals():
    rows = [
        contest([4], [1, 2, 3], cluster="a"),
        contest([4], [4, 2, 4], cluster="b"),
        contest([4], [5, 4, 4], cluster="c"),
        contest([0], [0, 0, 0], cluster="d"),
    ]
    result = reward_bench_2(rows)
    assert result.sections == {"Math": pytest.approx((1 + 1 / 3 + 0 + 1 / 4) / 4)}
    assert result.missing == ("Factuality", "Precise IF", "Safety", "Focus", "Ties")


def questions():
    return [
        # Reference gap 2; tied gap 3, spread 1: all four hold, tanh(2 / 1 - 1).
        contest([5], [3, 0], "Ties", "1"),
        contest([9, 8], [5, 1], "Ties", "1"),
        # Reference gap 1; tied gap 3, spread 2: all but the hard margin, tanh(1 / 2 - 1).
        contest([2], [1], "Ties", "2"),
        contest([9, 8, 7], [4], "Ties", "2"),
        # Reference lost by 1; tied gap -4, spread 4: nothing holds, tanh(-4 / 4 - 1).
        contest([1], [2], "Ties", "3"),
        contest([8, 4], [8], "Ties", "3"),
    ]


def test_the_ties_score_by_hand():
    margin = (math.tanh(1) + math.tanh(-0.5) + math.tanh(-2)) / 3
    expected = 0.3 * 2 / 3 + 0.3 * 2 / 3 + 0.2 * 2 / 3 + 0.2 * 1 / 3 + 0.01 * margin
    assert ties(questions()) == pytest.approx(expected)
    assert reward_bench_2(questions()).sections == {"Ties": pytest.approx(expected)}


def test_equal_right_answers_far_above_the_wrong_ones_score_best_and_equal_scores_nothing():
    best = [contest([5], [0], "Ties"), contest([5, 5], [0], "Ties")]
    assert ties(best) == pytest.approx(1.01)
    same = [contest([1], [1], "Ties"), contest([1, 1], [1], "Ties")]
    assert ties(same) == 0.0
    stretched = [
        contest(7 * c.chosen - 3, 7 * c.rejected - 3, "Ties", c.cluster) for c in questions()
    ]
    assert ties(stretched) == pytest.approx(ties(questions()))


def test_a_question_with_one_prompt_alone_counts_for_accuracy_only():
    rows = [*questions()[:2], contest([0], [1], "Ties", "alone")]
    assert ties(rows) == pytest.approx(0.3 + 0.15 + 0.2 + 0.2 + 0.01 * math.tanh(1))
    assert reward_bench_2([rows[-1], contest([1], [0])]).missing[-1] == "Ties"


def test_reward_bench_2_is_the_plain_mean_of_its_domains():
    rows = [contest([1], [0, 0, 0], domain) for domain in ("Factuality", "Precise IF", "Focus")]
    rows += [contest([0], [1, 0, 0], "Math"), contest([1], [0, 1, 0], "Safety")]
    rows += [contest([1], [0, 0, 0], "Focus", str(i)) for i in range(5)]
    rows += [contest([5], [0], "Ties"), contest([5, 5], [0], "Ties")]
    result = reward_bench_2(rows)
    assert result.missing == ()
    assert result.score == pytest.approx((1 + 1 + 1 + 0 + 0.5 + 1.01) / 6)


def test_rm_bench_is_hard_where_the_wrong_answer_has_the_richer_style():
    # The right answer is worth 1.5 steps of style: only concise against Markdown is lost.
    style = np.array([0.0, 1.0, 2.0])
    result = rm_bench([contest(style + 1.5, style, "chat")])
    assert result.matrix.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert (result.easy, result.normal, result.hard) == (1.0, 1.0, pytest.approx(2 / 3))
    assert result.sections["chat"] == pytest.approx(8 / 9)
    # Style alone: equal style is a tie, which fails.
    styled = rm_bench([contest(style, style, "chat")])
    assert (styled.easy, styled.normal, styled.hard) == (1.0, 0.0, 0.0)


def test_rm_bench_counts_domains_alike_and_safety_as_one():
    win, lose = ([1, 1, 1], [0, 0, 0]), ([0, 0, 0], [1, 1, 1])
    rows = [contest(*win, "chat")] * 3
    rows += [contest(*lose, "math"), contest(*win, "safety-refuse")]
    rows += [contest(*lose, "safety-response")] * 3
    result = rm_bench(rows)
    assert result.sections == {"chat": 1.0, "math": 0.0, "safety": 0.25}
    assert result.score == pytest.approx(1.25 / 3)
    assert result.missing == ("code",)
    assert np.mean([result.easy, result.normal, result.hard]) == pytest.approx(result.score)
    assert str(result) == "0.417 (without code)"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: reward_bench({}), "nothing to average"),
        (lambda: reward_bench({"mt-bench": 0.5}), "RewardBench has no subset 'mt-bench'"),
        (lambda: reward_bench({"shp": 70.0}), "shp: an accuracy between 0 and 1, not 70"),
        (lambda: reward_bench({"hep-go": 0.5}, {"hep-js": 3}), "counts: hep-go"),
        (lambda: reward_bench_2([]), "nothing to average"),
        (lambda: reward_bench_2([contest([1], [0], "Chat")]), "no subset 'Chat'"),
        (lambda: reward_bench_2([contest([1, 2], [0])]), "'p': one right answer, not 2"),
        (lambda: reward_bench_2([contest([1], [0], "Ties")]), "nothing to average: .*Ties"),
        (lambda: ties([contest([1], [0], "Ties")]), "no question"),
        (
            lambda: ties([contest([1], [0], "Ties")] * 2),
            "prompt 'p': two contests of the same kind",
        ),
        (lambda: rm_bench([]), "nothing to average"),
        (lambda: rm_bench([contest([1], [0], "chat")]), "three chosen and three .* not 1 and 1"),
        (lambda: rm_bench([contest([1] * 3, [0] * 3, "art")]), "no subset 'art'"),
    ],
)
def test_wrong_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
