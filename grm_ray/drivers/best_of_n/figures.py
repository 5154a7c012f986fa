"""All figures of a best-of-n run, from its shards one by one.

In memory are one shard's answers and, of all prompts, one number a size of choice. P prompts with
N answers each, S sizes of choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from grm_ray.config.best_of_n import BestOfNJob
from grm_ray.config.errors import ConfigError
from grm_ray.drivers.best_of_n.ensembles import Ensembles, ShardScores, described, fit
from grm_ray.drivers.best_of_n.shards import (
    REFUSED,
    TRUE_REWARD,
    LeftOut,
    column,
    not_answered,
)
from grm_ray.study.best_of_n import best_of_n, kl_of_best_of_n, soft_best_of_n
from grm_ray.study.intervals import Interval, bootstrap_mean, paired_difference
from grm_ray.study.monitors import list_rate, repeated_share
from grm_ray.study.overoptimization import bootstrap_peak, kept_share
from grm_ray.study.starc import canonical_products, starc_of_products

# Words that must stand again in a row to count as a repetition, as `study.monitors.repetition`.
_GRAM = 4
HABITS = ("list_rate", "repetition", "tokens")


@dataclass
class ChoiceCurve:
    """What choosing by one column gives, gathered over shards.

    Attributes:
        chosen_by: expected score of the chosen answer in that column, `(S, P)`.
        true: its true reward, `(S, P)`.
        soft: expected score, true reward and KL in nats at each temperature, `(3, betas, P)`.
        habits: name -> sum over prompts of the chosen answer's, `(S,)`.
    """

    chosen_by: np.ndarray
    true: np.ndarray
    soft: np.ndarray
    habits: dict[str, np.ndarray]


def figures(config: BestOfNJob, files: Sequence[Path], left_out: LeftOut) -> dict[str, Any]:
    """What `best_of_n.json` holds: plain data, None where a figure is not defined.

    Raises:
        ConfigError: no prompt has its answers and scores.
    """
    ensembles = fit(config, shards(config, files))
    products = _products(config, files, ensembles, left_out)
    prompts = len(next(iter(products.values())))
    spreads = {
        name: math.sqrt(found[:, 0].sum() / prompts / config.rollout.samples_per_prompt)
        for name, found in products.items()
    }
    found, oracle = curves(config, files, ensembles, spreads)
    first = next(iter(found.values()))
    proxies = {
        name: {
            "path": config.proxies.get(name) or described(config.ensembles[name]),
            "spread": spreads[name],
            "starc": starc_of_products(products[name]),
            **_of_proxy(config, curve, prompts),
            "versus": None
            if curve is first
            else plain(paired_difference(first.true[-1], curve.true[-1], seed=config.seed)),
        }
        for name, curve in found.items()
    }
    source = config.data.prompts
    return {
        "name": config.name,
        "policy": config.policy.path,
        "data": {"path": source.path, "split": source.split},
        "true_reward": config.true_reward,
        "prompts": prompts,
        "samples": config.rollout.samples_per_prompt,
        "temperature": config.rollout.temperature,
        "sizes": config.sizes,
        "kl": [kl_of_best_of_n(n) for n in config.sizes],
        "proxies": proxies,
        "oracle": {"true": _intervals(oracle, config.seed)},
        "left_out": left_out.counts,
    }


def read(file: Path, columns: Sequence[str], samples: int, texts: bool = False) -> ShardScores:
    """`columns` of scores and, with `texts`, habits of a shard's answers."""
    if not pq.read_metadata(file).num_rows:
        nothing = np.zeros((0, samples))
        return ShardScores(dict.fromkeys(columns, nothing), dict.fromkeys(HABITS, nothing), [])
    said = ["response", "tokens"] if texts else []
    table = pq.read_table(file, columns=["prompt_id", REFUSED, *columns, *said])
    scores = {name: table[name].to_numpy().astype(float).reshape(-1, samples) for name in columns}
    finite_P = np.all([np.isfinite(found).all(axis=1) for found in scores.values()], axis=0)
    habits = {}
    if texts:
        responses = table["response"].to_pylist()
        found = {
            "list_rate": [list_rate([text]) for text in responses],
            "repetition": [repeated_share(text, _GRAM) for text in responses],
            "tokens": table["tokens"].to_numpy().astype(float),
        }
        habits = {k: np.reshape(v, (-1, samples))[finite_P] for k, v in found.items()}
    ids = table["prompt_id"].to_numpy(zero_copy_only=False)[::samples]
    kept = {name: found[finite_P] for name, found in scores.items()}
    why = table[REFUSED].to_numpy(zero_copy_only=False).reshape(-1, samples)
    unscored = [
        (ids[row], f"an answer is not scored: {next(filter(None, why[row]), 'no finite number')}")
        for row in np.flatnonzero(~finite_P)
    ]
    return ShardScores(kept, habits, unscored)


def shards(
    config: BestOfNJob, files: Sequence[Path], texts: bool = False
) -> Iterator[tuple[Path, ShardScores]]:
    """Every file with all scores: a prompt that one model cannot score counts for none."""
    columns = [*map(column, config.proxies), TRUE_REWARD]
    for file in files:
        yield file, read(file, columns, config.rollout.samples_per_prompt, texts)


def _products(
    config: BestOfNJob, files: Sequence[Path], ensembles: Ensembles, left_out: LeftOut
) -> dict[str, np.ndarray]:
    """chooser -> `canonical_products` with the true reward, `(P, 3)`; notes what is left out."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in config.choosers}
    for file, answers in shards(config, files):
        scores = ensembles.join(answers.scores)
        path = config.data.prompts.path
        for prompt, reason in [*not_answered(file), *answers.unscored]:
            left_out.now.add(path, 0, reason, prompt)
        left_out.flush()
        for name, parts in found.items():
            parts.append(canonical_products(scores[column(name)], scores[TRUE_REWARD]))
    products = {name: np.concatenate(parts) for name, parts in found.items() if parts}
    if not products or not len(next(iter(products.values()))):
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.counts.items())
        raise ConfigError(f"{config.data.prompts.path}: no prompt is left: {why}")
    return products


class _Gathered:
    """A column's `ChoiceCurve`, shard by shard.

    Args:
        name: the column that chooses.
        unit: what `betas` are multiples of.
    """

    def __init__(self, config: BestOfNJob, name: str, unit: float) -> None:
        self._sizes, self._name = config.sizes, name
        self._betas = [beta * unit for beta in config.betas]
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._habits = {habit: np.zeros(len(self._sizes)) for habit in HABITS}

    def add(self, answers: ShardScores) -> None:
        proxy_PN, true_PN = answers.scores[self._name], answers.scores[TRUE_REWARD]
        soft = soft_best_of_n(proxy_PN, true_PN, self._betas) if self._betas else ()
        self._parts.append((*best_of_n(proxy_PN, true_PN, self._sizes), np.array(soft)))
        for habit, values_PN in answers.habits.items():
            self._habits[habit] += best_of_n(proxy_PN, values_PN, self._sizes)[1].sum(axis=1)

    def curve(self) -> ChoiceCurve:
        joined = [np.concatenate(found, axis=-1) for found in zip(*self._parts, strict=True)]
        return ChoiceCurve(*joined, self._habits)


def curves(
    config: BestOfNJob, files: Sequence[Path], ensembles: Ensembles, spreads: dict[str, float]
) -> tuple[dict[str, ChoiceCurve], np.ndarray]:
    """chooser -> what choosing by it gives; and the true reward where that itself chooses,
    `(S, P)`, which no proxy can exceed."""
    # Where a proxy tells no two answers apart, every temperature leaves the policy as it is.
    gathered = {n: _Gathered(config, column(n), spreads[n] or 1.0) for n in config.choosers}
    oracle = []
    for _, answers in shards(config, files, texts=True):
        true_PN = answers.scores[TRUE_REWARD]
        if len(true_PN):
            oracle.append(best_of_n(true_PN, true_PN, config.sizes)[1])
            joined = replace(answers, scores=ensembles.join(answers.scores))
            for each in gathered.values():
                each.add(joined)
    return {n: each.curve() for n, each in gathered.items()}, np.concatenate(oracle, axis=1)


def _of_proxy(config: BestOfNJob, curve: ChoiceCurve, prompts: int) -> dict[str, Any]:
    """Figures of one proxy's choice at every size and temperature."""
    seed, sizes = config.seed, config.sizes
    peak = bootstrap_peak(sizes, curve.true, seed=seed)
    kept = kept_share(curve.true.mean(axis=1), float(curve.true[0].mean()))
    return {
        "proxy": _intervals(curve.chosen_by, seed),
        "true": _intervals(curve.true, seed),
        "gain": plain(paired_difference(curve.true[0], curve.true[-1], seed=seed)),
        "peak": {**plain(peak.at), "fall": plain(peak.fall)},
        "kept": {"share": _number(kept.share), "note": kept.note},
        "habits": {name: (sums / prompts).tolist() for name, sums in curve.habits.items()},
        "soft": [
            {
                "beta": beta,
                "kl": float(curve.soft[2, i].mean()),
                "proxy": plain(bootstrap_mean(curve.soft[0, i], seed=seed)),
                "true": plain(bootstrap_mean(curve.soft[1, i], seed=seed)),
            }
            for i, beta in enumerate(config.betas)
        ],
    }


def _intervals(values_SP: np.ndarray, seed: int) -> list[dict[str, float | None]]:
    return [plain(bootstrap_mean(values_P, seed=seed)) for values_P in values_SP]


def plain(found: Interval) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {key: _number(getattr(found, key)) for key in ("mean", "low", "high")}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
