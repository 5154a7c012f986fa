"""Best-of-n curves from one large sample: what would the answer of highest proxy reward be worth?

Each prompt P has N answers, each with a proxy reward (what selects) and a gold reward (what is
wanted). Nothing is drawn anew: expectations over all choices of n of the N answers are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

# exp of it is 0 in fp64: as far below the top as matters, and far from an overflow.
_LOWEST = -1000.0


def kl_of_best_of_n(n: int) -> float:
    """`log n - (n - 1) / n` nats: KL(best of n draws of a policy || that policy).

    Exact in the limit of many answers, each of little probability and of its own reward
    (Stiennon et al. 2020, arXiv 2009.01325, appendix G.3); an upper bound where answers share
    rewards or one has much of the probability (Beirami et al. 2025, arXiv 2401.01879).

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"n: 1 or more, not {n}")
    return math.log(n) - (n - 1) / n


def best_of_n_weights(count: int, n: int) -> NDArray[np.float64]:
    """Chance of each of N = `count` answers to be the best of n of them, `(N,)`, sum 1.

    Answers stand in ascending order, the best last; n are drawn without replacement:

        w_i = C(i - 1, n - 1) / C(N, n)        i from 1 to N

    Built from the top, `w_N = n / N` and `w_{i-1} = w_i (i - n) / (i - 1)`, so that no binomial
    has to be held and each weight is exact to rounding for any N.

    Raises:
        ValueError: n outside 1 to N.
    """
    if not 1 <= n <= count:
        raise ValueError(f"n: from 1 to the {count} answers of a prompt, not {n}")
    from_top_i = np.arange(count, 1, -1, dtype=np.float64)
    ratios_i = np.clip(from_top_i - n, 0, None) / (from_top_i - 1)
    return (n / count * np.cumprod(np.concatenate([[1.0], ratios_i])))[::-1]


def best_of_n(
    proxy_PN: ArrayLike, gold_PN: ArrayLike, ns: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Expected proxy and gold reward of the answer of highest proxy among n, each `(S, P)`.

    The unbiased estimator of Nakano et al. 2021 (WebGPT, arXiv 2112.09332, appendix I), as
    Coste et al. 2024 (arXiv 2310.02743) use it: `sum_i w_i gold_(i)`, answers in ascending order
    of proxy and w of `best_of_n_weights`. Among equal proxies each answer is as likely to be
    taken: such a group shares its mean gold.

    Args:
        proxy_PN: N rewards of each of P prompts, any unit, higher is better.
        gold_PN: rewards of the same answers, any unit.
        ns: S sizes of choice, each from 1 to N.

    Raises:
        ValueError: no prompt or answer, two shapes, a number that is not finite, no size, or a
            size outside 1 to N.
    """
    proxy_PN, gold_PN = _checked(proxy_PN, gold_PN)
    if len(ns) == 0:
        raise ValueError("ns: at least one size")
    weights_SN = np.stack([best_of_n_weights(proxy_PN.shape[1], n) for n in ns])
    order_PN = np.argsort(proxy_PN, axis=1, kind="stable")
    proxy_PN = np.take_along_axis(proxy_PN, order_PN, axis=1)
    gold_PN = _mean_of_ties(proxy_PN, np.take_along_axis(gold_PN, order_PN, axis=1))
    return weights_SN @ proxy_PN.T, weights_SN @ gold_PN.T


def soft_best_of_n(
    proxy_PN: ArrayLike, gold_PN: ArrayLike, betas: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Expected proxy, expected gold and KL in nats under `softmax(proxy / beta)`, each `(S, P)`.

    The law `p(y) exp(r(y) / beta) / Z` has the highest reward for its KL to p (Yang et al. 2024,
    arXiv 2404.01730); the N answers, all of one weight, stand for p. So the KL, `log N` less the
    entropy of the weights, is an estimate that cannot exceed `log N`: near it, N is too small.

    Args:
        proxy_PN: N rewards of each of P prompts, any unit, higher is better.
        gold_PN: rewards of the same answers, any unit.
        betas: S temperatures in the unit of the proxy, above 0.

    Raises:
        ValueError: no prompt or answer, two shapes, a number that is not finite, no temperature,
            or one that is not above 0.
    """
    proxy_PN, gold_PN = _checked(proxy_PN, gold_PN)
    if len(betas) == 0:
        raise ValueError("betas: at least one temperature")
    below_top_PN = proxy_PN - proxy_PN.max(axis=1, keepdims=True)
    results = []
    for beta in betas:
        if not 0 < beta < math.inf:
            raise ValueError(f"betas: finite and above 0, not {beta}")
        # A small beta may overflow to -inf, which the maximum takes back.
        with np.errstate(over="ignore"):
            tilt_PN = np.maximum(below_top_PN / beta, _LOWEST)
        log_weights_PN = tilt_PN - np.log(np.exp(tilt_PN).sum(axis=1, keepdims=True))
        weights_PN = np.exp(log_weights_PN)
        kl_P = math.log(proxy_PN.shape[1]) + (weights_PN * log_weights_PN).sum(axis=1)
        expected = [(weights_PN * reward_PN).sum(axis=1) for reward_PN in (proxy_PN, gold_PN)]
        results.append([*expected, np.clip(kl_P, 0, None)])
    proxy_SP, gold_SP, kl_SP = np.stack(results, axis=1)
    return proxy_SP, gold_SP, kl_SP


def _checked(
    proxy_PN: ArrayLike, gold_PN: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    proxy_PN = np.asarray(proxy_PN, dtype=np.float64)
    gold_PN = np.asarray(gold_PN, dtype=np.float64)
    if proxy_PN.ndim != 2 or proxy_PN.size == 0:
        raise ValueError(f"proxy: prompts with one answer or more each, not {proxy_PN.shape}")
    if proxy_PN.shape != gold_PN.shape:
        raise ValueError(f"proxy and gold: one shape, not {proxy_PN.shape} and {gold_PN.shape}")
    for name, reward_PN in (("proxy", proxy_PN), ("gold", gold_PN)):
        finite_P = np.isfinite(reward_PN).all(axis=1)
        if not finite_P.all():
            raise ValueError(f"{name}: prompt {int(np.argmin(finite_P))} is not all finite")
    return proxy_PN, gold_PN


def _mean_of_ties(
    proxy_PN: NDArray[np.float64], gold_PN: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Gold with the mean of its group in place of each number; proxy ascends along N."""
    starts_PN = np.ones(proxy_PN.shape, dtype=bool)
    starts_PN[:, 1:] = proxy_PN[:, 1:] != proxy_PN[:, :-1]
    group_PN = np.cumsum(starts_PN).reshape(proxy_PN.shape) - 1
    sums = np.bincount(group_PN.ravel(), weights=gold_PN.ravel())
    return (sums / np.bincount(group_PN.ravel()))[group_PN]
