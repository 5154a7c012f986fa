"""The rows that a learner holds: prompts and answers as flat arrays, grouped by prompt."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from grm_ray.data.packing import Group, Packed, group_tokens, pack, share_prompts
from grm_ray.data.tables import flat


class RolloutRows:
    """A `ROLLOUTS` table as flat arrays: row i is prompt i followed by answer i."""

    def __init__(self, table: pa.Table | None) -> None:
        if table is None:
            self._prompts: list[np.ndarray] = []
            self._answers: list[np.ndarray] = []
            self.answer_at = np.zeros(1, np.int64)
            return
        prompts, prompt_at = flat(table, "prompt_tokens")
        answers, self.answer_at = flat(table, "response_tokens")
        self._prompts = np.split(prompts, prompt_at[1:-1])
        self._answers = np.split(answers, self.answer_at[1:-1])

    def groups(self, budget: int, of: list[int] | None = None) -> list[list[int]]:
        """Numbers of the rows `of` (None: all) by prompt; within `budget` tokens where they can."""
        chosen = range(len(self._answers)) if of is None else of
        found = share_prompts(
            [self._prompts[i] for i in chosen], [len(self._answers[i]) for i in chosen], budget
        )
        return [[chosen[i] for i in group] for group in found]

    def tokens(self, group: list[int]) -> int:
        return group_tokens(self._group(group))

    def packed(self, groups: list[list[int]]) -> Packed:
        return pack([self._group(group) for group in groups])

    def _group(self, rows: list[int]) -> Group:
        return self._prompts[rows[0]], [self._answers[i] for i in rows]

    def answer_positions(self, groups: list[list[int]]) -> np.ndarray:
        """Where the answers of `groups` lie in the flat answer arrays, in packed order."""
        spans = [np.arange(self.answer_at[i], self.answer_at[i + 1]) for g in groups for i in g]
        return np.concatenate([np.zeros(0, np.int64), *spans])

    def answer_tokens(self, groups: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """`answer_positions`, and the offsets of those answers among themselves."""
        order = [i for group in groups for i in group]
        lengths = self.answer_at[1:][order] - self.answer_at[:-1][order]
        offsets = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
        return torch.from_numpy(self.answer_positions(groups)), torch.from_numpy(offsets)
