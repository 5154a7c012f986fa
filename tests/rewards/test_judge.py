"""What the demo's true reward promises: bounds, monotone parts, and no cheap way round it."""

from __future__ import annotations

import pytest

from grm_ray.rewards.judge import WEIGHTS, asked_length, judge, judge_parts, topic_words

PROMPT = "Describe a garden and rain in about 20 words."
GOOD = (
    "My garden waits all summer for the rain, and when it comes, every tired leaf "
    "lifts its head to drink."
)


def test_weights_sum_to_one() -> None:
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)


def test_good_answer_scores_near_one() -> None:
    assert judge(PROMPT, GOOD) > 0.9


@pytest.mark.parametrize("response", ["", "  \n", "...", "🌧️"])
def test_answer_without_a_word_gets_zero(response: str) -> None:
    parts = judge_parts(PROMPT, response)
    assert set(parts.values()) == {0.0}


@pytest.mark.parametrize(
    "response",
    [
        GOOD,
        "rain " * 500,
        "a",
        "¿?",
        "1 2 3",
        "\x00\ud7ff",
        "the the the",
        GOOD * 30,
        "\u2019s n't",
    ],
)
@pytest.mark.parametrize("prompt", [PROMPT, "", "about 0 words", "Why?", "20 words"])
def test_every_part_lies_between_zero_and_one(prompt: str, response: str) -> None:
    assert all(0.0 <= value <= 1.0 for value in judge_parts(prompt, response).values())


@pytest.mark.parametrize(
    "response",
    [
        PROMPT,
        "A garden and rain in about 20 words. Describe a garden and rain in about 20 words.",
        "Garden.",
        "Rain garden.",
        "garden rain " * 10,
        "Garden, rain, flowers, soil, sun, water, plants, roses, green, growth, leaves, drops, "
        "clouds, spring, seeds, trees, grass, mud, worms, puddles.",
        "It is what it is, and that is all there is to it, as it was and as it will be.",
        "The rain fell on the garden. The rain fell on the garden. The rain fell on the garden. "
        "The rain fell.",
        GOOD * 4,
        GOOD.rsplit(" ", 6)[0],
        GOOD.replace("garden", "engine").replace("rain", "oil"),
    ],
    ids=[
        "question copied",
        "question copied twice",
        "one word",
        "two topic words",
        "topic words repeated",
        "keyword list",
        "empty talk",
        "same sentence again",
        "good answer four times",
        "unfinished",
        "off topic",
    ],
)
def test_gaming_scores_below_a_good_answer(response: str) -> None:
    assert judge(PROMPT, response) < judge(PROMPT, GOOD) - 0.1


@pytest.mark.parametrize("response", [PROMPT, "Garden.", "garden rain " * 10])
def test_what_is_no_answer_scores_below_half(response: str) -> None:
    assert judge(PROMPT, response) < 0.5


def test_length_falls_on_both_sides_of_what_is_asked() -> None:
    def length(count: int) -> float:
        return judge_parts(PROMPT, " ".join(f"w{i}" for i in range(count)))["length"]

    assert length(20) == length(18) == length(23) == 1.0
    rising, falling = [length(n) for n in range(1, 21)], [length(n) for n in range(20, 60)]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)
    assert rising[0] == 0.0 and falling[-1] == 0.0


def test_longer_is_not_better_in_itself() -> None:
    short = "Rain keeps a garden alive."
    assert judge("Describe a garden and rain in about 5 words.", short) > judge(
        "Describe a garden and rain in about 5 words.", GOOD
    )
    assert judge(PROMPT, GOOD) > judge(PROMPT, short)


def test_without_a_stated_length_the_other_parts_share_its_weight() -> None:
    prompt = "What does the rain do for a garden?"
    parts = judge_parts(prompt, GOOD)
    assert "length" not in parts and parts["judge"] > 0.9
    assert judge(prompt, GOOD + " I like it.") > 0.9


def test_each_topic_word_used_counts() -> None:
    scores = [
        judge_parts(PROMPT, text)["topic"]
        for text in ("It is nice here.", "It rained here.", "It rained on two gardens.")
    ]
    assert scores == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("end", [".", "!", "?", '."', ".)", "…", ". \n", ".\u201d"])
def test_sentence_ends_are_recognised(end: str) -> None:
    assert judge_parts(PROMPT, "It rains" + end)["finish"] == 1.0


@pytest.mark.parametrize("end", ["", ",", " and", ":", " -", "…and"])
def test_broken_off_sentences_are_recognised(end: str) -> None:
    assert judge_parts(PROMPT, "It rains" + end)["finish"] == 0.0


@pytest.mark.parametrize(
    ("prompt", "length"),
    [
        ("Write about 20 words on rain.", 20),
        ("Write a 15-word poem.", 15),
        ("Use the words red and blue.", None),
        ("I wrote 30 words; answer in 10 words.", 10),
        ("In 0 words.", None),
        ("Count to 100.", None),
    ],
)
def test_asked_length_is_read_from_the_prompt(prompt: str, length: int | None) -> None:
    assert asked_length(prompt) == length


def test_topic_words_are_what_is_asked_about() -> None:
    assert topic_words("Tell a tiny story of about 12 words with a dog and a walk in it.") == (
        "dog",
        "walk",
    )
