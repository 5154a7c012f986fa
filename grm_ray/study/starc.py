"""How far two reward functions are from ordering answers alike, on a given sample of answers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def starc_distance(first_PN: ArrayLike, second_PN: ArrayLike) -> float:
    """STARC distance of two rewards on N answers to each of P prompts, from 0 to 1.

    Skalse et al. 2024 (arXiv 2309.15257): bring both rewards to a canonical form c, divide each
    by its norm, and take the distance. An answer ends its episode, so c is the reward less its
    mean over the answers to that prompt:

        d = 1/2 || S_1 - S_2 ||,   S = c / ||c||,   c = R - mean_N R

    with the L2 norm over all P N numbers; a reward that tells no two answers to a prompt apart
    keeps S = 0. Where neither does, `d = sqrt((1 - corr) / 2)` with corr the pooled correlation
    within prompts: 0 for the same reward up to a positive factor and one offset a prompt, 1 for
    its opposite.

    Args:
        first_PN: rewards, any unit.
        second_PN: rewards of the same answers, any unit.

    Raises:
        ValueError: no prompt, fewer than two answers, two shapes, or a number that is not finite.
    """
    first_PN = np.asarray(first_PN, dtype=np.float64)
    second_PN = np.asarray(second_PN, dtype=np.float64)
    if first_PN.ndim != 2 or first_PN.shape[0] == 0 or first_PN.shape[1] < 2:
        raise ValueError(f"first: prompts with two answers or more each, not {first_PN.shape}")
    if first_PN.shape != second_PN.shape:
        raise ValueError(f"first and second: one shape, not {first_PN.shape}, {second_PN.shape}")
    if not (np.isfinite(first_PN).all() and np.isfinite(second_PN).all()):
        raise ValueError("first and second: finite numbers only")
    return 0.5 * float(np.linalg.norm(_standardised(first_PN) - _standardised(second_PN)))


def canonical_products(first_PN: ArrayLike, second_PN: ArrayLike) -> NDArray[np.float64]:
    """`<c1, c1>`, `<c2, c2>` and `<c1, c2>` of each prompt, `(P, 3)`; c as in `starc_distance`.

    All that the distance needs to know of a prompt: samples that do not fit into memory go by part
    by part, and rows of several parts, one below the other, are those of the whole.

    Args:
        first_PN: rewards, any unit, finite.
        second_PN: rewards of the same answers, any unit, finite.
    """
    c1_PN, c2_PN = (_canonical(np.asarray(r, dtype=np.float64)) for r in (first_PN, second_PN))
    pairs = ((c1_PN, c1_PN), (c2_PN, c2_PN), (c1_PN, c2_PN))
    return np.stack([(one * other).sum(axis=1) for one, other in pairs], axis=1)


def starc_of_products(products_P3: ArrayLike) -> float:
    """`starc_distance` from `canonical_products`, up to a rounding of about 1e-8."""
    square_1, square_2, product = np.asarray(products_P3, dtype=np.float64).sum(axis=0)
    if square_1 == 0 or square_2 == 0:
        return 0.0 if square_1 == square_2 else 0.5
    correlation = product / np.sqrt(square_1) / np.sqrt(square_2)
    return float(np.sqrt(max(0.0, (1 - correlation) / 2)))


def _standardised(reward_PN: NDArray[np.float64]) -> NDArray[np.float64]:
    canonical_PN = _canonical(reward_PN)
    norm = float(np.linalg.norm(canonical_PN))
    return canonical_PN / norm if norm > 0 else canonical_PN


def _canonical(reward_PN: NDArray[np.float64]) -> NDArray[np.float64]:
    # The first answer goes off before the mean: what is constant then is 0, not a rounding error
    # that the division would blow up.
    above_first_PN = reward_PN - reward_PN[:, :1]
    return above_first_PN - above_first_PN.mean(axis=1, keepdims=True)
