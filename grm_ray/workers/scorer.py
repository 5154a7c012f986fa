"""A scorer: reward models in eval mode, record batches in, columns of scores out."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from grm_ray.config import registry
from grm_ray.data.tables import SCORES
from grm_ray.models.reward_reader import RewardReader, RewardReaders
from grm_ray.runtime import logs, priority
from grm_ray.runtime.timeline import Timeline, traced
from grm_ray.workers import rules


@ray.remote
class Scorer:
    """Scores whatever comes; a row's score does not depend on its company, up to rounding."""

    def __init__(
        self,
        folders: Sequence[str],
        dtype: str,
        policy_path: str | None,
        true_reward: str | None,
        token_budget: int,
        threads: int,
        log: str,
        trust_remote_code: bool = False,
        rules_of: Sequence[dict[str, Any]] = (),
        by_member: bool = True,
    ) -> None:
        """
        Args:
            folders: of the reward models; all are in memory at once, so that an answer travels
                once, however many score it.
            true_reward: a program's name, or another saved reward model; None: there is none.
            rules_of: the rules of the reward's stages.
            by_member: a model whose head is an ensemble gives a score a member, not their mean.
        """
        logs.to_file(Path(log))
        self.timeline = Timeline(Path(log))
        priority.yield_to_engines()
        torch.set_num_threads(threads)
        self._folders, self._true_reward = folders, true_reward
        self._rules, self._by_member = rules.resolve(rules_of), by_member
        self._read = partial(
            RewardReader,
            dtype=dtype,
            policy_path=policy_path,
            token_budget=token_budget,
            trust_remote_code=trust_remote_code,
        )

    @traced
    def start(self) -> list[str]:
        """Load the models; returns the fingerprint of each one's weights and contract: the reward
        models in their order, then the true reward, if that is a model."""
        self._models = RewardReaders(self._read(folder) for folder in self._folders)
        readers = self._models.readers
        self._judge = self._program = None
        if self._true_reward is not None and registry.is_path(self._true_reward):
            self._judge = self._read(self._true_reward)
        elif self._true_reward is not None:
            self._program = registry.resolve("true reward", self._true_reward)
        self._fingerprint = " ".join(reader.fingerprint for reader in readers)
        judges = [] if self._judge is None else [self._judge]
        return [reader.fingerprint for reader in (*readers, *judges)]

    def score(self, rollouts: pa.Table, row: int | None = None) -> pa.Table:
        """`SCORES` of a `ROLLOUTS` batch, or of one row of it, in its order; NaN where a model's
        template refuses."""
        rollouts = rollouts if row is None else rollouts.slice(row, 1)
        with self.timeline.span("score", key=rollouts["uid"][0].as_py(), rows=len(rollouts)):
            return self._scores(rollouts)

    def refuse(self, rollouts: pa.Table, row: int) -> pa.Table:
        """`SCORES` of one row of a `ROLLOUTS` batch that other scorers died of: NaN."""
        width = sum(r.members if self._by_member else 1 for r in self._models.readers)
        scores, ruled = [float("nan")] * width, [float("nan")] * len(self._rules)
        uid, reason = rollouts["uid"].slice(row, 1), "scorers died on it"
        columns = [uid, [scores], [ruled], [None], [self._fingerprint], [reason]]
        return pa.table(columns, schema=SCORES)

    @traced
    def judge(self, texts: pa.Table) -> np.ndarray:
        """Scores of `TEXTS` (`data.tables`) by the first model: `RewardReader.judge`."""
        return self._models.readers[0].judge(texts)

    @traced
    def answer(self, asked: pa.Table) -> tuple[np.ndarray | None, str]:
        """`(B, K)` scores of `ASKED` rows, one a model, NaN where a template refuses or there is no
        text; or None, and what of the rows is at fault.

        What is not theirs (a broken device, no memory) ends this process, so that another one takes
        its place.
        """
        try:
            scores = self._models.member_scores(asked)
            return np.stack([by_member.mean(axis=1) for by_member in scores], axis=1), ""
        except (ValueError, TypeError, KeyError, IndexError) as error:
            return None, type(error).__name__
        except Exception:
            traceback.print_exc()  # goes to this worker's log
            sys.stderr.flush()
            os._exit(1)

    def _scores(self, rollouts: pa.Table) -> pa.Table:
        scores = self._models.member_scores(rollouts)
        if not self._by_member:
            scores = [members_BK.mean(axis=1, keepdims=True) for members_BK in scores]
        scores_BK = np.hstack(scores)
        prompts, answers = (rollouts[name].to_pylist() for name in ("prompt", "response"))
        ruled_BR = rules.values(self._rules, prompts, answers)
        true: np.ndarray | list[float] | list[None] = [None] * len(answers)
        untrue: list[str | None] = [None] * len(answers)
        if self._judge is not None:
            true = self._judge.score(rollouts)
        elif self._program is not None:
            true, untrue = rules.each(self._program, prompts, answers)
        refused = [
            "a reward model's chat template refuses it"
            if not np.isfinite(scores_BK[i]).all()
            else "a rule of the reward failed on it or returned no number"
            if not np.isfinite(ruled_BR[i]).all()
            else f"true reward: {untrue[i]}"
            if untrue[i]
            else None
            for i in range(len(answers))
        ]
        fingerprints = [self._fingerprint] * len(answers)
        columns = [rollouts["uid"], list(scores_BK), list(ruled_BR), true, fingerprints, refused]
        return pa.table(columns, schema=SCORES)
