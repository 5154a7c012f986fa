"""What to watch beside the reward: habits of the answers, and how far reward models disagree.

Some habits fool every member of an ensemble (lists, length: Eisenstein et al. 2024, arXiv
2312.09244), and show only in the text. Members disagree most where a policy has left what they
were trained on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

# With something after it: - or * or a number of up to three digits (a year is no item) and a
# space, or a bullet.
_ITEM = re.compile(r"^[ \t]*(?:[-*][ \t]+|\(?\d{1,3}[.)][ \t]+|[•‣◦▪][ \t]*)\S", flags=re.MULTILINE)


def list_rate(texts: Sequence[str]) -> float:
    """Share of answers with a line that starts as an item of a list: `-`, `*`, `•`, `1.` or `1)`.

    Raises:
        ValueError: no text.
    """
    _some(texts)
    return sum(_ITEM.search(text) is not None for text in texts) / len(texts)


def repeated_share(text: str, n: int) -> float:
    """Share of a text's word n-grams that stood in it before; 0 where it has fewer than n words."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def repetition(texts: Sequence[str], n: int = 4) -> float:
    """Mean over answers of the share of word n-grams that stood in the same answer before.

    `1 - distinct / all`, seq-rep-n of Welleck et al. 2020 (arXiv 1908.04319), over words between
    white space. An answer of fewer than n words repeats nothing: 0.

    Raises:
        ValueError: no text, or n below 1.
    """
    _some(texts)
    if n < 1:
        raise ValueError(f"n: 1 or more, not {n}")
    return sum(repeated_share(text, n) for text in texts) / len(texts)


def top_choice_disagreement(scores_KPN: ArrayLike) -> float:
    """Share of P prompts for which the K members have no best of the N answers in common.

    The measure of agreement under shift of Eisenstein et al. 2024 (arXiv 2312.09244), taken on
    answers of the start model and of the current policy. Equal top scores are all best, so that
    a member without a preference disagrees with nobody.

    Args:
        scores_KPN: of each member its own unit, higher is better.

    Raises:
        ValueError: fewer than two members or two answers, no prompt, or a score that is not
            finite.
    """
    scores_KPN = np.asarray(scores_KPN, dtype=np.float64)
    shape = scores_KPN.shape
    if len(shape) != 3 or shape[0] < 2 or shape[1] == 0 or shape[2] < 2:
        raise ValueError(f"scores: two members or more, prompts, two answers or more, not {shape}")
    _finite(scores_KPN)
    best_KPN = scores_KPN == scores_KPN.max(axis=2, keepdims=True)
    common_P = best_KPN.all(axis=0).any(axis=1)
    return float(1 - common_P.mean())


def _some(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or len(texts) == 0:
        raise ValueError("texts: a sequence of at least one answer")


def _finite(scores: NDArray[np.float64]) -> None:
    if not np.isfinite(scores).all():
        raise ValueError("scores: finite numbers only")
