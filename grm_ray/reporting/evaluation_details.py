"""The tables below an evaluation's main ones: benchmarks' own scores, many answers, subsets."""

from __future__ import annotations

from grm_ray.reporting.evaluation_figures import (
    LONGER,
    ReportSection,
    Result,
    at,
    grouped,
    interval,
    share,
    sizes,
)
from grm_ray.reporting.tables import Figure, Table, fixed

SUITES = {
    "reward_bench": "RewardBench",
    "reward_bench_2": "RewardBench 2",
    "rm_bench": "RM-Bench",
}


def benchmarks(result: Result) -> ReportSection | None:
    """The averages of the benchmarks' own, with what is missing for them."""
    tables: list[Table] = []
    for name in result["sets"]:
        suites = {m: s for m in result["models"] if (s := at(result, "results", name, m, "suite"))}
        if suites:
            tables += _suite(name, suites)
    if not tables:
        return None
    about = (
        "In %, each part weighted as the benchmark weights it. Where parts are missing, the score "
        "is over the others and cannot be compared with published ones."
    )
    return ReportSection("Benchmark scores", about, tables)


def several_answers(result: Result) -> ReportSection | None:
    """Strict accuracy and mean reciprocal rank of sets with more than two answers a prompt."""
    rows = grouped(
        result,
        lambda found: [
            share(at(found, "one_to_many", "strict")),
            share(at(found, "one_to_many", "ties_pass")),
            interval(at(found, "one_to_many", "mrr"), 3),
        ],
        lambda found: found.get("one_to_many") is not None,
    )
    if not rows:
        return None
    about = (
        "Strict: the share of contests in which every chosen answer scores higher than every "
        "rejected one. MRR is the mean of 1 / rank of the best chosen answer; 1 is best."
    )
    head = ["set", "model", "strict, %", "ties allowed, %", "MRR"]
    return ReportSection("One against many", about, [Table(head, rows, names=2)])


def subsets(result: Result) -> list[ReportSection]:
    """Accuracy by subset, of every set that has more than one."""
    found = []
    for name, of_set in result["sets"].items():
        names: Result = {}
        for model in result["models"]:
            names |= at(result, "results", name, model, "subsets") or {}
        if len(names) < 2:
            continue
        rows: list[list[str | Figure]] = [
            [
                subset or "(none)",
                *(
                    share(at(result, "results", name, model, "subsets", subset, "accuracy"))
                    for model in result["models"]
                ),
                share(at(of_set, "longer_wins", "subsets", subset)),
                sizes(at(names, subset, "accuracy")),
            ]
            for subset in names
        ]
        head = ["subset", *result["models"], LONGER, "contests / prompts"]
        title = f"Subsets of {name}"
        found.append(
            ReportSection(title, "Accuracy in %, as above.", [Table(head, rows)], folded=True)
        )
    return found


def _suite(name: str, suites: dict[str, Result]) -> list[Table]:
    first = next(iter(suites.values()))
    title = f"{SUITES.get(first['name'], first['name'])}: {name}"
    cannot = [[model, str(s["cannot"])] for model, s in suites.items() if "cannot" in s]
    suites = {model: suite for model, suite in suites.items() if "cannot" not in suite}
    if not suites and len({reason for _, reason in cannot}) == 1:
        cannot = [["every model", cannot[0][1]]]
    tables = [Table(["model", "reason for no score"], cannot, title, names=2, prose=True)]
    return tables[: len(cannot)] + ([_scores(title, suites)] if suites else [])


def _scores(title: str, suites: dict[str, Result]) -> Table:
    sections = list(dict.fromkeys(k for s in suites.values() for k in s.get("sections", {})))
    missing = list(dict.fromkeys(k for s in suites.values() for k in s.get("missing", [])))
    note = f"Missing: {', '.join(missing)}." if missing else ""
    levels = list(dict.fromkeys(k for s in suites.values() for k in s.get("levels", {})))
    rows: list[list[str | Figure]] = []
    for model, suite in suites.items():
        rows.append(
            [
                model,
                fixed(suite.get("score"), 1, 100),
                *(fixed(at(suite, "levels", level), 1, 100) for level in levels),
                *(fixed(at(suite, "sections", section), 1, 100) for section in sections),
            ]
        )
    return Table(["model", "score", *levels, *sections], rows, title, note=note)
