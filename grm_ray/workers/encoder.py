"""Tokenising in a process of its own, so that the driver never holds a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from grm_ray.data.chat import ScoringContract
from grm_ray.data.encode import encode_pairs, encode_prompts
from grm_ray.data.sources import Pair, Prompt
from grm_ray.models.backbone import load_tokenizer
from grm_ray.runtime import logs


def start_encoder(model: str, trust_remote_code: bool, log: str) -> Any:
    """An `Encoder` on the driver's own machine.

    Every step reads its tables: they are to live where the run itself lives, not on a machine that
    the run could otherwise do without.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return Encoder.options(scheduling_strategy=here).remote(model, trust_remote_code, log)


@ray.remote(num_cpus=0, max_restarts=3, max_task_retries=3)
class Encoder:
    """Tokenises one table after another; its process ends when the driver lets go of it."""

    def __init__(self, model: str, trust_remote_code: bool, log: str) -> None:
        logs.to_file(Path(log))
        self._tokenizer = load_tokenizer(model, trust_remote_code)

    @ray.method(num_returns=2)
    def pairs(
        self, pairs: list[Pair], max_length: int, truncation: str
    ) -> tuple[pa.Table, dict[str, Any]]:
        """The `PAIRS` table, and what the driver plans with: lengths, uids, what was left out."""
        contract = ScoringContract.of(self._tokenizer, max_length, truncation)
        table, left_out, truncated = encode_pairs(pairs, self._tokenizer, contract)
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

    @ray.method(num_returns=2)
    def prompts(self, prompts: list[Prompt], max_length: int) -> tuple[pa.Table, dict[str, Any]]:
        """The `PROMPTS` table, and its metadata: the ids of the prompts that fit."""
        table, too_long = encode_prompts(prompts, self._tokenizer, max_length)
        return table, {"prompt_ids": table["prompt_id"].to_pylist(), "too_long": too_long}
