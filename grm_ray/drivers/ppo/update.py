"""One update: a step's rewards become advantages, and its rows are shared out over the ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from grm_ray.config.ppo import PpoJob
from grm_ray.data.packing import by_key, split_by_tokens
from grm_ray.drivers.groups import Group
from grm_ray.drivers.ppo.step import Step
from grm_ray.training.policy_loss import PolicyLoss


def begin_update(
    config: PpoJob,
    learners: Group,
    loss: PolicyLoss,
    step: Step,
    rewards: np.ndarray,
    prompts: list[int],
    coefficient: float,
    number: int,
) -> list[Any]:
    """Have the ranks learn in lockstep; returns a reference a rank to what it measured.

    Args:
        rewards: final rewards of the step's rows, in the order of its uids; of those that could not
            be scored they are not read, and nothing is learned from them.
        prompts: equal numbers for answers to one prompt, in that order.
        coefficient: of the penalty, in units of reward.
        number: the step's, from 1.
    """
    uids = step.ledger.uids
    learned = compared(step.learnable, prompts, config.ppo.estimator)
    of_rows = np.full(len(uids), np.nan)
    of_rows[learned] = loss.row_rewards(
        torch.from_numpy(rewards[learned]),
        torch.from_numpy(step.column("penalty")[learned]),
        torch.tensor(prompts)[torch.from_numpy(learned)],
        coefficient,
    ).numpy()
    if config.ppo.mask_unfinished:
        learned &= step.column("finished") > 0
    items = [kept for item in by_key(prompts) if (kept := [i for i in item if learned[i]])]
    lengths = step.column("length")
    before = step.column("tokens") - lengths
    sizes = [int(before[item[0]] + lengths[item].sum()) for item in items]
    plan = minibatches(items, config.ppo.epochs, config.ppo.minibatches, [config.seed, number])
    shares = of_ranks(plan, items, sizes, len(learners.ranks))
    return [
        rank.learn.remote(
            list(step.rollouts),
            list(step.evaluations.values()),
            {uids[i]: float(of_rows[i]) for i in sorted({i for part in mine for i in part})},
            [[uids[i] for i in part] for part in mine],
            coefficient,
            number > config.ppo.critic_warmup,
        )
        for rank, mine in zip(learners.ranks, shares, strict=True)
    ]


def compared(scored: np.ndarray, prompts: list[int], estimator: str) -> np.ndarray:
    """`(B,)`: the scored rows that can be learned from: RLOO needs another answer to the prompt.

    Args:
        scored: whether each row has all that its reward is made of.
        prompts: equal numbers for answers to one prompt.
    """
    if estimator != "rloo":
        return scored
    numbers = np.array(prompts)
    counts = np.array([(numbers[scored] == number).sum() for number in numbers])
    return scored & (counts > 1)


def minibatches(
    items: list[list[int]], epochs: int, count: int, seed: list[int]
) -> list[list[list[int]]]:
    """The items of each update, drawn anew each epoch; of no count of ranks and no token budget.

    Args:
        items: rows by prompt; cut into single rows where there are fewer prompts than `count`.
        count: updates an epoch.
        seed: equal seeds give equal orders, so that a resumed run repeats them.
    """
    if len(items) < count:
        items = [[row] for item in items for row in item]
    plan = []
    for epoch in range(epochs):
        order = np.random.default_rng([*seed, epoch]).permutation(len(items))
        plan += [[items[i] for i in part] for part in np.array_split(order, count)]
    return plan


def of_ranks(
    plan: list[list[list[int]]], items: list[list[int]], sizes: list[int], ranks: int
) -> list[list[list[int]]]:
    """rank -> rows of each update: a row is always with one rank, and loads are even.

    Rows of one prompt go to one rank, which computes the prompt once for all of them, unless an
    update has fewer prompts than there are ranks.

    Args:
        items, sizes: rows by prompt, and tokens of each.
    """
    if any(len(update) < ranks for update in plan):
        sizes = [size // len(item) for item, size in zip(items, sizes, strict=True) for _ in item]
        items = [[row] for item in items for row in item]
    item_of = {row: number for number, item in enumerate(items) for row in item}
    rank_of: dict[int, int] = {}  # by item
    for update in plan:  # even in each update of the first epoch, which meets all rows
        new = sorted({item_of[row] for item in update for row in item} - set(rank_of))
        for rank, share in enumerate(split_by_tokens([sizes[n] for n in new], ranks)):
            rank_of |= {new[i]: rank for i in share}
    rows = [[row for item in update for row in item] for update in plan]
    return [
        [[row for row in update if rank_of[item_of[row]] == rank] for update in rows]
        for rank in range(ranks)
    ]
