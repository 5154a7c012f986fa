"""Cleaning of preference labels by the votes of reward models, and label noise for experiments.

Secrets of RLHF II (arXiv 2401.06080, section 2): M reward models judge each pair; the mean of
their score differences is the preference's strength, and the weakest labels are flipped, softened,
given margins or dropped. Nothing is lost: answers may change places, but `action` says so.
The votes should come from models that have not trained on the pair's prompt (`folds`); a model that
has memorised a wrong label votes for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

KEEP, FLIP, SMOOTH, FLIP_SMOOTH, DROP = "keep", "flip", "smooth", "flip+smooth", "drop"


def flipped(keys: Sequence[bytes], rate: float, seed: int) -> np.ndarray:
    """Which pairs' labels are turned round, each with chance `rate`, `(P,)` bool.

    Args:
        keys: each pair's name, the same whichever answer is preferred: then flipping twice gives
            the first labels back. The draw is the key's own: neither order nor other pairs matter,
            and what is flipped at one rate is flipped at every higher one.
    """
    return np.array([_uniform(key, seed) < rate for key in keys], dtype=bool)


def folds(prompt_ids: Sequence[str], k: int, seed: int) -> np.ndarray:
    """Fold 0 .. k-1 of each pair, `(P,)`: all pairs of a prompt in one, prompts spread evenly.

    A voter trained on all other folds has not seen a pair's prompt.

    Raises:
        ValueError: k below 2, or more folds than prompts.
    """
    prompts = sorted(set(prompt_ids), key=lambda name: (_uniform(name.encode(), seed), name))
    if not 2 <= k <= len(prompts):
        raise ValueError(
            f"{k} folds for {len(prompts)} prompts: give at least 2 folds, and at most one per "
            "prompt"
        )
    fold = {name: place % k for place, name in enumerate(prompts)}
    return np.array([fold[name] for name in prompt_ids])


def strength(d_PM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation of the M voters' differences, `(P,)` each.

    Args:
        d_PM: score of the chosen answer minus that of the rejected one, by each voter.

    Raises:
        ValueError: not a finite (P, M) array with a voter.
    """
    d_PM = np.asarray(d_PM, dtype=np.float64)
    if d_PM.ndim != 2 or not d_PM.shape[1] or not np.isfinite(d_PM).all():
        raise ValueError(f"votes must be finite numbers of shape (pairs, voters), not {d_PM.shape}")
    return d_PM.mean(axis=1), d_PM.std(axis=1)


def robust_scale(d: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Median of |d|, over all or along `axis`; 1 where that is 0.

    Scores have no unit of their own: votes are divided by each voter's scale (`axis=0`) before
    their mean is taken, or a confident voter outvotes the others.
    """
    scale = np.median(np.abs(np.asarray(d, dtype=np.float64)), axis=axis)
    return np.where(scale > 0, scale, 1.0)


@dataclass(frozen=True)
class Curated:
    """Columns beside P pairs. The labels are the data set's own but for flips in `action_P`."""

    strength_mean_P: np.ndarray  # of the data set's own labels
    strength_std_P: np.ndarray
    action_P: np.ndarray  # keep, flip, smooth, flip+smooth, drop
    label_smoothing_P: np.ndarray  # chance that the label is wrong; NaN: not said
    margin_P: np.ndarray  # in robust scales; NaN: none

    @property
    def flipped_P(self) -> np.ndarray:
        return np.isin(self.action_P, (FLIP, FLIP_SMOOTH))

    @property
    def signed_P(self) -> np.ndarray:
        """Strength of the label as it is now: flips count."""
        return np.where(self.flipped_P, -self.strength_mean_P, self.strength_mean_P)

    def columns(self) -> dict[str, list]:
        """As columns of a file, NaN as None; `trl` reads `label_smoothing` and `margin`, and
        leaves out what `action` drops."""
        return {
            "strength_mean": self.strength_mean_P.tolist(),
            "strength_std": self.strength_std_P.tolist(),
            "action": self.action_P.tolist(),
            "label_smoothing": _nullable(self.label_smoothing_P),
            "margin": _nullable(self.margin_P),
        }


def judged(d_PM: np.ndarray) -> Curated:
    """Every pair kept as it is, with the voters' strength: what the policies below start from."""
    mean_P, std_P = strength(d_PM)
    none_P = np.full(len(mean_P), np.nan)
    return Curated(mean_P, std_P, np.full(len(mean_P), KEEP, dtype=object), none_P, none_P)


def flip_weakest(curated: Curated, share: float) -> Curated:
    """Flip the weakest `share` of the labels, as far as the voters are against them (mean < 0)."""
    weak_P = _weakest(curated, share) & (curated.strength_mean_P < 0)
    return _acted(curated, weak_P, FLIP)


def soften_weakest(
    curated: Curated, share: float, smoothing: float, *, flip_before_smooth: bool
) -> Curated:
    """Label smoothing for the weakest `share`; the paper leaves open whether they are flipped.

    Args:
        flip_before_smooth: labels that the voters are against (mean < 0) are flipped first.

    Raises:
        ValueError: `smoothing` is no chance below a half.
    """
    if not 0 < smoothing < 0.5:
        raise ValueError(f"smoothing: above 0 and below 0.5, not {smoothing}")
    weak_P = _weakest(curated, share) & (curated.action_P != DROP)
    turned_P = curated.flipped_P | (flip_before_smooth & (curated.strength_mean_P < 0))
    action_P = np.where(weak_P, np.where(turned_P, FLIP_SMOOTH, SMOOTH), curated.action_P)
    return replace(
        curated,
        action_P=action_P,
        label_smoothing_P=np.where(weak_P, smoothing, curated.label_smoothing_P),
    )


def with_margins(curated: Curated, cap: float) -> Curated:
    """margin = strength / median |strength|, cut to [-cap, cap], for -log sigma(d - margin).

    Strength is that of the label as it is now: a flipped pair's is positive. Flip first.
    """
    scaled_P = curated.signed_P / robust_scale(curated.strength_mean_P)
    return replace(curated, margin_P=np.clip(scaled_P, -cap, cap))


def drop_weakest(curated: Curated, share: float) -> Curated:
    """Mark the weakest `share` as not to be trained on."""
    return _acted(curated, _weakest(curated, share), DROP)


def act(
    curated: Curated, policy: str, weakest: float, label_smoothing: float, margin_cap: float
) -> Curated:
    """A policy by its name: none, flip, soft, flip_soft, margin, flip_margin or drop.

    `flip_soft` flips before it softens, `soft` only softens.

    Raises:
        ValueError: no such policy.
    """
    if policy == "none":
        return curated
    if policy == "drop":
        return drop_weakest(curated, weakest)
    if policy in ("soft", "flip_soft"):
        first = policy == "flip_soft"
        return soften_weakest(curated, weakest, label_smoothing, flip_before_smooth=first)
    if policy in ("flip", "margin", "flip_margin"):
        turned = curated if policy == "margin" else flip_weakest(curated, weakest)
        return turned if policy == "flip" else with_margins(turned, margin_cap)
    raise ValueError(f"policy: '{policy}' is not known")


# ------------------------------------------------------------------ inside


def _weakest(curated: Curated, share: float) -> np.ndarray:
    """The `share` of pairs with the lowest mean, `(P,)` bool."""
    if not 0 <= share <= 1:
        raise ValueError(f"share: from 0 to 1, not {share}")
    mean_P = curated.strength_mean_P
    weak_P = np.zeros(len(mean_P), dtype=bool)
    weak_P[np.argsort(mean_P, kind="stable")[: round(share * len(mean_P))]] = True
    return weak_P


def _acted(curated: Curated, where_P: np.ndarray, action: str) -> Curated:
    """`action` for the rows that no earlier policy has acted on; dropping goes before all."""
    free_P = where_P & ((curated.action_P == KEEP) | (action == DROP))
    return replace(curated, action_P=np.where(free_P, action, curated.action_P))


def _uniform(key: bytes, seed: int) -> float:
    digest = hashlib.blake2b(key, digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big") / 2**64


def _nullable(values_P: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values_P]
