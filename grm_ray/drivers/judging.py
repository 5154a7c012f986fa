"""From files of scores to what an evaluation says: plain data, ready for JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from grm_ray.config.schema import Source
from grm_ray.rewards.aggregate import MemberNormalizer, mean, minimum
from grm_ray.study import preferences, repetitions, suites
from grm_ray.study.intervals import SHARE, Interval
from grm_ray.study.preferences import ScoredContest

# Of each training of one model: the same contests, with that training's scores.
Repetitions = Sequence[Sequence[ScoredContest]]


def contests(table: pa.Table, scores: np.ndarray | None = None) -> list[ScoredContest]:
    """The contests of a `SCORED` table (`data.tables`); `scores` in place of its own."""
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
            ScoredContest(
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
    reduce = {"mean": mean, "min": minimum}[aggregate]

    def scores(name: str) -> torch.Tensor:
        columns = [tables[name]["score"].to_numpy().astype(np.float64) for tables in members]
        return torch.from_numpy(np.stack(columns))

    try:
        scale = MemberNormalizer.fit(scores(reference))
    except ValueError as error:
        raise ValueError(f"set '{reference}': {error}") from None
    return {name: reduce(scale.normalize(scores(name))).numpy() for name in members[0]}


def side_by_side(
    found: Mapping[str, Mapping[str, Sequence[ScoredContest]]],
    sets: Mapping[str, Source],
    baselines: Mapping[str, str],
    ensembles: Collection[str] = (),
) -> dict[str, Any]:
    """`sets` and `results` of an evaluation: every model on every set.

    Args:
        found: model -> set -> its contests; the same answers for every model.
        baselines: model -> the model that it is compared with (itself: with none).
        ensembles: the models whose scores are in no unit that calibration could be told of.
    """
    once = {
        model: {name: [contests] for name, contests in of_model.items()}
        for model, of_model in found.items()
    }
    return of_repetitions(once, sets, baselines, ensembles)


def of_repetitions(
    found: Mapping[str, Mapping[str, Repetitions]],
    sets: Mapping[str, Source],
    baselines: Mapping[str, str],
    ensembles: Collection[str] = (),
) -> dict[str, Any]:
    """`side_by_side` of models that were trained several times, in one order of seeds."""
    any_model = next(iter(found.values()))
    results: dict[str, dict[str, Any]] = {}
    for name, source in sets.items():
        results[name] = {}
        for model, of_model in found.items():
            shown = averaged(of_model[name], source.format, model not in ensembles)
            results[name][model] = shown
            if (baseline := baselines[model]) != model:
                gain = gained(found[baseline][name], of_model[name])
                shown["versus"] = {"baseline": baseline, **gain}
    described = {}
    for name, source in sets.items():
        contests = any_model[name][0]
        described[name] = {
            "path": source.path,
            "format": source.format,
            "contests": len(contests),
            "prompts": len({c.cluster for c in contests}),
            "longer_wins": length_baseline(contests),
        }
    return {"sets": described, "results": results}


def averaged(found: Repetitions, data_format: str, in_nats: bool = True) -> dict[str, Any]:
    """What a model's repetitions say: each judged by itself, then the means of their figures.

    Intervals count repetitions and prompts, and `accuracy.each` is that of each repetition; one
    alone is `judged` as it is.
    """
    each = [judged(contests, data_format, in_nats) for contests in found]
    if len(each) == 1:
        return each[0]
    result = _mean(each)
    result["accuracy"] = _over(found, preferences.won)
    parts = [preferences.by_subset(contests, list) for contests in found]
    for subset, shown in result["subsets"].items():
        shown["accuracy"] = _over([part[subset] for part in parts], preferences.won)
    # Which pairs differ in score and length is another matter in each repetition.
    result["length"]["longer_scores_higher"] |= {"low": None, "high": None}
    result["calibration"]["bins"] = _mean_bins([one["calibration"]["bins"] for one in each])
    for row, name in enumerate(("strict", "ties_pass", "mrr")):
        if "one_to_many" in result:
            result["one_to_many"][name] = _over(
                found, lambda c, row=row: preferences.ranked(c)[row]
            )
    if cannot := [one["suite"] for one in each if "cannot" in one.get("suite", {})]:
        result["suite"] = cannot[0]
    return result


def gained(before: Repetitions, after: Repetitions) -> dict[str, Any]:
    """`versus` of repetitions, paired one by one; what was made once stands against each of them.

    `difference.each` is the gain of each pair of trainings.
    """
    count = max(len(before), len(after))
    before, after = list(before) * (count // len(before)), list(after) * (count // len(after))
    if count == 1:
        return versus(before[0], after[0])
    pairs = list(zip(before, after, strict=True))
    compared = [preferences.compare(one, other) for one, other in pairs]
    gains_SB = np.stack([preferences.won(b) - preferences.won(a) for a, b in pairs])
    found = repetitions.mean_over(gains_SB, [c.cluster for c in before[0]], (-1.0, 1.0))
    return {
        "difference": {**interval(found.interval), "each": list(found.each)},
        "discordance": float(np.mean([one.discordance for one in compared])),
        "detectable": _number(found.detectable),
    }


def judged(
    found: Sequence[ScoredContest], data_format: str, in_nats: bool = True
) -> dict[str, Any]:
    """What one model's scores of one set say.

    Args:
        in_nats: whether sigma of a score difference is a chance; an ensemble's are deviations.
    """
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
        "calibration": _calibration(found) if in_nats else {"ece": None, "bins": []},
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


def length_baseline(found: Sequence[ScoredContest]) -> dict[str, Any]:
    """The accuracy of "the longer answer wins", of the set and of each subset."""
    baseline = preferences.length_baseline(found)
    return {
        "accuracy": interval(baseline.interval),
        "subsets": {
            name: interval(preferences.length_baseline(part).interval)
            for name, part in preferences.by_subset(found, list).items()
        },
    }


def versus(before: Sequence[ScoredContest], after: Sequence[ScoredContest]) -> dict[str, Any]:
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


def _over(
    found: Repetitions, values: Callable[[Sequence[ScoredContest]], np.ndarray]
) -> dict[str, Any]:
    """The interval of a share over repetitions and prompts."""
    clusters = [c.cluster for c in found[0]]
    over = repetitions.mean_over(np.stack([values(one) for one in found]), clusters, SHARE)
    return {**interval(over.interval), "each": list(over.each)}


def _mean(each: Sequence[Any]) -> Any:
    """Means of the numbers of trees of one form; None where one is missing, words are the first's.

    What one tree alone has is left out.
    """
    first = each[0]
    if isinstance(first, dict):
        keys = [key for key in first if all(key in one for one in each)]
        return {key: _mean([one[key] for one in each]) for key in keys}
    if isinstance(first, list):
        return [_mean(values) for values in zip(*each, strict=False)]
    if any(one is None for one in each):
        return None
    if isinstance(first, str) or all(one == first for one in each):
        return first
    return float(np.mean(each))


def _mean_bins(each: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Bins of a reliability plot over all repetitions, their pairs counted once."""
    bins = []
    for same in zip(*each, strict=True):
        pairs = sum(one["pairs"] for one in same)
        bins.append(
            {
                "from": same[0]["from"],
                "to": same[0]["to"],
                "pairs": round(pairs / len(same)),
                **{
                    what: sum(one["pairs"] * (one[what] or 0.0) for one in same) / pairs
                    if pairs
                    else None
                    for what in ("confidence", "accuracy")
                },
            }
        )
    return bins


def _short(found: Sequence[ScoredContest]) -> dict[str, Any]:
    of_subset = preferences.accuracy(found)
    return {"accuracy": interval(of_subset.interval), "ties": of_subset.ties}


def _calibration(found: Sequence[ScoredContest]) -> dict[str, Any]:
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


def _suite(found: Sequence[ScoredContest], data_format: str) -> dict[str, Any] | None:
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
            suite["levels"] = {"easy": score.easy, "normal": score.normal, "hard": score.hard}
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
