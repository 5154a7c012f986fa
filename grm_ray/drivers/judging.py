"""From files of scores to what an evaluation says: plain data, ready for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from grm_ray.config.schema import Source
from grm_ray.study import preferences, suites
from grm_ray.study.intervals import Interval
from grm_ray.study.preferences import Contest


def contests(table: pa.Table, scores: np.ndarray | None = None) -> list[Contest]:
    """The contests of a `SCORED` table (`drivers.scoring`); `scores` in place of its own."""
    if not table.num_rows:
        return []
    values = scores if scores is not None else table["score"].to_numpy()
    chosen = table["chosen"].to_numpy()
    lengths = table["characters"].to_numpy()
    subsets, prompts = table["subset"].to_pylist(), table["prompt_id"].to_pylist()
    numbers = table["contest"].to_numpy()
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
    found = []
    for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
        at = np.arange(start, end)
        good, bad = at[chosen[at]], at[~chosen[at]]
        found.append(
            Contest(
                values[good],
                values[bad],
                lengths[good],
                lengths[bad],
                subsets[start] or "",
                prompts[start],
            )
        )
    return found


def combine(
    members: Sequence[dict[str, pa.Table]], aggregate: str, reference: str
) -> dict[str, np.ndarray]:
    """Set -> one score an answer, from each member's tables by set.

    A member's scores are brought to mean 0 and deviation 1 over the answers of `reference`, then
    the mean or the least of all members counts (Coste et al. 2024, arXiv 2310.02743, section 3).

    Raises:
        ValueError: a member gives every answer of the reference set one score.
    """
    scaled: dict[str, list[np.ndarray]] = {name: [] for name in members[0]}
    for number, tables in enumerate(members):
        anchor = tables[reference]["score"].to_numpy().astype(np.float64)
        deviation = float(anchor.std())
        if not deviation > 0:
            raise ValueError(f"member {number} of the ensemble scores all of '{reference}' alike")
        for name, table in tables.items():
            scaled[name].append((table["score"].to_numpy() - anchor.mean()) / deviation)
    reduce = {"mean": np.mean, "min": np.min}[aggregate]
    return {name: reduce(np.stack(scores), axis=0) for name, scores in scaled.items()}


def side_by_side(
    found: Mapping[str, Mapping[str, Sequence[Contest]]],
    sets: Mapping[str, Source],
    baselines: Mapping[str, str],
) -> dict[str, Any]:
    """`sets` and `results` of an evaluation: every model on every set.

    Args:
        found: model -> set -> its contests; the same answers for every model.
        baselines: model -> the model that it is compared with (itself: with none).
    """
    any_model = next(iter(found.values()))
    results: dict[str, dict[str, Any]] = {}
    for name, source in sets.items():
        results[name] = {}
        for model, of_model in found.items():
            results[name][model] = judged(of_model[name], source.format)
            if (baseline := baselines[model]) != model:
                gain = versus(found[baseline][name], of_model[name])
                results[name][model]["versus"] = {"baseline": baseline, **gain}
    described = {
        name: {
            "path": source.path,
            "format": source.format,
            "contests": len(any_model[name]),
            "prompts": len({c.cluster for c in any_model[name]}),
            "longer_wins": length_baseline(any_model[name]),
        }
        for name, source in sets.items()
    }
    return {"sets": described, "results": results}


def judged(found: Sequence[Contest], data_format: str) -> dict[str, Any]:
    """What one model's scores of one set say."""
    overall = preferences.accuracy(found)
    length = preferences.length_correlation(found)
    result: dict[str, Any] = {
        "accuracy": interval(overall.interval),
        "ties": overall.ties,
        "pairs": overall.pairs,
        "subsets": preferences.by_subset(found, _short),
        "length": {
            "pearson": _number(length.pearson),
            "spearman": _number(length.spearman),
            "longer_scores_higher": interval(length.agreement),
        },
        "calibration": _calibration(found),
    }
    if any(c.chosen.size * c.rejected.size > 1 for c in found):
        many = preferences.one_to_many(found)
        result["one_to_many"] = {
            "strict": interval(many.strict),
            "ties_pass": interval(many.tolerant),
            "mrr": interval(many.mrr),
        }
    if (suite := _suite(found, data_format)) is not None:
        result["suite"] = suite
    return result


def length_baseline(found: Sequence[Contest]) -> dict[str, Any]:
    """The accuracy of "the longer answer wins", of the set and of each subset."""
    baseline = preferences.length_baseline(found)
    return {
        "accuracy": interval(baseline.interval),
        "subsets": {
            name: interval(preferences.length_baseline(part).interval)
            for name, part in preferences.by_subset(found, list).items()
        },
    }


def versus(before: Sequence[Contest], after: Sequence[Contest]) -> dict[str, Any]:
    """What `after` gains over `before` on the same contests, and the gain that would show."""
    found = preferences.compare(before, after)
    pairs, prompts = len(before), len({c.cluster for c in before})
    shares = any(c.chosen.size * c.rejected.size > 1 for c in before)
    detectable = preferences.detectable_difference(
        pairs, prompts, found.before, min(found.discordance, 1.0), shares=shares
    )
    return {
        "difference": interval(found.difference),
        "discordance": found.discordance,
        "detectable": _number(detectable),
    }


def interval(found: Interval) -> dict[str, float | int | None]:
    """`found` for JSON, in which there is no NaN."""
    return {
        "mean": _number(found.mean),
        "low": _number(found.low),
        "high": _number(found.high),
        "contests": found.rows,
        "prompts": found.clusters,
    }


def _short(found: Sequence[Contest]) -> dict[str, Any]:
    of_subset = preferences.accuracy(found)
    return {"accuracy": interval(of_subset.interval), "ties": of_subset.ties}


def _calibration(found: Sequence[Contest]) -> dict[str, Any]:
    of_pairs = preferences.calibration(np.concatenate([c.margins_nm.ravel() for c in found]))
    edges = of_pairs.edges
    bins = [
        {
            "from": float(edges[i]),
            "to": float(edges[i + 1]),
            "pairs": int(of_pairs.counts[i]),
            "confidence": _number(of_pairs.confidence[i]),
            "accuracy": _number(of_pairs.accuracy[i]),
        }
        for i in range(len(of_pairs.counts))
    ]
    return {"ece": of_pairs.ece, "bins": bins}


def _suite(found: Sequence[Contest], data_format: str) -> dict[str, Any] | None:
    """The benchmark's own averages, where the set is in a benchmark's format."""
    suite: dict[str, Any] = {"name": data_format}
    try:
        if data_format == "reward_bench":
            accuracies = preferences.by_subset(
                found, lambda part: preferences.accuracy(part).interval.mean
            )
            score = suites.reward_bench(accuracies, preferences.by_subset(found, len))
        elif data_format == "reward_bench_2":
            score = suites.reward_bench_2(found)
        elif data_format == "rm_bench":
            score = suites.rm_bench(found)
            suite["matrices"] = {name: table.tolist() for name, table in score.matrices.items()}
        else:
            return None
    except ValueError as error:  # rows of that format, but not the benchmark's own
        return {**suite, "cannot": str(error)}
    return {
        **suite,
        "score": _number(score.score),
        "sections": {name: _number(value) for name, value in score.sections.items()},
        "missing": list(score.missing),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
