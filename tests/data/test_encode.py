"""Tables hold what the contract says; what cannot be encoded is named by its uid."""

import math

import pytest
from transformers import AutoTokenizer

from grm_ray.data.chat import ScoringContract, answer_tokens, prompt_tokens
from grm_ray.data.encode import (
    conversation_tokens,
    encode_pairs,
    encode_prompts,
    encode_rated,
)
from grm_ray.data.records import Pair, Prompt, Rated
from grm_ray.data.tables import PAIRS, RATED
from tests.conftest import build_tokenizer

ASKED = (("user", "the cat"),)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def contract(tokenizer, max_length=200, truncation="left"):
    return ScoringContract.of(tokenizer, max_length, truncation)


def test_margin_and_smoothing_are_columns_and_null_where_there_is_none(tokenizer):
    pairs = [Pair(ASKED, "sat", "flew", 1.5, 0.25), Pair(ASKED, "sat on a mat", "flew")]
    table, left_out, truncated = encode_pairs(pairs, tokenizer, contract(tokenizer))
    assert table.schema == PAIRS and not left_out and not truncated
    assert table["margin"].to_pylist() == [1.5, None]
    assert table["smoothing"].to_pylist() == [0.25, None]
    assert table["prompt_tokens"].to_pylist()[0] == prompt_tokens(
        tokenizer, [{"role": "user", "content": "the cat"}]
    )
    assert table["chosen_tokens"].to_pylist()[0] == [
        *answer_tokens(tokenizer, "sat"),
        tokenizer.eos_token_id,
    ]


def test_tables_of_several_chunks_share_no_uid(tokenizer):
    pairs = [Pair(ASKED, "sat", "flew"), Pair(ASKED, "sat", "flew")]
    one, _, _ = encode_pairs(pairs, tokenizer, contract(tokenizer))
    two, _, _ = encode_pairs(pairs, tokenizer, contract(tokenizer), first=2)
    uids = one["uid"].to_pylist() + two["uid"].to_pylist()
    assert uids == [f"{pairs[0].prompt_id}:{n}" for n in range(4)]


@pytest.mark.parametrize(
    ("truncation", "reasons", "truncated"),
    [
        ("drop", {1: "longer than data.max_length", 2: "longer than data.max_length"}, 0),
        ("right", {2: "identical after truncation"}, 1),
        ("left", {}, 2),
    ],
)
def test_what_does_not_fit_is_cut_or_named(tokenizer, truncation, reasons, truncated):
    short = Pair(ASKED, "sat", "flew")
    head = len(prompt_tokens(tokenizer, [{"role": "user", "content": "the cat"}]))
    room = head + 5
    differ = Pair(ASKED, "cat " * 6, "red " * 3)
    alike = Pair(ASKED, "cat " * 6 + "red", "cat " * 6 + "fly")
    table, left_out, cut = encode_pairs(
        [short, differ, alike], tokenizer, contract(tokenizer, room, truncation)
    )
    assert {int(uid.split(":")[1]): reason for uid, reason in left_out} == reasons
    assert cut == truncated and table.num_rows == 3 - len(reasons)
    for row in table.to_pylist():
        for side in ("chosen_tokens", "rejected_tokens"):
            assert len(row["prompt_tokens"]) + len(row[side]) <= room
            assert row[side][-1] == tokenizer.eos_token_id


def test_an_answer_of_several_turns_is_read_as_the_conversation_that_it_is(tokenizer):
    rest = (("assistant", "sat"), ("user", "and the birds"), ("assistant", "flew"))
    other = (("assistant", "fell"), ("user", "and the birds"), ("assistant", "sat"))
    prompt, sides = conversation_tokens(tokenizer, contract(tokenizer), ASKED, (rest, other))
    messages = [{"role": role, "content": text} for role, text in (*ASKED, *rest)]
    whole = prompt_tokens(tokenizer, messages[:-1]) + answer_tokens(tokenizer, "flew")
    assert prompt + sides[0] == [*whole, tokenizer.eos_token_id]
    assert prompt == prompt_tokens(tokenizer, messages[:1])
    assert len(encode_pairs([Pair(ASKED, rest, other)], tokenizer, contract(tokenizer))[0]) == 1


def test_a_template_that_writes_earlier_turns_otherwise_still_gives_exact_sequences(tokenizer):
    # It marks the last question, so that what two conversations share ends before that mark.
    fussy = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    fussy.chat_template = (
        "{% for m in messages %}<|start|>{{ 'now ' if loop.last }}{{ m['content'] }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|start|>{% endif %}"
    )
    rest = (("assistant", "sat"), ("user", "birds"), ("assistant", "flew"))
    other = (("assistant", "fell"), ("user", "birds"), ("assistant", "sat"))
    prompt, sides = conversation_tokens(fussy, contract(fussy), ASKED, (rest, other))
    messages = [{"role": role, "content": text} for role, text in (*ASKED, *rest)]
    whole = prompt_tokens(fussy, messages[:-1]) + answer_tokens(fussy, "flew")
    assert prompt + sides[0] == [*whole, fussy.eos_token_id]
    assert prompt and sides[0] != sides[1]


def test_a_conversation_that_the_template_refuses_is_named(tokenizer):
    strict = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    strict.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}"
        "{% endif %}" + tokenizer.chat_template
    )
    odd = (("system", "be kind"), *ASKED)
    pairs = [Pair(odd, "sat", "flew"), Pair(ASKED, "sat", "flew")]
    table, ((uid, reason),), _ = encode_pairs(pairs, strict, contract(strict))
    assert table.num_rows == 1 and uid == f"{pairs[0].prompt_id}:0"
    assert reason == "refused by the chat template: no system turns"
    rated = [Rated(odd, "sat", (1.0,)), Rated(ASKED, "sat", (1.0,))]
    assert len(encode_rated(rated, strict, contract(strict))[1]) == 1


def test_graded_answers_have_nan_where_nothing_was_graded(tokenizer):
    answers = [Rated(ASKED, "sat", (1.0, None)), Rated(ASKED, "red " * 99, (2.0, 3.0))]
    table, left_out, cut = encode_rated(answers, tokenizer, contract(tokenizer, 40), first=5)
    assert table.schema == RATED and cut == 0
    (labels,) = table["labels"].to_pylist()
    assert labels[0] == 1.0 and math.isnan(labels[1])
    assert table["answer_tokens"].to_pylist()[0][-1] == tokenizer.eos_token_id
    assert left_out == [(f"{answers[1].prompt_id}:6", "longer than data.max_length")]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("{{ none + 'x' }}", "TypeError: unsupported operand"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
    ],
)
@pytest.mark.parametrize("layout", ["answer", "template"])
def test_whatever_a_template_fails_with_is_its_refusal_of_one_row(tokenizer, wrong, reason, layout):
    fragile = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    fragile.chat_template = (
        "{% if messages[0]['role'] == 'system' %}" + wrong + "{% endif %}" + tokenizer.chat_template
    )
    of_template = ScoringContract.of_template(fragile, 200)
    read_by = contract(fragile) if layout == "answer" else of_template
    pairs = [Pair((("system", "be kind"), *ASKED), "sat", "flew"), Pair(ASKED, "sat", "flew")]
    table, ((_, said),), _ = encode_pairs(pairs, fragile, read_by)
    assert table.num_rows == 1 and said.startswith(f"refused by the chat template: {reason}")


def test_prompts_that_the_template_refuses_or_that_are_too_long_are_named(tmp_path):
    build_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if 'odd' in m['content'] %}"
        "{{ raise_exception('no') }}{% endif %}{{ m['content'] }}{% endfor %}"
    )
    texts = ["the cat", "an odd cat", "a mat", "the cat " * 99]
    prompts = [Prompt(text, (("user", text),)) for text in texts]
    table, left_out = encode_prompts(prompts, tokenizer, 64)
    assert table["prompt_id"].to_pylist() == ["the cat", "a mat"]
    assert left_out == [
        ("an odd cat", "refused by the chat template: no"),
        (texts[3], "longer than data.max_prompt_length"),
    ]
