"""Ensembles of a best-of-n run's proxies: made of the scores that are there, nothing is sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grm_ray.config.best_of_n import BestOfNJob, ProxyEnsemble
from grm_ray.config.errors import ConfigError
from grm_ray.drivers import reward_stages
from grm_ray.drivers.best_of_n.shards import column
from grm_ray.rewards.aggregate import MemberNormalizer


@dataclass(frozen=True)
class ShardScores:
    """One shard's prompts that have a finite score of every model.

    Attributes:
        scores: column -> `(P, N)`, in the models' own units.
        habits: name -> `(P, N)`; empty where texts were not read.
        unscored: (id, reason) of the other prompts.
    """

    scores: dict[str, np.ndarray]
    habits: dict[str, np.ndarray]
    unscored: list[tuple[str, str]]


@dataclass(frozen=True)
class Ensembles:
    """What turns the members' scores into one; every ensemble has a column as a proxy has.

    Attributes:
        joined: column -> (members' columns, their scale, the aggregate).
    """

    joined: dict[str, tuple[list[str], MemberNormalizer, Callable[..., Any]]]

    def join(self, scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`scores` with the ensembles' columns."""
        found = dict(scores)
        for name, (members, scale, aggregate) in self.joined.items():
            shape = scores[members[0]].shape
            if not scores[members[0]].size:
                found[name] = np.zeros(shape)
                continue
            scores_KB = torch.stack([torch.from_numpy(scores[m].ravel()) for m in members])
            found[name] = aggregate(scale.normalize(scores_KB)).numpy().reshape(shape)
        return found


def check_ensembles(config: BestOfNJob) -> None:
    """That each ensemble's aggregate can be had, tried on made-up scores.

    Raises:
        ConfigError: an unknown name or parameter, or a value that the aggregate refuses.
    """
    for name, ensemble in config.ensembles.items():
        check_ensemble(f"ensembles.{name}.aggregate", ensemble)


def check_ensemble(where: str, ensemble: ProxyEnsemble) -> None:
    """The same for one, which the message calls `where`."""
    aggregate = reward_stages.aggregate(where, ensemble.aggregate)
    try:
        aggregate(torch.randn(len(ensemble.members), 8))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def fit(config: BestOfNJob, shards: Iterable[tuple[Path, ShardScores]]) -> Ensembles:
    """Each member's mean and deviation over all answers, which one reading of the shards gives.

    Raises:
        ConfigError: a member gives all answers one score.
    """
    members = sorted({m for ensemble in config.ensembles.values() for m in ensemble.members})
    if not members:
        return Ensembles({})
    moments = {name: _Moments() for name in members}
    for _, answers in shards:
        for name, found in moments.items():
            found.add(answers.scores[column(name)])
    flat = [name for name, found in moments.items() if found.count and not found.std > 0]
    if flat:
        raise ConfigError(
            f"proxies.{flat[0]}: it gives all answers the same score, so that an ensemble cannot "
            "bring it to a common scale"
        )
    return Ensembles(
        {
            column(name): (
                [column(member) for member in ensemble.members],
                MemberNormalizer(
                    [moments[m].mean for m in ensemble.members],
                    [moments[m].std for m in ensemble.members],
                ),
                _aggregate(name, ensemble),
            )
            for name, ensemble in config.ensembles.items()
        }
    )


def described(ensemble: ProxyEnsemble) -> str:
    """An ensemble in a word or two, where a proxy has its path."""
    given = ", ".join(f"{k} {v}" for k, v in ensemble.aggregate.parameters.items())
    name = f"{ensemble.aggregate.name} ({given})" if given else ensemble.aggregate.name
    return f"{name} of {', '.join(ensemble.members)}"


def _aggregate(name: str, ensemble: ProxyEnsemble) -> Callable[..., Any]:
    return reward_stages.aggregate(f"ensembles.{name}.aggregate", ensemble.aggregate)


class _Moments:
    """Count, mean and deviation of what came so far (Chan et al. 1979, two parts at a time)."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    @property
    def std(self) -> float:
        """Population standard deviation."""
        return (self._squares / self.count) ** 0.5 if self.count else 0.0

    def add(self, values: np.ndarray) -> None:
        if not values.size:
            return
        mean, apart = float(values.mean()), float(values.mean()) - self.mean
        both = self.count + values.size
        self._squares += float(np.square(values - mean).sum())
        self._squares += apart**2 * self.count * values.size / both
        self.mean += apart * values.size / both
        self.count = both
