"""One rank of reward-model training: its share of each step's pairs, under ZeRO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from grm_ray.config.registry import resolve
from grm_ray.config.schema import RewardModelJob
from grm_ray.data.chat import ScoringContract
from grm_ray.data.packing import Group, group_tokens, micro_batches, pack
from grm_ray.data.tables import flat
from grm_ray.models.backbone import load_causal_lm, load_tokenizer, resolve_dtype
from grm_ray.models.checkpoint import save_reward_model
from grm_ray.models.reward_model import RewardModel
from grm_ray.objectives.regularizers import grm_loss
from grm_ray.runtime import logs
from grm_ray.training.engine import ZeroEngine, address, join_group


@ray.remote
class RewardTrainer:
    """Holds the model and both token tables; is told by row number what to train on."""

    def __init__(
        self, config: dict[str, Any], rank: int, world: int, model_path: str, threads: int, log: str
    ) -> None:
        logs.to_file(Path(log))
        torch.set_num_threads(threads)
        self._config = RewardModelJob(**config)
        self._rank, self._world = rank, world
        self._path = model_path

    def address(self) -> tuple[str, int]:
        """This rank's machine and a free port there."""
        return address()

    def setup(self, meeting: tuple[str, int, int]) -> None:
        """Join the group and load the model."""
        config = self._config
        join_group(self._rank, self._world, *meeting)
        torch.manual_seed(config.seed)  # equal heads and adapters on every rank
        np.random.seed(config.seed)
        lm = load_causal_lm(config.model, self._path)
        self._model = RewardModel(lm, config.head)
        self._tokenizer = load_tokenizer(self._path, config.model.trust_remote_code)
        self._contract = ScoringContract.of(
            self._tokenizer, config.data.max_length, config.data.truncation
        )

    def begin(self, total_steps: int, train: pa.Table, held_out: pa.Table) -> None:
        """Build the engine; `setup` comes first."""
        config = self._config
        self._engine = ZeroEngine(
            self._model, config.training.optimizer, resolve_dtype(config.model.dtype), total_steps
        )
        torch.manual_seed(config.seed + 1000 * (self._rank + 1))  # dropout differs by rank
        self._preference = resolve("preference loss", config.loss.preference)
        name = config.loss.regularizer
        self._regularizer = resolve("regularizer", name) if name and config.loss.alpha else None
        self._tables = {"train": train, "eval": held_out}

    def step(self, rows: list[int], pairs_in_step: int) -> dict[str, float]:
        """One optimizer step on this rank's `rows`; metrics are means over all ranks' pairs."""
        self._engine.module.train()
        pairs = self._pairs("train", rows)
        sums = np.zeros(6)

        def loss(batch: list[int]) -> torch.Tensor:
            values = self._losses([pairs[i] for i in batch])
            sums[:] += [float(v.detach().sum()) for v in values.values()] + [len(batch)]
            return values["loss"].sum() / pairs_in_step

        batches = micro_batches(
            [group_tokens(pair) for pair in pairs],
            self._config.training.optimizer.tokens_per_micro_batch,
        )
        made = self._engine.update(batches, loss, self._dummy)
        return {**self._means(sums), **made}

    @torch.no_grad()
    def evaluate(self, rows: list[int]) -> dict[str, Any]:
        """This rank's held-out rows: per pair, whether chosen scored higher, and its loss."""
        self._engine.module.eval()
        pairs = self._pairs("eval", rows)
        margins, losses = np.zeros(len(rows)), np.zeros(len(rows))
        budget = self._config.training.optimizer.tokens_per_micro_batch
        for batch in micro_batches([group_tokens(pair) for pair in pairs], budget):
            values = self._losses([pairs[i] for i in batch], preference_only=True)
            margins[batch] = values["margin"].numpy(force=True)
            losses[batch] = values["preference"].numpy(force=True)
        return {"rows": rows, "correct": (margins > 0).tolist(), "loss": losses.tolist()}

    def save_model(self, folder: str, card: str) -> str | None:
        """Rank 0 writes the reward model's folder and returns its fingerprint."""
        if self._rank != 0:
            return None
        model = self._engine.module
        return save_reward_model(
            model, self._config.head, self._tokenizer, self._contract, Path(folder), card
        )

    def save(self, folder: str, extra: dict[str, Any]) -> dict[str, str]:
        return self._engine.save(Path(folder), extra)

    def load(self, folder: str) -> dict[str, Any]:
        return self._engine.load(Path(folder))

    # ------------------------------------------------------------------ inside

    def _pairs(self, name: str, rows: list[int]) -> list[Group]:
        """Each row's prompt with its two answers, chosen and rejected."""
        table = self._tables[name].take(pa.array(rows, pa.int64()))
        parts = [flat(table, c) for c in ("prompt_tokens", "chosen_tokens", "rejected_tokens")]
        pairs = []
        for i in range(len(rows)):
            prompt, chosen, rejected = (v[o[i] : o[i + 1]] for v, o in parts)
            pairs.append((prompt, (chosen, rejected)))
        return pairs

    def _losses(self, pairs: list[Group], preference_only: bool = False) -> dict[str, torch.Tensor]:
        """Per-pair values `(B,)`: loss, preference, regularizer, correct, margin."""
        config = self._config.loss
        regularize = self._regularizer is not None and not preference_only
        scores, logp = self._engine(
            pack(pairs).to(self._engine.device),
            range(0, 2 * len(pairs), 2) if regularize else None,  # the chosen answers
        )
        chosen, rejected = scores[0::2], scores[1::2]
        preference = self._preference(chosen, rejected)
        regularizer = self._regularizer(logp, config.beta) if regularize else None
        total = (
            grm_loss(preference, regularizer, config.alpha) if not preference_only else preference
        )
        return {
            "loss": total,
            "preference": preference,
            "regularizer": regularizer if regularizer is not None else torch.zeros_like(preference),
            "correct": (chosen > rejected).float(),
            "margin": chosen - rejected,
        }

    def _dummy(self) -> torch.Tensor:
        """The same graph as `_losses` makes, or ranks would wait for one another's gradients."""
        token = np.zeros(1, np.int64)
        packed = pack([(token, (token, token))]).to(self._engine.device)
        scores, logp = self._engine(packed, [0] if self._regularizer else None)
        return scores.sum() if logp is None else scores.sum() + logp.sum()

    def _means(self, sums: np.ndarray) -> dict[str, float]:
        loss, preference, regularizer, correct, margin, pairs = self._engine.all_reduce(sums)
        return {
            "loss": loss / pairs,
            "loss/preference": preference / pairs,
            "loss/regularizer": regularizer / pairs,
            "accuracy": correct / pairs,
            "margin": margin / pairs,
        }
