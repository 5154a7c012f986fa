"""What an evaluation says, in words and tables that are the same on the page and in Markdown."""

from __future__ import annotations

from collections.abc import Callable

from grm_ray.reporting.evaluation_figures import (
    LONGER,
    ReportSection,
    Result,
    at,
    grouped,
    points,
    share,
    sizes,
)
from grm_ray.reporting.tables import NOTHING, Figure, Table, finite, fixed, shortened

# More models than this get no sentence of their own: the table says it in less room.
_SENTENCES = 4
_ACCURACY = (
    "Share of contests won, in %, with its 95 % interval: the better answer must score strictly "
    "higher, so that a tie counts as a failure; a contest of several answers counts by the share "
    "of its pairs that are won. "
)
_OVER_PROMPTS = (
    "Intervals are bootstrapped over prompts, because contests of the same prompt are similar."
)


def coverage(result: Result) -> str:
    """What the intervals cover: prompts, and where models were trained several times, seeds."""
    repeated = result.get("repetitions")
    if not repeated:
        return _OVER_PROMPTS
    factor, choices = repeated["factor"], repeated["choices"]
    if len(choices) == 1:
        return (
            f"{_OVER_PROMPTS} There is only one {factor}: the interval does not include training "
            "noise."
        )
    text = (
        f"Figures are means over {len(choices)} trainings ({factor}: {', '.join(choices)}). "
        "Intervals cover both prompts and trainings: how the figures would vary with other "
        "prompts and other seeds."
    )
    if len(choices) == 2:
        text += (
            " Two trainings say little about the variance between trainings, so that intervals "
            "are wide and their width is mostly chance: see each training below."
        )
    if any("members" in described for described in result["models"].values()):
        text += (
            " An ensemble exists only once: its interval covers prompts, the interval of its "
            "difference also the trainings of the baseline; neither covers the training noise of "
            "the ensemble itself."
        )
    return text


def verdicts(result: Result) -> list[str]:
    """A sentence a model on where it differs from the baseline; none where models are many."""
    others = [model for model in result["models"] if model != result["baseline"]]
    if len(others) > _SENTENCES:
        return []
    found = []
    for model in others:
        if not any(_tested(result, name, model) for name in result["sets"]):
            continue
        signs = [_sign(result, name, model) for name in result["sets"]]
        better, worse = signs.count("▲"), signs.count("▼")
        if better or worse:
            text = f"{_some(better, len(signs))} and worse on {worse or 'none'}"
        else:
            text = f"{_some(0, len(signs))}, and worse on none: no difference beyond chance"
        found.append(
            f"{shortened(model)} is better than {shortened(result['baseline'])} on {text}."
        )
    return found


def accuracy(result: Result) -> ReportSection:
    """One row a model, one column a set."""
    sets, baseline = result["sets"], result["baseline"]
    rows: list[list[str | Figure]] = [
        [
            f"{model} (baseline)" if model == baseline and len(result["models"]) > 1 else model,
            *(
                share(at(result, "results", name, model, "accuracy"), _sign(result, name, model))
                for name in sets
            ),
        ]
        for model in result["models"]
    ]
    rows.append([LONGER, *(share(at(s, "longer_wins", "accuracy")) for s in sets.values())])
    rows.append(["contests / prompts", *(sizes(s) for s in sets.values())])
    about = _ACCURACY + coverage(result)
    tests = sum(_tested(result, name, model) for name in sets for model in result["models"])
    if tests:
        about += (
            f" ▲ better and ▼ worse than {baseline}: the interval of the paired difference "
            f"excludes 0. Of {tests} such comparisons about {0.05 * tests:.1f} would be marked by "
            "chance if all models were equal."
        )
    return ReportSection("Accuracy", about, [Table(["model", *sets], rows, foot=2)])


def differences(result: Result) -> ReportSection | None:
    """The paired gain of each model over the baseline, and what gain would have shown."""
    rows = grouped(
        result,
        lambda found: [
            points(at(found, "versus", "difference")),
            fixed(at(found, "versus", "detectable"), 1, 100),
            # Of several answers it is a mean square, and no share that one could read.
            NOTHING
            if found.get("one_to_many")
            else fixed(at(found, "versus", "discordance"), 1, 100),
        ],
        lambda found: found.get("versus") is not None,
    )
    if not rows:
        return None
    about = (
        f"Accuracy minus that of {result['baseline']} on the same contests, in percentage points, "
        "with its 95 % interval. “Detectable from” is the smallest true gain that a comparison "
        f"of this size detects in four of five cases, if {_as_here(result)}; {NOTHING} where no "
        "gain is detected that often. “Disagree” is the share of contests that only one of the "
        "two wins; it is known where a contest is a pair."
    )
    head = ["set", "model", "difference, points", "detectable from", "disagree, %"]
    return ReportSection("Differences from the baseline", about, [Table(head, rows, names=2)])


def _as_here(result: Result) -> str:
    if len(at(result, "repetitions", "choices") or []) > 1:
        return "gains vary over prompts and trainings as they do here"
    return "the models disagree as often as they do here and every prompt counts once"


def repetitions(result: Result) -> ReportSection | None:
    """Each training by itself: its accuracy, and its gain over the baseline of its seed."""
    choices = at(result, "repetitions", "choices") or []
    if len(choices) < 2:
        return None
    rows = grouped(
        result,
        lambda found: [
            *(fixed(value, 1, 100) for value in at(found, "accuracy", "each")),
            *(
                fixed(value, 1, 100, plus=True)
                for value in at(found, "versus", "difference", "each") or [None] * len(choices)
            ),
        ],
        lambda found: at(found, "accuracy", "each") is not None,
    )
    about = (
        "Accuracy of each training in %, and its difference from the baseline's training with "
        f"the same {result['repetitions']['factor']}, in points."
    )
    head = ["set", "model", *choices, *(f"difference, {choice}" for choice in choices)]
    return ReportSection("Each training", about, [Table(head, rows, names=2)])


def biases(result: Result) -> ReportSection:
    """Length, ties and calibration."""

    def figures(name: str) -> Callable[[Result], list[str | Figure]]:
        chosen = at(result, "sets", name, "longer_wins", "accuracy", "mean")
        return lambda found: [
            fixed(at(found, "length", "spearman"), 2, plus=True),
            share(at(found, "length", "longer_scores_higher")),
            fixed(chosen, 1, 100),
            _ties(found),
            fixed(at(found, "calibration", "ece"), 3),
        ]

    rows = [row for name in result["sets"] for row in grouped(result, figures(name), only=name)]
    about = (
        "Correlation: rank correlation of score and length among the answers to one prompt; 0 "
        "means no dependence on length. A model without a length bias of its own scores the "
        "longer answer higher about as often as the longer one is chosen in the data. Ties are "
        "pairs whose answers have the same score. Calibration error (ECE) is the distance between "
        "confidence, the sigma of the score difference, and the share won; 0 is best, and it is "
        "not meaningful for scores that are not in nats, such as those of an ensemble."
    )
    head = [
        "set",
        "model",
        "correlation with length",
        "longer scores higher, %",
        "longer is chosen, %",
        "ties, % of pairs",
        "ECE",
    ]
    return ReportSection("Length bias, ties and calibration", about, [Table(head, rows, names=2)])


def origins(result: Result) -> ReportSection:
    """What was judged, on which data, and what was left out of it."""
    models: list[list[str | Figure]] = [[m, _what(d, result)] for m, d in result["models"].items()]
    sets: list[list[str | Figure]] = [
        [name, str(s.get("format", NOTHING)), str(s.get("path", NOTHING)), sizes(s)]
        for name, s in result["sets"].items()
    ]
    tables = [
        Table(["model", "location"], models, "Models", names=2, prose=True),
        Table(
            ["set", "format", "location", "contests / prompts"],
            sets,
            "Sets",
            names=3,
            prose=True,
        ),
    ]
    left_out = result.get("left_out") or {}
    if left_out:
        order = sorted(left_out.items(), key=lambda item: -item[1])
        reasons: list[list[str | Figure]] = [[reason, f"{rows:,}"] for reason, rows in order]
        tables.append(Table(["reason", "rows"], reasons, "Left out", prose=True))
        about = (
            f"{sum(left_out.values()):,} rows of the data could not be used; see quarantine.jsonl."
        )
    else:
        about = "Every row of the data could be used."
    for name, seen in (result.get("beforehand") or {}).items():
        if seen.get("in_training_files"):
            about += (
                f" The prompts of {seen['in_training_files']:,} of {seen['contests']:,} contests "
                f"of {name} are also in the training files."
            )
    return ReportSection("Models and data", about, tables)


def _sign(result: Result, name: str, model: str) -> str:
    """Whether the paired difference to the baseline leaves out 0."""
    found = at(result, "results", name, model, "versus", "difference")
    low, high = finite(at(found, "low")), finite(at(found, "high"))
    if low is not None and low > 0:
        return "▲"
    return "▼" if high is not None and high < 0 else ""


def _tested(result: Result, name: str, model: str) -> bool:
    """Whether there is an interval of the difference; one prompt alone has none."""
    return finite(at(result, "results", name, model, "versus", "difference", "low")) is not None


def _some(count: int, of: int) -> str:
    if of == 1:
        return "the one set" if count else "no set"
    return f"all {of} sets" if count == of else f"{count or 'none'} of {of} sets"


def _ties(found: Result) -> str:
    ties, pairs = finite(found.get("ties")), finite(found.get("pairs"))
    return NOTHING if ties is None or not pairs else fixed(ties / pairs, 1, 100)


def _what(described: Result, result: Result) -> str:
    if "cells" in described:
        return f"trainings {', '.join(described['cells'])}"
    if "members" not in described:
        return str(described.get("path", NOTHING))
    reference = described.get("reference") or next(iter(result["sets"]))
    members = ", ".join(described["members"])
    return (
        f"{described.get('aggregate')} of {members}, each brought to the same scale on {reference}"
    )
