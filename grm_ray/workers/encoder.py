"""Tokenising in a task of its own, so that the driver never holds a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from grm_ray.data.chat import ScoringContract
from grm_ray.data.encode import encode_pairs, encode_prompts
from grm_ray.data.sources import Pair, Prompt
from grm_ray.models.backbone import load_tokenizer
from grm_ray.runtime import logs


@ray.remote(num_cpus=0, num_returns=2)
def pairs_table(
    pairs: list[Pair], model: str, trust: bool, max_length: int, truncation: str, log: str
) -> tuple[pa.Table, dict[str, Any]]:
    """The `PAIRS` table, and what the driver plans with: lengths, uids, what was left out."""
    logs.to_file(Path(log))
    tokenizer = load_tokenizer(model, trust)
    contract = ScoringContract.of(tokenizer, max_length, truncation)
    table, left_out, truncated = encode_pairs(pairs, tokenizer, contract)
    prompt, chosen, rejected = (
        table.column(name).combine_chunks().value_lengths().to_numpy()
        for name in ("prompt_tokens", "chosen_tokens", "rejected_tokens")
    )
    lengths = (prompt + chosen + rejected).tolist()  # as packed: the prompt once
    return table, {
        "lengths": lengths,
        "uids": table["uid"].to_pylist(),
        "left_out": left_out,
        "truncated": truncated,
    }


@ray.remote(num_cpus=0, num_returns=2)
def prompts_table(
    prompts: list[Prompt], model: str, trust: bool, max_length: int, log: str
) -> tuple[pa.Table, dict[str, Any]]:
    """The `PROMPTS` table, and its metadata: the ids of the prompts that fit."""
    logs.to_file(Path(log))
    table, too_long = encode_prompts(prompts, load_tokenizer(model, trust), max_length)
    return table, {"prompt_ids": table["prompt_id"].to_pylist(), "too_long": too_long}
