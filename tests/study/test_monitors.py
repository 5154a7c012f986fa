import math

import numpy as np
import pytest

from grm_ray.study.monitors import list_rate, repetition, top_choice_disagreement


@pytest.mark.parametrize(
    "text",
    [
        "- milk",
        "* milk\n* eggs",
        "Buy these:\n\n• milk",
        "•milk",
        "1. Boil.\n2. Wait.",
        "Steps:\n  12) stop",
        "(3) third",
        "first\r\n- second",
        "\t- tabbed",
    ],
)
def test_lists(text):
    assert list_rate([text]) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain words - with a dash",
        "-5 degrees",
        "**bold** words",
        "---",
        "3.14 is near pi",
        "1.\n\nnothing after the number",
        "2024. A year ends a sentence",
        "It costs\n10 coins",
    ],
)
def test_no_lists(text):
    assert list_rate([text]) == 0


def test_the_list_rate_counts_answers_not_lines():
    assert list_rate(["- a\n- b\n- c", "none", "none", "1) one"]) == 0.5


def test_repetition_by_hand():
    # Five pairs of words, two of them distinct.
    assert repetition(["a b a b a b"], n=2) == pytest.approx(3 / 5)
    assert repetition(["a b a b a b", "a b c d e f"], n=2) == pytest.approx(3 / 10)
    assert repetition(["no word stands in here twice"]) == 0
    assert repetition(["a\na  a\ta"], n=1) == pytest.approx(3 / 4)


def test_an_answer_shorter_than_n_words_repeats_nothing():
    assert repetition(["", "so so so"]) == 0
    assert repetition(["so so so so so", "short"]) == pytest.approx(0.25)


def test_identical_members_never_disagree():
    scores = np.random.default_rng(0).normal(size=(20, 8))
    assert top_choice_disagreement([scores, scores, scores]) == 0
    # Nor do members of other units.
    assert top_choice_disagreement([scores, 3 * scores - 100]) == 0


def test_disagreement_by_hand():
    first = [[1.0, 2.0], [2.0, 1.0], [0.0, 5.0], [1.0, 0.0]]
    second = [[1.0, 2.0], [1.0, 2.0], [3.0, 1.0], [9.0, 0.0]]
    assert top_choice_disagreement([first, second]) == 0.5
    # A third member that agrees with one of two changes nothing; one that opposes all, does.
    assert top_choice_disagreement([first, second, first]) == 0.5
    assert top_choice_disagreement([first, second, [[9.0, 0.0]] * 4]) == 0.75


def test_equal_top_scores_are_all_best():
    assert top_choice_disagreement([[[1.0, 1.0, 0.0]], [[0.0, 2.0, 1.0]]]) == 0
    assert top_choice_disagreement([[[0.0, 0.0, 0.0]], [[0.0, 2.0, 1.0]]]) == 0
    assert top_choice_disagreement([[[1.0, 1.0, 0.0]], [[0.0, 1.0, 2.0]]]) == 1


def test_disagreement_grows_as_the_shared_signal_shrinks():
    rng = np.random.default_rng(1)
    shared, own = rng.normal(size=(200, 8)), rng.normal(size=(3, 200, 8))
    rates = [top_choice_disagreement(signal * shared + own) for signal in (10.0, 3.0, 1.0, 0.0)]
    assert rates == sorted(rates)
    assert rates[0] < 0.35 and rates[-1] > 0.9


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: list_rate([]), "at least one answer"),
        (lambda: list_rate("one text"), "a sequence of at least one answer"),
        (lambda: repetition([]), "at least one answer"),
        (lambda: repetition(["a"], n=0), "n: 1 or more, not 0"),
        (lambda: top_choice_disagreement([[[1.0, 2.0]]]), "two members or more"),
        (lambda: top_choice_disagreement(np.ones((2, 3, 1))), "two answers or more"),
        (lambda: top_choice_disagreement([[[1.0, 2.0]], [[1.0, math.nan]]]), "finite"),
    ],
)
def test_wrong_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
