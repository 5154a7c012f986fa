import math

import numpy as np
import pytest

from grm_ray.study.preferences import (
    ScoredContest,
    accuracy,
    by_subset,
    calibration,
    compare,
    detectable_difference,
    length_baseline,
    length_correlation,
    one_to_many,
)


def contest(chosen, rejected, lengths=None, subset="chat", cluster="p"):
    n, m = len(chosen), len(rejected)
    chosen_lengths, rejected_lengths = lengths or ([1] * n, [1] * m)
    return ScoredContest(chosen, rejected, chosen_lengths, rejected_lengths, subset, cluster)


def pairs(margins, clusters=None):
    """One contest a margin, around scores that differ from prompt to prompt."""
    clusters = clusters or [f"p{i}" for i in range(len(margins))]
    return [
        contest([10 * i + margin], [10 * i], cluster=cluster)
        for i, (margin, cluster) in enumerate(zip(margins, clusters, strict=True))
    ]


def random_contests(seed, count=40, n=2, m=3):
    rng = np.random.default_rng(seed)
    return [
        ScoredContest(
            rng.integers(0, 4, n) + 1.0,
            rng.integers(0, 4, m) + 0.0,
            rng.integers(1, 99, n),
            rng.integers(1, 99, m),
            "chat",
            f"p{i // 2}",
        )
        for i in range(count)
    ]


def rescored(contests, change):
    return [
        ScoredContest(
            change(c.chosen, c.cluster),
            change(c.rejected, c.cluster),
            c.chosen_lengths,
            c.rejected_lengths,
            c.subset,
            c.cluster,
        )
        for c in contests
    ]


def test_accuracy_is_the_share_of_pairs_won_and_ties_are_lost():
    result = accuracy(pairs([1.0, 0.0, -2.0, 0.5, 0.0]))
    assert result.interval.mean == pytest.approx(2 / 5)
    assert (result.ties, result.pairs) == (2, 5)
    assert result.interval.low < 0.4 < result.interval.high


def test_a_contest_of_many_answers_counts_once_with_the_share_of_its_pairs():
    # 3 > 2, 3 > 1 and 2 > 1 are won, 2 > 2 is a tie: 3 of 4. The pair is won: 1.
    result = accuracy([contest([3, 2], [2, 1]), contest([1], [0], cluster="q")])
    assert result.interval.mean == pytest.approx((0.75 + 1) / 2)
    assert (result.ties, result.pairs) == (1, 5)


def test_each_subset_is_measured_by_itself():
    rows = [contest([1], [0], subset="b"), contest([0], [1], subset="a"), contest([2], [0])]
    assert {name: r.interval.mean for name, r in by_subset(rows, accuracy).items()} == {
        "b": 1.0,
        "a": 0.0,
        "chat": 1.0,
    }


def test_scores_may_be_shifted_by_prompt_and_stretched():
    contests = random_contests(1)
    shifts = dict(zip([f"p{i}" for i in range(20)], range(-7, 13), strict=True))
    moved = rescored(contests, lambda scores, cluster: 4 * scores + shifts[cluster])
    assert accuracy(moved) == accuracy(contests)
    assert one_to_many(moved) == one_to_many(contests)
    before, after = length_correlation(contests), length_correlation(moved)
    assert after.pearson == pytest.approx(before.pearson)
    assert after.spearman == pytest.approx(before.spearman)
    assert after.agreement == before.agreement


def test_turned_signs_win_what_was_lost_but_for_the_ties():
    contests = random_contests(2)
    there = accuracy(contests)
    back = accuracy(rescored(contests, lambda scores, _: -scores))
    assert there.ties == back.ties > 0
    assert back.interval.mean == pytest.approx(1 - there.interval.mean - there.ties / there.pairs)


def test_prompts_with_many_pairs_widen_the_interval():
    margins = np.repeat(np.random.default_rng(0).normal(size=30), 4)
    together = accuracy(pairs(margins, [f"p{i // 4}" for i in range(120)])).interval
    apart = accuracy(pairs(margins)).interval
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    assert (together.clusters, apart.clusters) == (30, 120)


def test_one_prompt_has_an_accuracy_and_no_interval():
    interval = accuracy(pairs([1.0, -1.0], ["p", "p"])).interval
    assert interval.mean == 0.5
    assert math.isnan(interval.low) and math.isnan(interval.high)


def test_the_length_baseline_lets_the_longer_answer_win_whatever_the_scores():
    rows = [
        contest([0], [9], ([30], [20])),
        contest([9], [0], ([20], [30])),
        contest([9], [0], ([20], [20])),
        contest([0], [9], ([31], [30])),
    ]
    result = length_baseline(rows)
    assert result.interval.mean == pytest.approx(2 / 4)
    assert result.ties == 1


def test_length_correlations_by_hand():
    # Deviations of the scores: -1, 1 and -2, 2; of the lengths: 1, -1 and -10, 10.
    rows = [
        contest([1], [3], ([12], [10]), cluster="p"),
        contest([50], [54], ([100], [120]), cluster="q"),
    ]
    result = length_correlation(rows)
    assert result.pearson == pytest.approx((-1 - 1 + 20 + 20) / math.sqrt(10 * 202))
    # Ranks 2 3 1 4 and 3 2 1 4: 1 - 6 (1 + 1) / (4 * 15).
    assert result.spearman == pytest.approx(0.8)
    assert result.agreement.mean == 0.5


def test_equal_scores_share_their_mean_rank():
    # Ranks 1.5 1.5 3 4 and 1 2 3 4: 4.5 / sqrt(4.5 * 5).
    result = length_correlation([contest([1, 1], [2, 4], ([10, 20], [30, 70]))])
    assert result.spearman == pytest.approx(math.sqrt(0.9))


def test_what_differs_between_prompts_is_no_length_bias():
    # Longer prompts' answers score higher, and within a prompt length says nothing.
    rng = np.random.default_rng(3)
    rows = [
        contest(100 * i + rng.normal(size=3), 100 * i + rng.normal(size=3), cluster=f"p{i}")
        for i in range(100)
    ]
    rows = [
        ScoredContest(
            r.chosen,
            r.rejected,
            rng.integers(50 * i, 50 * i + 40, 3),
            rng.integers(50 * i, 50 * i + 40, 3),
            r.subset,
            r.cluster,
        )
        for i, r in enumerate(rows)
    ]
    result = length_correlation(rows)
    assert abs(result.pearson) < 0.15 and abs(result.spearman) < 0.15
    assert result.agreement.low < 0.5 < result.agreement.high


def test_a_model_that_reads_the_length_alone_is_found_out():
    rows = [
        contest([math.sqrt(a)], [math.sqrt(b)], ([a], [b]), cluster=f"{a}")
        for a, b in [(9, 4), (16, 36), (64, 1)]
    ]
    result = length_correlation(rows)
    assert result.spearman == pytest.approx(1)
    assert 0.9 < result.pearson < 1
    assert result.agreement.mean == 1.0


@pytest.mark.parametrize("score", [0.0, 0.1, 1 / 3, -7.7])
def test_constant_scores_have_no_correlation_rather_than_one_of_rounding(score):
    rows = [
        contest([score], [score] * 2, ([5], [7, 9])),
        contest([3 * score], [3 * score] * 2, ([1], [8, 2]), cluster="q"),
    ]
    result = length_correlation(rows)
    assert math.isnan(result.pearson) and math.isnan(result.spearman)
    assert math.isnan(result.agreement.mean) and result.agreement.rows == 0


def test_calibration_by_hand():
    # Confidences 0.6, 0.6, 0.6 and 0.9; won: 2 of 3, and 1 of 1.
    low, high = math.log(0.6 / 0.4), math.log(0.9 / 0.1)
    result = calibration([low, -low, low, high], bins=2)
    assert result.edges == pytest.approx([0.5, 0.75, 1])
    assert list(result.counts) == [3, 1]
    assert result.confidence == pytest.approx([0.6, 0.9])
    assert result.accuracy == pytest.approx([2 / 3, 1])
    assert result.ece == pytest.approx(0.75 * (2 / 3 - 0.6) + 0.25 * 0.1)


def test_true_probabilities_are_calibrated_and_stretched_ones_are_not():
    rng = np.random.default_rng(4)
    margins = np.abs(rng.normal(size=40_000))
    margins *= np.where(rng.random(40_000) < 1 / (1 + np.exp(-margins)), 1, -1)
    assert calibration(margins).ece < 0.01
    assert calibration(5 * margins).ece > 0.1


def test_confidence_of_one_and_of_one_half_have_their_bins():
    result = calibration([1e4, -1e4, 0.0], bins=10)
    assert result.counts[0] == 1 and result.counts[-1] == 2
    assert result.accuracy[0] == 0.0
    assert np.isnan(result.accuracy[1:-1]).all()
    assert result.ece == pytest.approx((0.5 + 2 * 0.5) / 3)


def test_one_to_many_ranks_the_best_right_answer_below_its_equals():
    result = one_to_many(
        [
            contest([5, 4], [3, 4], cluster="a"),  # 4 ties 4; the best comes first
            contest([2], [3, 2, 1], cluster="b"),  # behind 3 and its equal
            contest([9], [1, 2], cluster="c"),
        ]
    )
    assert result.strict.mean == pytest.approx(1 / 3)
    assert result.tolerant.mean == pytest.approx(2 / 3)
    assert result.mrr.mean == pytest.approx((1 + 1 / 3 + 1) / 3)


def test_random_scores_put_one_of_ten_where_theory_says():
    scores = np.random.default_rng(5).normal(size=(20_000, 10))
    result = one_to_many(
        [contest(row[:1], row[1:], cluster=str(i)) for i, row in enumerate(scores)]
    )
    # Three standard errors: 0.0064 and 0.0058.
    assert result.strict.mean == result.tolerant.mean == pytest.approx(0.1, abs=0.0064)
    assert result.mrr.mean == pytest.approx(0.292897, abs=0.0058)


def test_one_score_for_all_wins_only_where_ties_are_let_pass():
    result = one_to_many([contest([1], [1] * 9), contest([2], [2] * 9, cluster="q")])
    assert (result.strict.mean, result.tolerant.mean) == (0.0, 1.0)
    assert result.mrr.mean == pytest.approx(0.1)


def test_a_comparison_is_the_paired_gain():
    before, after = pairs([1.0, -1.0, 1.0, 0.0]), pairs([1.0, 1.0, -1.0, 2.0])
    result = compare(before, after)
    assert (result.before, result.after) == (0.5, 0.75)
    assert result.difference.mean == pytest.approx(0.25)
    assert result.discordance == pytest.approx(3 / 4)
    swapped = compare(after, before)
    assert swapped.difference.mean == pytest.approx(-0.25)


def test_a_model_gains_nothing_over_itself():
    contests = random_contests(6)
    result = compare(contests, contests)
    assert (result.difference.low, result.difference.high, result.discordance) == (0, 0, 0)


def test_the_detectable_difference_turns_the_sample_size_formula_around():
    # Connor's formula for discordance 0.5 and difference 0.4: (1.385904 + 0.490741)^2 / 0.16 = 22.
    assert detectable_difference(22, 22, 0.5, discordance=0.5) == pytest.approx(0.4, abs=2e-4)
    z_a, z_b = 1.959964, 0.841621
    delta = detectable_difference(3000, 3000, 0.7, discordance=0.2)
    need = (z_a * math.sqrt(0.2) + z_b * math.sqrt(0.2 - delta**2)) ** 2 / delta**2
    assert need == pytest.approx(3000, rel=1e-5)


def test_a_difference_of_that_size_is_seen_four_times_in_five():
    rng = np.random.default_rng(7)
    n, psi = 400, 0.3
    delta = detectable_difference(n, n, 0.7, discordance=psi)
    seen = 0
    for _ in range(4000):
        gains = rng.choice([1, -1, 0], n, p=[(psi + delta) / 2, (psi - delta) / 2, 1 - psi])
        seen += gains.sum() / math.sqrt(np.abs(gains).sum()) > 1.959964
    assert seen / 4000 == pytest.approx(0.8, abs=0.03)


def test_fewer_prompts_or_more_discordance_hide_more():
    alone = detectable_difference(1000, 1000, 0.8)
    assert alone == detectable_difference(1000, 1000, 0.3, discordance=0.32)
    assert detectable_difference(1000, 250, 0.8) == detectable_difference(250, 250, 0.8) > alone
    assert alone < detectable_difference(1000, 250, 0.8, correlation=0.2) < 2 * alone
    assert detectable_difference(1000, 250, 0.8, correlation=0) == alone
    assert detectable_difference(1000, 1000, 0.8, discordance=0.1) < alone


def test_what_no_gain_could_show_is_nan():
    assert math.isnan(detectable_difference(10, 10, 0.5, discordance=0.1))
    assert math.isnan(detectable_difference(2, 2, 0.5))
    assert math.isnan(detectable_difference(100, 100, 1.0))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: contest([math.nan], [1]), r"subset 'chat', prompt 'p': chosen\[0\] is nan"),
        (lambda: contest([1], [1, math.inf]), r"rejected\[1\] is inf"),
        (lambda: contest([1], []), "rejected: at least one"),
        (lambda: contest([1], [1], ([1], [1, 2])), "rejected: 1 scores, but 2 lengths"),
        (lambda: accuracy([]), "contests: at least one"),
        (lambda: length_baseline([]), "contests: at least one"),
        (lambda: length_correlation([]), "contests: at least one"),
        (lambda: one_to_many([]), "contests: at least one"),
        (lambda: compare([], []), "contests: at least one"),
        (lambda: compare(pairs([1.0]), pairs([1.0, 2.0])), "not 1 and 2"),
        (lambda: compare(pairs([1.0, 1.0]), pairs([1.0, 1.0], ["p0", "x"])), "contest 1: .*'x'"),
        (lambda: calibration([]), "at least one row"),
        (lambda: calibration([1.0, math.nan]), "row 1 is not finite"),
        (lambda: calibration([1.0], bins=0), "bins"),
        (lambda: detectable_difference(10, 11, 0.5), "clusters: from 1 to"),
        (lambda: detectable_difference(10, 10, 50), "accuracy: between 0 and 1, not 50"),
        (lambda: detectable_difference(10, 10, 0.5, discordance=2), "discordance"),
        (lambda: detectable_difference(10, 10, 0.5, power=80), "power"),
    ],
)
def test_wrong_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
