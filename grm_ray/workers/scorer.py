"""A scorer: one reward model in eval mode, record batches in, a column of scores out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2
import numpy as np
import pyarrow as pa
import ray
import torch

from grm_ray.config.registry import resolve
from grm_ray.data.encode import fit_together
from grm_ray.data.packing import by_key
from grm_ray.data.tables import SCORES, flat
from grm_ray.models.backbone import load_tokenizer
from grm_ray.models.checkpoint import load_reward_model, local_folder
from grm_ray.models.scoring import score_rows
from grm_ray.runtime import logs, priority


@ray.remote
class Scorer:
    """Scores whatever comes; a row's score does not depend on its company, up to rounding."""

    def __init__(
        self,
        folder: str,
        dtype: str,
        policy_path: str | None,
        true_reward: str | None,
        token_budget: int,
        threads: int,
        log: str,
        trust_remote_code: bool = False,
    ) -> None:
        """`policy_path`: whose tokens the rows may bring; None: rows come as text only."""
        logs.to_file(Path(log))
        priority.yield_to_engines()
        torch.set_num_threads(threads)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._folder, self._dtype, self._trust = folder, dtype, trust_remote_code
        self._policy_path = policy_path
        self._true_reward = resolve("true reward", true_reward) if true_reward else None
        self._budget = token_budget

    def start(self) -> str:
        """Load the reward model; returns the fingerprint of its weights and contract."""
        model, self._contract, self._fingerprint = load_reward_model(
            self._folder, self._dtype, self._trust
        )
        self._model = model.to(self._device)
        self._tokenizer = load_tokenizer(str(local_folder(self._folder)), self._trust)
        self._contract.check(self._tokenizer)
        # Tokens pass through where policy and reward model read the same ones.
        self._same_tokens = False
        if self._policy_path is not None:
            policy = load_tokenizer(self._policy_path, self._trust)
            self._same_tokens = self._contract.same_tokens_as(policy)
            # A policy may end an answer with another stop token than the reward model was shown.
            self._stops = set(policy.all_special_ids) - {self._contract.terminal_token_id}
        return self._fingerprint

    def score(self, rollouts: pa.Table) -> pa.Table:
        """`SCORES` of a `ROLLOUTS` batch, in its order."""
        rows = [
            self._cut(prompt, [answer])[0]
            for prompt, answer in (self._ids if self._same_tokens else self._templated)(rollouts)
        ]
        scores = score_rows(self._model, rows, self._budget, self._device)
        true: list[float | None] = [None] * len(rows)
        if self._true_reward is not None:
            pairs = zip(
                rollouts["prompt"].to_pylist(), rollouts["response"].to_pylist(), strict=True
            )
            true = [float(self._true_reward(prompt, response)) for prompt, response in pairs]
        return pa.table(
            [rollouts["uid"], scores, true, [self._fingerprint] * len(rows)], schema=SCORES
        )

    def judge(self, texts: pa.Table) -> np.ndarray:
        """Scores of `TEXTS` (`drivers.scoring`), in their order.

        The answers of one group are cut to fit as training cuts a pair: with one common prompt. A
        group that the chat template refuses has NaN scores.
        """
        scores = np.full(texts.num_rows, np.nan, np.float32)
        rows: list[tuple[np.ndarray, np.ndarray]] = []
        at: list[int] = []
        for group in by_key(texts["group"].to_pylist()):
            try:
                sides = self._templated(texts.take(pa.array(group)))
            except jinja2.TemplateError:
                continue
            for same in by_key(tuple(prompt) for prompt, _ in sides):
                rows += self._cut(sides[same[0]][0], [sides[i][1] for i in same])
                at += [group[i] for i in same]
        found = score_rows(self._model, rows, self._budget, self._device)
        if not np.isfinite(found).all():
            raise ValueError(f"reward model {self._folder} gives scores that are no numbers")
        scores[at] = found
        return scores

    def _ids(self, rollouts: pa.Table) -> Iterator[tuple[list[int], list[int]]]:
        """Prompt and closed answer of each row, from the tokens that it brings."""
        prompts, prompt_at = flat(rollouts, "prompt_tokens")
        answers, answer_at = flat(rollouts, "response_tokens")
        for i in range(rollouts.num_rows):
            answer = self._without_stop(answers[answer_at[i] : answer_at[i + 1]].tolist())
            yield prompts[prompt_at[i] : prompt_at[i + 1]].tolist(), self._contract.close(answer)

    def _templated(self, texts: pa.Table) -> list[tuple[list[int], list[int]]]:
        """Prompt and closed answer of each row, from its text; a prompt is tokenised once."""
        messages, responses = texts["messages"].to_pylist(), texts["response"].to_pylist()
        found: dict[int, tuple[list[int], list[int]]] = {}
        for rows in by_key(messages):
            prompt, answers = self._contract.tokens(
                self._tokenizer, json.loads(messages[rows[0]]), [responses[i] for i in rows]
            )
            found |= {i: (prompt, answer) for i, answer in zip(rows, answers, strict=True)}
        return [found[i] for i in range(len(messages))]

    def _cut(
        self, prompt: list[int], answers: Sequence[list[int]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each answer with its prompt, as long as the contract allows.

        Nothing is dropped here: where the contract would drop, an answer loses its beginning.
        """
        fitted = fit_together(self._contract, prompt, answers)
        if fitted is None:
            most = self._contract.max_length - 1
            kept = [answer[-most:] for answer in answers]
            room = self._contract.max_length - max(map(len, kept))
            fitted = prompt[-room:], kept
        return [(np.array(fitted[0]), np.array(answer)) for answer in fitted[1]]

    def _without_stop(self, answer: list[int]) -> list[int]:
        return answer[:-1] if answer and answer[-1] in self._stops else answer
