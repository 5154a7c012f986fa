"""One rank of reward-model training: its share of each step's rows, under ZeRO."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from grm_ray.config.reward_model import RewardModelJob
from grm_ray.data.packing import group_tokens, micro_batches, pack
from grm_ray.models.backbone import adapter_off, is_lora, load_tokenizer, resolve_dtype
from grm_ray.models.card import model_card
from grm_ray.models.checkpoint import save_reward_model
from grm_ray.models.starting import start_reward_model, starting_contract
from grm_ray.objectives.preference import regression
from grm_ray.runtime import logs
from grm_ray.runtime.disk import writing
from grm_ray.runtime.timeline import Timeline, traced
from grm_ray.training.engine import ZeroEngine
from grm_ray.training.process_group import address, join_group
from grm_ray.training.reward_loss import PairBatch, RewardLoss, gradient_ratio
from grm_ray.workers.chunks import Chunks, column_lists, numbers


@ray.remote
class RewardTrainer:
    """Holds the model; is told by row number what to train on."""

    def __init__(
        self, config: dict[str, Any], rank: int, world: int, model_path: str, threads: int, log: str
    ) -> None:
        logs.to_file(Path(log))
        self.timeline = Timeline(Path(log))
        torch.set_num_threads(threads)
        self._config = RewardModelJob(**config)
        self._rank, self._world = rank, world
        self._path = model_path
        self._reference: np.ndarray | None = None
        self._features: dict[int, torch.Tensor] = {}

    def address(self) -> tuple[str, int]:
        """This rank's machine and a free port there."""
        return address()

    @traced
    def setup(self, meeting: tuple[str, int, int]) -> None:
        """Join the group and load the model."""
        config = self._config
        join_group(self._rank, self._world, *meeting)
        torch.manual_seed(config.seed)  # equal heads and adapters on every rank
        np.random.seed(config.seed)
        self._model = start_reward_model(config.model, self._path, config.head, config.new_head)
        if config.model.frozen:
            self._model.lm.requires_grad_(False)
        self._tokenizer = load_tokenizer(self._path, config.model.trust_remote_code)
        self._contract = starting_contract(
            self._path,
            self._tokenizer,
            config.data.max_length,
            config.data.truncation,
            config.new_head,
            config.model.trust_remote_code,
        )
        self._loss = RewardLoss(config.loss)
        self._head_at_start = self._head()

    @traced
    def begin(self, total_steps: int, tables: dict[str, tuple[list[Any], list[int]]]) -> None:
        """Build the engine; `setup` comes first.

        Args:
            tables: "train" and each evaluation set: references to its pieces, and their rows.
        """
        config = self._config
        self._engine = ZeroEngine(
            self._model, config.training.optimizer, resolve_dtype(config.model.dtype), total_steps
        )
        torch.manual_seed(config.seed + 1000 * (self._rank + 1))  # dropout differs by rank
        self._tables = {name: Chunks(*pieces) for name, pieces in tables.items()}

    # ------------------------------------------------------------------ training

    @traced
    def step(self, rows: list[int], totals: tuple[float, float]) -> dict[str, float]:
        """One optimizer step on this rank's `rows`; metrics are means over all ranks' rows.

        Args:
            totals: what the losses of the whole step are divided by, see `RewardLoss.shares`.
        """
        self._engine.module.train()
        if self._loss.regression:
            return self._regression_step(rows, totals[0])
        if self._config.model.frozen:
            return self._frozen_step(rows, totals)
        pairs = self._pairs("train", rows)

        def loss(batch: list[int]) -> tuple[torch.Tensor, np.ndarray]:
            values = self._loss.pairs(self._engine, pairs.take(batch), self._engine.device)
            return self._loss.shares(values, totals), _sums(values)

        made, told = self._engine.update(partial(_batches, pairs.groups), loss, self._dummy)
        return {**self._means(sum(told, np.zeros(5)), totals), **made}

    @traced
    def reference_logprobs(self, rows: list[int]) -> np.ndarray:
        """`(rows, 2)`: summed log-probs of chosen and rejected under the starting model, nats.

        With LoRA that is the model with its adapter off; all weights are as at the start until the
        first step is made.
        """
        self._engine.module.eval()
        pairs = self._pairs("train", rows)
        found = np.zeros((len(rows), 2), np.float32)
        lm = self._engine.module.lm

        def read(batch: list[int] | None) -> None:
            packed = self._packed(pairs, batch)
            with adapter_off(lm) if is_lora(lm) else contextlib.nullcontext():
                _, logp = self._engine(packed, range(len(packed.answers)))
            if batch is not None:
                found[batch] = logp.reshape(-1, 2).numpy(force=True)

        with torch.no_grad():
            self._engine.read(partial(_batches, pairs.groups), read)
        return found

    def take_reference(self, logprobs_N2: np.ndarray) -> None:
        """The reference log-probs of every training row, gathered from all ranks."""
        self._reference = logprobs_N2

    # ---------------------------------------------------------------- evaluation

    @traced
    @torch.no_grad()
    def evaluate(self, name: str, rows: list[int]) -> dict[str, Any]:
        """This rank's rows of an evaluation set: scores, answer lengths, loss, one a pair."""
        self._engine.module.eval()
        pairs = self._pairs(name, rows)
        scores = np.zeros((len(rows), 2))

        def read(batch: list[int] | None) -> None:
            outputs, _ = self._engine(self._packed(pairs, batch))
            if batch is not None:
                values = self._engine.module.head.score(outputs)
                scores[batch] = values.reshape(-1, 2).double().numpy(force=True)

        self._engine.read(partial(_batches, pairs.groups), read)
        lengths = [[len(answer) for answer in answers] for _, answers in pairs.groups]
        return {"scores": scores, "lengths": np.array(lengths).reshape(-1, 2)}

    @traced
    def health(self, rows: list[int]) -> dict[str, float]:
        """How far the head has moved, and which loss pulls harder, on these training rows.

        Collective: every rank calls it. The gradients are looked at by rank 0, of few rows.
        """
        alpha = self._config.loss.alpha
        with self._engine.gathered(self._model.head):
            now = self._head()
        moved = float((now - self._head_at_start).norm() / self._head_at_start.norm())
        found = {"head_moved": moved}
        # Under ZeRO-3 weights are whole only inside the engine's own passes.
        whole = self._config.training.optimizer.zero_stage < 3
        if self._rank == 0 and 0 < alpha < 1 and whole:
            module, device = self._engine.module, self._engine.device
            pairs = self._pairs("train", rows)
            found["loss/gradient_ratio"] = gradient_ratio(self._loss, module, pairs, alpha, device)
        return found

    # ------------------------------------------------------------------- saving

    @traced
    def save_model(self, folder: str, facts: dict[str, Any]) -> str | None:
        """Rank 0 writes the reward model's folder and returns its fingerprint.

        Args:
            facts: what the model card tells (`models.card.model_card`), but for head and contract.
        """
        with self._engine.gathered():
            if self._rank != 0:
                return None
            head, contract = self._config.head.model_dump(), asdict(self._contract)
            card = model_card(**facts, head=head, contract=contract)
            with writing(Path(folder)):
                return save_reward_model(
                    self._engine.module,
                    self._config.head,
                    self._tokenizer,
                    self._contract,
                    Path(folder),
                    card,
                    adapter=is_lora(self._engine.module.lm),  # beside the merged weights, for PEFT
                )

    @traced
    def save(self, folder: str, extra: dict[str, Any]) -> dict[str, str]:
        return self._engine.save(Path(folder), extra, {})

    @traced
    def load(self, folder: str) -> dict[str, Any]:
        return self._engine.load(Path(folder), self._config.seed)

    # ------------------------------------------------------------------ inside

    def _pairs(self, name: str, rows: Sequence[int]) -> PairBatch:
        """Each row's prompt with its two answers, and what the data says of the pair."""
        table = self._tables[name].take(rows)
        prompt, chosen, rejected = (
            column_lists(table, c) for c in ("prompt_tokens", "chosen_tokens", "rejected_tokens")
        )
        return PairBatch(
            [(p, (c, r)) for p, c, r in zip(prompt, chosen, rejected, strict=True)],
            numbers(table, "margin"),
            numbers(table, "smoothing"),
            self._reference[list(rows)]
            if name == "train" and self._reference is not None
            else None,
            self._draws(rows) if name == "train" else None,
        )

    def _draws(self, rows: Sequence[int]) -> np.ndarray | None:
        """How often each member of the head's ensemble has drawn each pair, the same every epoch.

        Poisson with mean 1, the limit of drawing with replacement, needs no look at other rows.
        """
        members, seed = self._config.head.members, self._config.seed
        if members == 1:
            return None
        drawn = [np.random.default_rng([seed, row]).poisson(1.0, members) for row in rows]
        return np.array(drawn, np.float32).reshape(-1, members)

    def _packed(self, pairs: PairBatch, batch: list[int] | None) -> Any:
        """The pairs of a micro-batch; for a rank with nothing left to do, one of three tokens."""
        token = np.zeros(1, np.int64)
        groups = [(token, (token, token))] if batch is None else [pairs.groups[i] for i in batch]
        return pack(groups).to(self._engine.device)

    def _frozen_step(self, rows: list[int], totals: tuple[float, float]) -> dict[str, float]:
        """The backbone never changes: a row goes through it once, and its hidden states are kept.

        They are those of evaluation, without dropout; only the head trains. A resumed run makes
        them anew, in other company: with a frozen backbone it is equal up to rounding only.
        """
        self._engine.module.lm.eval()
        pairs = self._pairs("train", rows)
        new = [i for i, row in enumerate(rows) if row not in self._features]

        def read(batch: list[int]) -> None:
            at = [new[i] for i in batch]
            packed = self._packed(pairs, at)
            features = self._engine.module.hidden(packed)[packed.last_A].cpu()
            features = features.reshape(len(at), 2, -1)
            self._features.update(zip([rows[i] for i in at], features, strict=True))

        with torch.no_grad():
            self._engine.read(partial(_batches, [pairs.groups[i] for i in new]), read)

        def loss(batch: list[int]) -> tuple[torch.Tensor, np.ndarray]:
            features = torch.cat([self._features[rows[i]] for i in batch])
            features = features.to(self._engine.device)
            scores, _ = self._engine(None, None, features)
            values = self._loss.of_scores(scores, None, pairs.take(batch))
            return self._loss.shares(values, totals), _sums(values)

        at_once = [list(range(len(rows)))] if rows else []  # two vectors a pair, of any length
        made, told = self._engine.update(lambda _: at_once, loss, self._dummy)
        return {**self._means(sum(told, np.zeros(5)), totals), **made}

    def _regression_step(self, rows: list[int], labels_in_step: float) -> dict[str, float]:
        """Rows are single answers; the loss is the mean squared error over all labels there are."""
        table = self._tables["train"].take(rows)
        prompts, answers, labels = (
            column_lists(table, c) for c in ("prompt_tokens", "answer_tokens", "labels")
        )
        groups = [(p, (a,)) for p, a in zip(prompts, answers, strict=True)]

        def loss(batch: list[int]) -> tuple[torch.Tensor, float]:
            packed = pack([groups[i] for i in batch]).to(self._engine.device)
            predicted, _ = self._engine(packed)
            wanted = torch.as_tensor(np.stack([labels[i] for i in batch])).to(predicted)
            squared_B, _ = regression(predicted, wanted)
            return squared_B.sum() / labels_in_step, float(squared_B.detach().sum())

        made, told = self._engine.update(partial(_batches, groups), loss, self._dummy)
        return {"loss": self._engine.all_reduce([sum(told)])[0] / labels_in_step, **made}

    def _dummy(self) -> torch.Tensor:
        """The same graph as a step makes, or ranks would wait for one another's gradients."""
        if self._config.model.frozen:
            width = self._engine.module.head.layers[0].in_features
            return self._engine(None, None, torch.zeros(2, width, device=self._engine.device))[
                0
            ].sum()
        packed = self._packed(PairBatch([], np.zeros(0), np.zeros(0)), None)
        scores, logp = self._engine(packed, self._loss.logprobs_of(1))
        return scores.sum() if logp is None else scores.sum() + logp.sum()

    def _head(self) -> torch.Tensor:
        """The head's weights in one line, fp32, in memory of their own."""
        parameters = [p.detach().float().reshape(-1) for p in self._model.head.parameters()]
        return torch.cat(parameters).cpu()

    def _means(self, sums: np.ndarray, totals: tuple[float, float]) -> dict[str, float]:
        preference, regularizer, correct, margin, pairs = self._engine.all_reduce(sums)
        alpha = self._config.loss.alpha
        preference, regularizer = preference / totals[0], regularizer / totals[1]
        return {
            "loss": (1 - alpha) * preference + alpha * regularizer,
            "loss/preference": preference,
            "loss/regularizer": regularizer,
            "accuracy": correct / pairs,
            "margin": margin / pairs,
        }


def _batches(groups: Sequence[Any], budget: int) -> list[list[int]]:
    return micro_batches([group_tokens(group) for group in groups], budget)


def _sums(values: dict[str, torch.Tensor]) -> np.ndarray:
    margin = values["margin"].detach()
    parts = (values["preference"], values["regularizer"], (margin > 0).float(), margin)
    return np.array([*(float(part.detach().sum()) for part in parts), len(margin)])
