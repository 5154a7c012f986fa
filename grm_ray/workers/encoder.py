"""Tokenising in a process of its own, so that the driver never holds a token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from grm_ray.config.errors import ConfigError
from grm_ray.config.reward_model import PairData
from grm_ray.data import survey
from grm_ray.data.encode import encode_pairs, encode_prompts, encode_rated
from grm_ray.data.records import Prompt
from grm_ray.data.sources import Quarantine
from grm_ray.models.backbone import load_tokenizer
from grm_ray.models.starting import starting_contract
from grm_ray.runtime import logs


def start_encoder(model: str, trust_remote_code: bool, log: str) -> Any:
    """An `Encoder` on the driver's own machine.

    Every step reads its tables: they are to live where the run itself lives, not on a machine that
    the run could otherwise do without.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return Encoder.options(scheduling_strategy=here).remote(model, trust_remote_code, log)


@dataclass(frozen=True)
class Margins:
    """What a loss that reads margins asks of the data.

    `missing`: what a pair without one gets; None: it is left out. `weights`: margins weigh pairs,
    so that a negative one would turn a preference round.
    """

    missing: float | None
    weights: bool

    def of(self, table: pa.Table) -> tuple[pa.Table, list[tuple[str, str]]]:
        """`table` with a fitting margin in every row, and (uid, reason) of the rows left out."""
        if self.missing is not None:
            column = table["margin"].fill_null(self.missing)
            table = table.set_column(table.column_names.index("margin"), "margin", column)
        lacking = table["margin"].is_null()
        left_out = [(uid, "no margin") for uid in table["uid"].filter(lacking).to_pylist()]
        table = table.filter(pc.invert(lacking))
        if self.weights:
            below = pc.less(table["margin"], 0.0)
            uids = table["uid"].filter(below).to_pylist()
            left_out += [(uid, "a negative margin cannot weigh a pair") for uid in uids]
            table = table.filter(pc.invert(below))
        return table, left_out


@ray.remote(num_cpus=0, max_restarts=3, max_task_retries=3)
class Encoder:
    """Tokenises one table after another; its process ends when the driver lets go of it."""

    def __init__(self, model: str, trust_remote_code: bool, log: str) -> None:
        logs.to_file(Path(log))
        self._model, self._trust = model, trust_remote_code
        self._loaded: Any = None

    def _tokenizer(self) -> Any:
        """Loaded in the first task: what goes wrong in `__init__` reaches nobody as itself."""
        if self._loaded is None:
            try:
                self._loaded = load_tokenizer(self._model, self._trust)
            except ValueError as error:
                raise ConfigError(str(error)) from None
        return self._loaded

    def pairs(
        self,
        data: dict[str, Any],
        new_head: bool,
        seed: int,
        attributes: tuple[str, ...],
        margins: Margins | None,
    ) -> Iterator[Any]:
        """Read, choose and tokenise all training and evaluation rows, piece by piece.

        To be called with `num_returns="streaming"`. Yields a table (`PAIRS`, or `RATED` for
        regression), then its metadata, which is all that the driver plans with: the set, uids,
        lengths in tokens as packed, what each row weighs in a loss that is normalised by margins
        or labels, and what was left out. At the very first there is no table, and the metadata
        say what was read.

        Raises:
            ConfigError: as `survey.plan`.
        """
        wanted = PairData(**data)
        tokenizer = self._tokenizer()
        contract = starting_contract(
            self._model,
            tokenizer,
            wanted.max_length,
            wanted.truncation,
            new_head,
            self._trust,
        )
        quarantine = Quarantine()
        plan = survey.plan(wanted, seed, quarantine, attributes)
        yield None
        yield {
            "fingerprint": plan.fingerprint,
            "sets": plan.sets,
            "left_out": plan.left_out,
            "quarantine": quarantine.rows,
        }
        for name in ("train", *plan.sets):
            for chunk in survey.read(wanted, plan, name):
                if name == "train" and attributes:
                    encoded = encode_rated(chunk.items, tokenizer, contract, chunk.first)
                else:
                    encoded = encode_pairs(chunk.items, tokenizer, contract, chunk.first)
                table, left_out, truncated = encoded
                if name == "train" and margins is not None:
                    table, without = margins.of(table)
                    left_out += without
                yield table
                yield {
                    "set": name,
                    "source": chunk.source,
                    "uids": table["uid"].to_pylist(),
                    "lengths": _lengths(table),
                    "weights": _weights(table),
                    "left_out": left_out,
                    "truncated": truncated,
                }

    @ray.method(num_returns=2)
    def prompts(self, prompts: list[Prompt], max_length: int) -> tuple[pa.Table, dict[str, Any]]:
        """The `PROMPTS` table, and its metadata: the ids of its prompts, and (id, reason) of those
        that are left out."""
        table, left_out = encode_prompts(prompts, self._tokenizer(), max_length)
        return table, {"prompt_ids": table["prompt_id"].to_pylist(), "left_out": left_out}


def _lengths(table: pa.Table) -> list[int]:
    """Tokens of each row as packed: the prompt once."""
    columns = [name for name in table.column_names if name.endswith("_tokens")]
    lengths = [table[name].combine_chunks().value_lengths().to_numpy() for name in columns]
    return np.sum(lengths, axis=0).tolist() if table.num_rows else []


def _weights(table: pa.Table) -> list[float]:
    """A pair's margin (1 where it has none), or a graded answer's number of labels."""
    if "labels" in table.column_names:
        return [float(np.isfinite(labels).sum()) for labels in table["labels"].to_pylist()]
    return table["margin"].fill_null(1.0).to_pylist()
