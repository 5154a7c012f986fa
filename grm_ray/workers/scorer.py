"""A scorer: one reward model in eval mode, record batches in, a column of scores out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import torch

from grm_ray.config.registry import resolve
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
        """`SCORES` of a `ROLLOUTS` batch, in its order; of texts, `messages` and `response` do."""
        rows = self._sequences(rollouts)
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

    def _sequences(self, rollouts: pa.Table) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each row as the contract has it: prompt, and answer with its terminal token."""
        if self._same_tokens:
            prompts, prompt_at = flat(rollouts, "prompt_tokens")
            answers, answer_at = flat(rollouts, "response_tokens")
            sides = [
                (
                    prompts[prompt_at[i] : prompt_at[i + 1]].tolist(),
                    self._contract.close(
                        self._without_stop(answers[answer_at[i] : answer_at[i + 1]].tolist())
                    ),
                )
                for i in range(rollouts.num_rows)
            ]
        else:
            sides = []
            for messages, response in zip(
                rollouts["messages"].to_pylist(), rollouts["response"].to_pylist(), strict=True
            ):
                prompt, (answer,) = self._contract.tokens(
                    self._tokenizer, json.loads(messages), [response]
                )
                sides.append((prompt, answer))
        rows = []
        for prompt, answer in sides:
            fitted = self._contract.fit(prompt, answer)
            if fitted is None:
                # Never dropped here: a sampled row must get its score, so cut from the left.
                answer = answer[-(self._contract.max_length - 1) :]
                prompt = prompt[-(self._contract.max_length - len(answer)) :]
            else:
                prompt, answer = fitted
            rows.append((np.array(prompt), np.array(answer)))
        return rows

    def _without_stop(self, answer: list[int]) -> list[int]:
        return answer[:-1] if answer and answer[-1] in self._stops else answer
