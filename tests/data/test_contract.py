"""The scoring contract: how a sequence is built, closed and cut, the same wherever it is scored."""

import json
from dataclasses import asdict, replace

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from grm_ray.data.chat import FILE, ScoringContract, answer_tokens, prompt_tokens

MESSAGES = [{"role": "user", "content": "the cat"}]
ANSWERS = ["sat on a mat", "saw red birds", "sat"]


def contract(truncation, length=6):
    return ScoringContract("t", "v", 9, length, truncation)


def whole(truncation, length=6):
    return ScoringContract("t", "v", None, length, truncation, layout="template")


@pytest.fixture
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def bos_tokenizer(tokenizer):
    """One that puts a BOS before any text, with a template that writes one too."""
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    return tokenizer


def test_an_answer_is_closed_once():
    assert contract("left").close([1, 2]) == [1, 2, 9]
    assert contract("left").close([1, 9]) == [1, 9]
    assert whole("left").close([1, 2]) == [1, 2]


@pytest.mark.parametrize(
    ("truncation", "fitted"),
    [("left", ([2, 3], [4, 5, 6, 9])), ("right", ([1, 2, 3], [4, 5, 9])), ("drop", None)],
)
def test_a_row_that_is_too_long(truncation, fitted):
    assert contract(truncation).fit([1, 2, 3], [4, 5, 6, 9]) == fitted
    assert contract(truncation).fit([1], [4, 9]) == ([1], [4, 9])


def test_where_the_template_closes_nothing_is_put_behind_a_cut():
    assert whole("right").fit([1, 2, 3], [4, 5, 6, 7]) == ([1, 2, 3], [4, 5, 6])


def test_an_answer_longer_than_everything_is_dropped():
    assert contract("left").fit([1, 2], [3] * 8 + [9]) is None


def test_our_tokens_are_prompt_answer_and_terminal(tokenizer):
    prompt, answers = ScoringContract.of(tokenizer, 99, "left").tokens(tokenizer, MESSAGES, ANSWERS)
    assert prompt == prompt_tokens(tokenizer, MESSAGES)
    end = tokenizer.eos_token_id
    assert answers == [[*answer_tokens(tokenizer, text), end] for text in ANSWERS]


def test_whole_conversations_part_where_their_answers_begin(tokenizer):
    prompt, answers = ScoringContract.of_template(tokenizer, 99).tokens(
        tokenizer, MESSAGES, ANSWERS
    )
    assert prompt == prompt_tokens(tokenizer, MESSAGES)
    for text, answer in zip(ANSWERS, answers, strict=True):
        said = [*MESSAGES, {"role": "assistant", "content": text}]
        assert prompt + answer == tokenizer.apply_chat_template(said, return_dict=False)


def test_an_answer_of_no_words_leaves_a_token_to_score(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    prompt, (answer,) = ScoringContract.of_template(tokenizer, 99).tokens(tokenizer, MESSAGES, [""])
    assert prompt + answer == answer_tokens(tokenizer, "the cat")
    assert len(answer) == 1


def test_conversations_that_do_not_begin_alike_are_refused(tokenizer):
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(ValueError, match="writes the beginning of a conversation differently"):
        ScoringContract.of_template(tokenizer, 99).tokens(tokenizer, MESSAGES, ["birds fly"])


@pytest.mark.parametrize("twice", [False, True])
def test_bos_comes_as_often_as_the_contract_says(bos_tokenizer, twice):
    made = ScoringContract.of_template(bos_tokenizer, 99, special_tokens_twice=twice)
    prompt, answers = made.tokens(bos_tokenizer, MESSAGES, ANSWERS)
    bos = bos_tokenizer.bos_token_id
    assert [(prompt + answer).count(bos) for answer in answers] == [1 + twice] * 3
    ours, _ = ScoringContract.of(bos_tokenizer, 99, "left").tokens(bos_tokenizer, MESSAGES, ANSWERS)
    assert ours.count(bos) == 1


def test_pads_at_the_end_are_passed_over(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    end = tokenizer.eos_token_id
    for pad, last in ((None, True), (end, False)):
        made = ScoringContract.of_template(tokenizer, 99, passed_over_id=pad)
        prompt, answers = made.tokens(tokenizer, MESSAGES, ANSWERS)
        assert [answer[-1] == end for answer in answers] == [last] * 3
        assert end in prompt  # the one between the turns is read


def test_a_saved_contract_comes_back(tokenizer, tmp_path):
    for made in (
        ScoringContract.of(tokenizer, 99, "right"),
        ScoringContract.of_template(tokenizer, 99, special_tokens_twice=True, passed_over_id=2),
    ):
        made.save(tmp_path)
        assert ScoringContract.load(tmp_path) == made


def test_a_contract_of_version_1_still_loads_and_fits(tokenizer, tmp_path):
    old = asdict(ScoringContract.of(tokenizer, 99, "left"))
    old = {k: old[k] for k in list(old)[:5]} | {"version": 1}
    (tmp_path / FILE).write_text(json.dumps(old))
    loaded = ScoringContract.load(tmp_path)
    loaded.check(tokenizer)
    assert loaded.layout == "answer" and loaded.same_tokens_as(tokenizer)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("truncation", "middle", "truncation must be one of"),
        ("max_length", 0, "max_length must be a number of tokens above 0"),
        ("max_length", "512", "max_length must be a number of tokens above 0"),
        ("layout", "freestyle", "layout must be one of"),
        ("terminal_token_id", None, "terminal_token_id must be a token id"),
        ("terminal_token_id", -1, "terminal_token_id must be a token id"),
        ("version", 3, "it was written by a newer one"),
        ("unheard_of", 1, "unheard_of"),
    ],
)
def test_a_file_that_is_no_contract_is_refused(tokenizer, tmp_path, field, value, said):
    fields = asdict(ScoringContract.of(tokenizer, 99, "left")) | {field: value}
    (tmp_path / FILE).write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=f"{FILE}: not a scoring contract.*{said}"):
        ScoringContract.load(tmp_path)


def test_another_template_is_refused(tokenizer):
    made = ScoringContract.of(tokenizer, 99, "left")
    tokenizer.chat_template += " "
    with pytest.raises(ValueError, match="broken: template_sha256"):
        made.check(tokenizer)


def test_another_vocabulary_is_refused(tokenizer):
    made = ScoringContract.of(tokenizer, 99, "left")
    tokenizer.add_tokens(["miaow"])
    with pytest.raises(ValueError, match="broken: vocabulary_sha256"):
        made.check(tokenizer)


def test_another_terminal_token_is_refused(tokenizer):
    made = ScoringContract.of(tokenizer, 99, "left")
    tokenizer.eos_token = "<|pad|>"
    with pytest.raises(ValueError, match="broken: terminal_token_id"):
        made.check(tokenizer)
    # Where the template closes, the eos token has no part in it.
    ScoringContract.of_template(tokenizer, 99).check(tokenizer)


def test_tokens_pass_through_only_where_they_are_built_alike(tokenizer):
    made = ScoringContract.of(tokenizer, 99, "left")
    assert made.same_tokens_as(tokenizer)
    assert not replace(made, vocabulary_sha256="other").same_tokens_as(tokenizer)
    assert not ScoringContract.of_template(tokenizer, 99).same_tokens_as(tokenizer)


def test_a_tokenizer_that_cannot_close_answers_is_refused(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no eos token"):
        ScoringContract.of(tokenizer, 99, "left")
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        ScoringContract.of_template(tokenizer, 99)
