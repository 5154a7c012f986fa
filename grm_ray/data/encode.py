"""Text rows to token tables, by the scoring contract."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from grm_ray.data.chat import ScoringContract, answer_tokens, prompt_tokens
from grm_ray.data.sources import Pair, Prompt
from grm_ray.data.tables import PAIRS, PROMPTS


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: Any, contract: ScoringContract
) -> tuple[pa.Table, list[tuple[str, str]], int]:
    """`PAIRS`, (uid, reason) of every pair left out, and how many were cut to fit.

    A pair whose answers become identical by truncation teaches nothing and is left out.
    """
    rows: dict[str, list[Any]] = {name: [] for name in PAIRS.names}
    left_out: list[tuple[str, str]] = []
    truncated = 0
    for number, pair in enumerate(pairs):
        uid = f"{pair.prompt_id}:{number}"
        prompt = prompt_tokens(tokenizer, [{"role": r, "content": c} for r, c in pair.prompt])
        sides = [
            contract.close(answer_tokens(tokenizer, text)) for text in (pair.chosen, pair.rejected)
        ]
        fitted = _fit_together(contract, prompt, sides)
        if fitted is None:
            left_out.append((uid, "longer than data.max_length"))
            continue
        cut_prompt, chosen, rejected = fitted
        if chosen == rejected:
            left_out.append((uid, "identical after truncation"))
            continue
        truncated += int((cut_prompt, chosen, rejected) != (prompt, *sides))
        rows["uid"].append(uid)
        rows["prompt_tokens"].append(cut_prompt)
        rows["chosen_tokens"].append(chosen)
        rows["rejected_tokens"].append(rejected)
    return pa.table(rows, schema=PAIRS), left_out, truncated


def _fit_together(
    contract: ScoringContract, prompt: list[int], sides: list[list[int]]
) -> tuple[list[int], list[int], list[int]] | None:
    """Cut both answers' sequences, keeping one common prompt."""
    longest = max(sides, key=len)
    fitted = contract.fit(prompt, longest)
    if fitted is None:
        return None
    prompt = fitted[0]
    cut = [contract.fit(prompt, side) for side in sides]
    if cut[0] is None or cut[1] is None:
        return None
    return prompt, cut[0][1], cut[1][1]


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: Any, max_length: int
) -> tuple[pa.Table, list[str]]:
    """`PROMPTS`, and the ids of the prompts longer than `max_length` tokens, which are left out."""
    rows: dict[str, list[Any]] = {name: [] for name in PROMPTS.names}
    too_long: list[str] = []
    for prompt in prompts:
        messages = [{"role": r, "content": c} for r, c in prompt.messages]
        tokens = prompt_tokens(tokenizer, messages)
        if len(tokens) > max_length:
            too_long.append(prompt.prompt_id)
            continue
        rows["prompt_id"].append(prompt.prompt_id)
        rows["prompt"].append(messages[-1]["content"])
        rows["messages"].append(json.dumps(messages, ensure_ascii=False))
        rows["prompt_tokens"].append(tokens)
    return pa.table(rows, schema=PROMPTS), too_long
