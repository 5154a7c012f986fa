"""Text rows to token tables, by the scoring contract."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
import pyarrow as pa

from grm_ray.data.chat import ScoringContract, common_prefix, prompt_tokens
from grm_ray.data.records import Answer, Pair, Prompt, Rated, Turns, as_messages, as_turns
from grm_ray.data.tables import PAIRS, PROMPTS, RATED

# A table, (uid, reason) of what is not in it, and how many rows were cut to fit.
Encoded = tuple[pa.Table, list[tuple[str, str]], int]
TOO_LONG = "longer than data.max_length"
TOO_LONG_PROMPT = "longer than data.max_prompt_length"
REFUSED = "refused by the chat template"


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: Any, contract: ScoringContract, first: int = 0
) -> Encoded:
    """`PAIRS`, (uid, reason) of every pair left out, and how many were cut to fit.

    A pair whose answers become identical by truncation teaches nothing and is left out, and so is
    one whose conversation the chat template refuses. A uid is `prompt id:number`.

    Args:
        first: number of the first pair; with it tables of several chunks share no uid.
    """

    def columns(pair: Pair, prompt: list[int], answers: list[list[int]]) -> dict[str, Any] | str:
        chosen, rejected = answers
        if chosen == rejected:
            return "identical after truncation"
        return {
            "prompt_tokens": prompt,
            "chosen_tokens": chosen,
            "rejected_tokens": rejected,
            "margin": pair.margin,
            "smoothing": pair.smoothing,
        }

    asked = [(pair, (pair.chosen, pair.rejected)) for pair in pairs]
    return _encode(asked, columns, PAIRS, tokenizer, contract, first)


def encode_rated(
    answers: Sequence[Rated], tokenizer: Any, contract: ScoringContract, first: int = 0
) -> Encoded:
    """`RATED`, (uid, reason) of every answer left out, and how many were cut to fit.

    What was not graded is NaN. Uids are those of `encode_pairs`.
    """

    def columns(rated: Rated, prompt: list[int], answers: list[list[int]]) -> dict[str, Any]:
        labels = [float("nan") if label is None else label for label in rated.labels]
        return {"prompt_tokens": prompt, "answer_tokens": answers[0], "labels": labels}

    asked = [(rated, (rated.answer,)) for rated in answers]
    return _encode(asked, columns, RATED, tokenizer, contract, first)


def _encode(
    asked: Sequence[tuple[Any, Sequence[Answer]]],
    columns: Callable[[Any, list[int], list[list[int]]], dict[str, Any] | str],
    schema: pa.Schema,
    tokenizer: Any,
    contract: ScoringContract,
    first: int,
) -> Encoded:
    """One row for each of `asked`, an item and its answers, but where there is a reason against.

    Args:
        columns: (item, prompt, answers), cut to fit -> the row's columns, or why there is none.
    """
    rows: list[dict[str, Any]] = []
    left_out: list[tuple[str, str]] = []
    truncated = 0
    for number, (item, answers) in enumerate(asked, start=first):
        uid = f"{item.prompt_id}:{number}"
        try:
            whole = conversation_tokens(tokenizer, contract, item.prompt, answers)
        except jinja2.TemplateError as error:
            left_out.append((uid, f"{REFUSED}: {error}"))
            continue
        fitted = fit_together(contract, *whole)
        made = TOO_LONG if fitted is None else columns(item, *fitted)
        if isinstance(made, str):
            left_out.append((uid, made))
            continue
        truncated += int(fitted != whole)
        rows.append({"uid": uid, **made})
    return pa.Table.from_pylist(rows, schema), left_out, truncated


def conversation_tokens(
    tokenizer: Any, contract: ScoringContract, prompt: Turns, answers: Sequence[Answer]
) -> tuple[list[int], list[list[int]]]:
    """Ids of the prompt and of each answer, closed and uncut: `ScoringContract.tokens`.

    An answer of several turns is read as the conversation that it is: the prompt's ids followed by
    the answer's are those of its last turn after all the others.

    Raises:
        jinja2.TemplateError: the chat template takes no such conversation.
    """
    messages = as_messages(prompt)
    if all(isinstance(answer, str) for answer in answers):
        return contract.tokens(tokenizer, messages, [str(answer) for answer in answers])
    turns = [as_turns(answer) for answer in answers]
    shared, _ = contract.tokens(tokenizer, messages, [answer[0][1] for answer in turns])
    wholes = []
    for answer in turns:
        before = messages + as_messages(answer[:-1])
        opened, (last,) = contract.tokens(tokenizer, before, [answer[-1][1]])
        wholes.append(opened + last)
    # A template may write an earlier turn otherwise than the last one: common is what is common.
    common = min(common_prefix(shared, whole[:-1]) for whole in wholes)
    return shared[:common], [whole[common:] for whole in wholes]


def fit_together(
    contract: ScoringContract, prompt: list[int], answers: Sequence[list[int]]
) -> tuple[list[int], list[list[int]]] | None:
    """The answers' sequences cut to fit with one common prompt; None: they are to be dropped."""
    fitted = contract.fit(prompt, max(answers, key=len))
    if fitted is None:
        return None
    cut = [contract.fit(fitted[0], answer) for answer in answers]
    whole = [side[1] for side in cut if side is not None]
    return (fitted[0], whole) if len(whole) == len(answers) else None


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: Any, max_length: int
) -> tuple[pa.Table, list[tuple[str, str]]]:
    """`PROMPTS`, and (id, reason) of the prompts left out: longer than `max_length` tokens, or
    refused by the chat template."""
    rows: dict[str, list[Any]] = {name: [] for name in PROMPTS.names}
    left_out: list[tuple[str, str]] = []
    for prompt in prompts:
        messages = as_messages(prompt.messages)
        try:
            tokens = prompt_tokens(tokenizer, messages)
        except jinja2.TemplateError as error:
            left_out.append((prompt.prompt_id, f"{REFUSED}: {error}"))
            continue
        if len(tokens) > max_length:
            left_out.append((prompt.prompt_id, TOO_LONG_PROMPT))
            continue
        rows["prompt_id"].append(prompt.prompt_id)
        rows["prompt"].append(messages[-1]["content"])
        rows["messages"].append(json.dumps(messages, ensure_ascii=False))
        rows["prompt_tokens"].append(tokens)
    return pa.table(rows, schema=PROMPTS), left_out
