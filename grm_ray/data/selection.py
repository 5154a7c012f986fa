"""Which rows of the sources are used: a function of prompt names and a seed, no text.

A prompt's name here is a number of 64 bits (`int(prompt_id, 16)`); sorted numbers and sorted ids
have one order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Names = Sequence[int] | np.ndarray


def choose(
    prompts_P: Names,
    limit: int | None = None,
    pairs_per_prompt: int | None = None,
    shuffle: bool = True,
    seed: int = 0,
    source: int = 0,
) -> np.ndarray:
    """The rows that a source's own keys leave, in file order.

    With `shuffle` the limit takes rows at random, else the first ones; which rows of a prompt
    `pairs_per_prompt` keeps, the seed says in either case.

    Args:
        prompts_P: each row's prompt.
        source: number of the source in a mixture; each draws for itself.

    Returns:
        Row numbers, ascending.
    """
    prompts_P = np.asarray(prompts_P, dtype=np.uint64)
    drawn_P = np.random.default_rng([seed, 1, source] if source else [seed, 1]).permutation(
        len(prompts_P)
    )
    kept_P = np.ones(len(prompts_P), dtype=bool)
    if pairs_per_prompt is not None:
        kept_P[drawn_P] = _ranks(prompts_P[drawn_P]) < pairs_per_prompt
    rows = drawn_P if shuffle else np.arange(len(prompts_P))
    return np.sort(rows[kept_P[rows]][:limit])


def shared(prompts_P: Names, others_Q: Names) -> np.ndarray:
    """Which rows' prompts are among `others_Q`, `(P,)` bool."""
    return np.isin(np.asarray(prompts_P, dtype=np.uint64), np.asarray(others_Q, dtype=np.uint64))


def hold_out(prompts: Sequence[Names], share: float, seed: int) -> np.ndarray:
    """The prompts set apart for evaluation: about `share` of all sources' prompts, at least one.

    Args:
        prompts: of each source, its rows' prompts.

    Returns:
        Prompt names, `(Q,)`; empty where `share` is 0.
    """
    names = np.unique(np.concatenate([np.asarray(p, dtype=np.uint64) for p in prompts]))
    if share == 0:
        return names[:0]
    count = max(1, round(share * len(names)))
    return np.random.default_rng(seed).permutation(names)[:count]


def _ranks(prompts_P: np.ndarray) -> np.ndarray:
    """Of each row, how many rows before it have its prompt."""
    order = np.argsort(prompts_P, kind="stable")
    sorted_P = prompts_P[order]
    new = np.r_[True, sorted_P[1:] != sorted_P[:-1]][: len(sorted_P)]
    starts = np.maximum.accumulate(np.where(new, np.arange(len(sorted_P)), 0))
    ranks = np.empty(len(sorted_P), dtype=np.int64)
    ranks[order] = np.arange(len(sorted_P)) - starts
    return ranks
