"""What the committed demo files promise, and what their builder promises of pairs."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from grm_ray.data.demo.prompts import DemoPrompt, demo_prompts, policy_prompts
from grm_ray.drivers.demo_data import (
    MIN_GAP,
    PPO_EVAL_PROMPTS,
    PPO_TRAIN_PROMPTS,
    TEST_PAIRS,
    TRAIN_PAIRS,
    Sample,
    make_pairs,
    preference_rows,
    prompt_rows,
)
from grm_ray.rewards.judge import asked_length, judge, topic_words

DEMO = Path(__file__).parents[2] / "grm_ray" / "data" / "demo"


@cache
def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]


def preferences(split: str) -> list[dict]:
    return [row for row in rows("preferences.jsonl") if row["split"] == split]


def answers(row: dict) -> tuple[str, str]:
    """(better, worse) by the judge, whatever the label says."""
    pair = row["chosen"][0]["content"], row["rejected"][0]["content"]
    return (pair[1], pair[0]) if row["flipped"] else pair


def longer_and_shorter_wins(pairs: list[tuple[int, int]]) -> tuple[float, float]:
    longer = sum(better > worse for better, worse in pairs) / len(pairs)
    return longer, sum(better < worse for better, worse in pairs) / len(pairs)


def test_demo_folder_is_under_one_megabyte() -> None:
    files = [path for path in DEMO.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000


def test_counts_are_as_promised() -> None:
    assert len(preferences("train")) == TRAIN_PAIRS
    assert len(preferences("test")) == TEST_PAIRS
    assert Counter(row["split"] for row in rows("prompts.jsonl")) == {
        "train": PPO_TRAIN_PROMPTS,
        "eval": PPO_EVAL_PROMPTS,
    }


def test_rows_are_single_turns_with_text_and_no_pair_stands_twice() -> None:
    seen = set()
    for row in rows("preferences.jsonl"):
        for column in ("prompt", "chosen", "rejected"):
            (turn,) = row[column]
            assert turn["role"] == ("user" if column == "prompt" else "assistant")
            assert turn["content"].strip()
        seen.add((row["prompt_id"], *sorted(answers(row))))
    assert len(seen) == TRAIN_PAIRS + TEST_PAIRS


def test_a_quarter_of_the_training_labels_and_no_test_label_is_flipped() -> None:
    flipped = sum(row["flipped"] for row in preferences("train"))
    assert flipped == round(0.25 * TRAIN_PAIRS)
    assert not any(row["flipped"] for row in preferences("test"))


def test_judge_columns_are_what_the_judge_says_today() -> None:
    for row in rows("preferences.jsonl"):
        prompt = row["prompt"][0]["content"]
        for side in ("chosen", "rejected"):
            score = judge(prompt, row[side][0]["content"])
            assert row[f"judge_{side}"] == pytest.approx(score, abs=1e-4)
        gap = row["judge_chosen"] - row["judge_rejected"]
        assert (-gap if row["flipped"] else gap) >= MIN_GAP - 2e-4


@pytest.mark.parametrize("split", ["train", "test"])
def test_length_in_words_does_not_tell_the_winner(split: str) -> None:
    lengths = [tuple(len(text.split()) for text in answers(row)) for row in preferences(split)]
    assert max(longer_and_shorter_wins(lengths)) < 0.58  # type: ignore[arg-type]


@pytest.mark.parametrize("split", ["train", "test"])
def test_length_in_tokens_does_not_tell_the_winner(split: str) -> None:
    from grm_ray.models.embedded import EMBEDDED_NAME, default_cache

    folder = default_cache() / EMBEDDED_NAME
    if not (folder / "tokenizer.json").exists():
        pytest.skip("the embedded model is not unpacked here")
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    lengths = [
        tuple(len(tokenizer.encode(text).ids) for text in answers(row))
        for row in preferences(split)
    ]
    assert max(longer_and_shorter_wins(lengths)) < 0.58  # type: ignore[arg-type]


def test_no_held_out_prompt_or_topic_word_is_in_training() -> None:
    trained = {row["prompt"][0]["content"] for row in preferences("train")}
    held_out = {row["prompt"][0]["content"] for row in preferences("test")}
    for row in rows("prompts.jsonl"):
        (trained if row["split"] == "train" else held_out).add(row["prompt"][0]["content"])
    trained_words = {word for prompt in trained for word in topic_words(prompt)}
    held_out_words = {word for prompt in held_out for word in topic_words(prompt)}
    assert not trained & held_out
    assert not trained_words & held_out_words


def test_prompts_are_distinct_and_the_judge_can_read_them() -> None:
    for made in (demo_prompts(), policy_prompts()):
        assert len({prompt.text for prompt in made}) == len(made)
        assert len({prompt.prompt_id for prompt in made}) == len(made)
    # What the demo's policy may write, 40 tokens, holds the longest answer that it is asked for.
    assert max(asked_length(prompt.text) for prompt in policy_prompts()) <= 25
    for prompt in [*demo_prompts(), *policy_prompts()]:
        assert asked_length(prompt.text) is not None
        assert 2 <= len(topic_words(prompt.text)) <= 4, prompt.text
    assert (demo_prompts(), policy_prompts()) == (demo_prompts(), policy_prompts())


def test_committed_prompt_file_is_what_the_builder_writes() -> None:
    assert rows("prompts.jsonl") == prompt_rows()


# ------------------------------------------------------------------ the builder

PROMPT = DemoPrompt("p-0", "Describe a garden and rain in about 8 words.", False)
TEXTS = (
    "The rain fell softly on my garden today.",
    "Rain in the garden is what we",
    "I like old engines and the oil in them, which nobody ever",
    "",
)
SAMPLES = [Sample("p-0", text, len(text.split())) for text in TEXTS]


def test_pairs_use_each_answer_once_and_keep_the_gap() -> None:
    pairs = make_pairs([PROMPT], SAMPLES, wanted=1)
    assert len(pairs) == 1 and pairs[0].gap >= MIN_GAP
    assert pairs[0].worse.text and pairs[0].better.text == TEXTS[0]


def test_too_few_pairs_is_an_error_that_says_how_many() -> None:
    with pytest.raises(ValueError, match="only 1 pairs"):
        make_pairs([PROMPT], SAMPLES, wanted=5)


def test_flipped_rows_have_answers_and_judgements_turned_round() -> None:
    pairs = make_pairs([PROMPT], SAMPLES, wanted=1)
    (clean,) = preference_rows(pairs, "train", 0.0)
    (turned,) = preference_rows(pairs, "train", 1.0)
    assert turned["flipped"] and not clean["flipped"]
    assert turned["chosen"] == clean["rejected"] and turned["rejected"] == clean["chosen"]
    assert turned["judge_chosen"] == clean["judge_rejected"] < turned["judge_rejected"]
