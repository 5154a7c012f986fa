"""Which rows go together, and how: packed sequences, micro-batches, work split over ranks.

A packed sequence has no padding: answers to one prompt share it, and prompts share what all of them
begin with. No Ray, no DeepSpeed: plain functions over lengths and tokens. No count needs to divide
any other.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

# A prompt's tokens and those of its answers, one or more.
Group = tuple[np.ndarray, Sequence[np.ndarray]]

# Prompts share a start of at least so many tokens, and of at least this share of the longest text:
# a text that does not stand alone needs a mask in attention, which costs more than a short start.
WORTH_SHARING, WORTH_SHARE = 8, 1 / 8


@dataclass(frozen=True)
class Packed:
    """Groups in one flat sequence of T tokens: prompt, its A answers, the next prompt, ...

    What all prompts begin with (a system message, as a rule) is there once, at the start; of the
    second and later prompts the sequence, and so their bounds, hold the rest. Positions count
    within a prompt and its answer, each answer's going on where its prompt ends. Answers are
    numbered through, over all groups.
    """

    input_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    shared: int  # tokens at the start that belong to every prompt
    prompts: tuple[tuple[int, int], ...]  # of each answer: its prompt's bounds, see above
    answers: tuple[tuple[int, int], ...]  # of each answer: its own bounds

    def to(self, device: torch.device | str) -> Packed:
        return replace(
            self,
            input_ids_T=self.input_ids_T.to(device),
            position_ids_T=self.position_ids_T.to(device),
        )

    @property
    def last_A(self) -> torch.Tensor:
        """Where each answer's last token lies."""
        return torch.tensor([end - 1 for _, end in self.answers], device=self.input_ids_T.device)

    def answer_tokens(
        self, answers: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Every token of `answers` (None: of all), in that order, `(N,)` each.

        Returns:
            Where the token lies, where the token before it lies (the prompt's last one for an
            answer's first), and which entry of `answers` it belongs to.
        """
        chosen = range(len(self.answers)) if answers is None else answers
        at, before, owner = [], [], []
        for number, answer in enumerate(chosen):
            start, end = self.answers[answer]
            span = np.arange(start, end)
            at.append(span)
            before.append(np.concatenate([[self.prompts[answer][1] - 1], span[:-1]]))
            owner.append(np.full(end - start, number))
        device = self.input_ids_T.device
        at_N, before_N, owner_N = (
            torch.from_numpy(np.concatenate(parts)).to(device) for parts in (at, before, owner)
        )
        return at_N, before_N, owner_N


def group_tokens(group: Group) -> int:
    """What a group takes in a packed sequence: its prompt once.

    It takes less behind a start that it shares with groups before it.
    """
    prompt, answers = group
    return len(prompt) + sum(len(answer) for answer in answers)


def by_key(keys: Iterable[Hashable]) -> list[list[int]]:
    """Item numbers of equal keys together, in the order of first sight."""
    found: dict[Hashable, list[int]] = {}
    for item, key in enumerate(keys):
        found.setdefault(key, []).append(item)
    return list(found.values())


def pack(groups: Sequence[Group]) -> Packed:
    """`groups` one after another; an empty prompt or answer is an error.

    Raises:
        ValueError: nothing to predict from, or nothing to score.
    """
    if not all(len(prompt) and answers and all(map(len, answers)) for prompt, answers in groups):
        raise ValueError("a group needs a prompt and one or more answers, none of them empty")
    shared = _shared_start([prompt for prompt, _ in groups])
    longest = max(len(prompt) + max(map(len, answers)) for prompt, answers in groups)
    if shared < max(WORTH_SHARING, WORTH_SHARE * longest):
        shared = 0
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    prompts: list[tuple[int, int]] = []
    answers: list[tuple[int, int]] = []
    end = 0
    for prompt, group_answers in groups:
        begin = shared if ids else 0
        bounds = (end, end + len(prompt) - begin)
        ids.append(prompt[begin:])
        positions.append(np.arange(begin, len(prompt)))
        end = bounds[1]
        for answer in group_answers:
            prompts.append(bounds)
            answers.append((end, end + len(answer)))
            ids.append(answer)
            positions.append(np.arange(len(prompt), len(prompt) + len(answer)))
            end += len(answer)
    return Packed(
        torch.from_numpy(np.concatenate(ids).astype(np.int64)),
        torch.from_numpy(np.concatenate(positions).astype(np.int64)),
        shared,
        tuple(prompts),
        tuple(answers),
    )


def _shared_start(prompts: Sequence[np.ndarray]) -> int:
    """How many tokens every prompt begins with, leaving each a last one of its own."""
    if len(prompts) < 2:
        return 0
    shared = min(len(prompt) for prompt in prompts) - 1
    for prompt in prompts[1:]:
        differs = np.flatnonzero(prompt[:shared] != prompts[0][:shared])
        shared = int(differs[0]) if len(differs) else shared
    return shared


def share_prompts(
    prompts: Sequence[np.ndarray], answer_lengths: Sequence[int], budget: int
) -> list[list[int]]:
    """Row numbers grouped by equal prompts, in the order of first sight.

    A group stays within `budget` tokens, its prompt counted once; more rows open another group.
    """
    groups: list[list[int]] = []
    open_group: dict[bytes, tuple[int, int]] = {}  # prompt -> its last group and tokens in it
    for row, (prompt, length) in enumerate(zip(prompts, answer_lengths, strict=True)):
        key = np.ascontiguousarray(prompt, dtype=np.int64).tobytes()
        number, tokens = open_group.get(key, (-1, budget))
        if number < 0 or tokens + length > budget:
            number, tokens = len(groups), len(prompt)
            groups.append([])
        groups[number].append(row)
        open_group[key] = (number, tokens + length)
    return groups


def micro_batches(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Item numbers grouped so that a group's tokens sum to `budget` at most.

    First fit, largest first. An item larger than the budget stands alone.
    """
    batches: list[list[int]] = []
    loads: list[int] = []
    for item in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        fits = next((b for b, load in enumerate(loads) if load + tokens[item] <= budget), None)
        if fits is None:
            batches.append([item])
            loads.append(tokens[item])
        else:
            batches[fits].append(item)
            loads[fits] += tokens[item]
    return batches


def split_by_tokens(tokens: Sequence[int], ranks: int) -> list[list[int]]:
    """Item numbers for each rank, balanced by tokens (largest first to the lightest rank)."""
    heap = [(0, 0, rank) for rank in range(ranks)]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for item in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        load, items, rank = heapq.heappop(heap)
        shares[rank].append(item)
        heapq.heappush(heap, (load + tokens[item], items + 1, rank))
    return [sorted(share) for share in shares]
