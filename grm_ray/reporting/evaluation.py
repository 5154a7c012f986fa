"""How an evaluation of reward models is shown: a page, the same in Markdown, and a picture."""

from __future__ import annotations

from pathlib import Path

from grm_ray import __version__
from grm_ray.reporting import evaluation_details as details
from grm_ray.reporting import evaluation_tables as tables
from grm_ray.reporting.document import document, put
from grm_ray.reporting.evaluation_figures import ReportSection, Result
from grm_ray.reporting.evaluation_plots import accuracy_plot, keys, reliability_plot, standalone
from grm_ray.reporting.samples import clean
from grm_ray.reporting.tables import plain, shortened

RESULT = "evaluation.json"
_EYEBROW = "Evaluation of reward models"
_FOOTER = "Made by grm_ray {} from {}.json."
_POINT = " Point at a chart to see its values."
_PICTURE = "evaluation.svg"
_RELIABILITY = (
    "Share of pairs won over confidence, the sigma of the score difference, in ten bins; bins of "
    "fewer than ten pairs are left out. On the dotted line a model is calibrated; below it, it is "
    "overconfident."
)


def write_evaluation(result: Result, folder: Path) -> Path:
    """Write `report.html`, `evaluation.md` and `evaluation.svg` to `folder`; the page's path.

    Args:
        result: what `drivers.evaluate.judge` returns, with the counts of rows `left_out`.
        folder: made where it is missing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plot = accuracy_plot(result)
    if plot:
        put(folder / _PICTURE, standalone(plot))
    put(folder / "evaluation.md", markdown(result, bool(plot)))
    path = folder / "report.html"
    put(path, html(result, plot))
    return path


def html(result: Result, plot: str) -> str:
    """The page as text, `plot` in it."""
    first, *others = _sections(result)
    title, verdict = f"{result['name']} · grm_ray", " ".join(tables.verdicts(result))
    parts = [
        f'<p class="eyebrow">{_EYEBROW}</p><h1>{clean(result["name"])}</h1>',
        f'<p class="soft">{clean(_subtitle(result))}</p>',
        f'<p class="verdict">{clean(verdict)}</p>' if verdict else "",
        first.html(),
        f'<figure class="wide"><div class="scroll">{plot}</div></figure>' if plot else "",
        *(section.html() for section in others),
        _details(result),
        f"<footer>{clean(_footer(result) + _POINT)}</footer>",
    ]
    return document(title, parts)


def markdown(result: Result, plot: bool = True) -> str:
    """The same figures as Markdown; with `plot` the picture beside it is shown."""
    first, *others = _sections(result)
    parts = [
        f"# {plain(result['name'])}",
        f"{_EYEBROW}: {plain(_subtitle(result))}",
        plain(" ".join(tables.verdicts(result))),
        *_section_lines(first),
        f"![Accuracy of each model on each set]({_PICTURE})" if plot else "",
    ]
    for section in [*others, *details.subsets(result)]:
        parts += _section_lines(section)
    parts.append(plain(_footer(result)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _sections(result: Result) -> list[ReportSection]:
    found = [
        tables.accuracy(result),
        tables.differences(result),
        tables.repetitions(result),
        details.benchmarks(result),
        details.several_answers(result),
        tables.biases(result),
        tables.origins(result),
    ]
    return [section for section in found if section is not None]


def _subtitle(result: Result) -> str:
    models, sets = len(result["models"]), len(result["sets"])
    counts = f"{models} model{'s'[: models != 1]} on {sets} set{'s'[: sets != 1]}"
    return counts + (f" · baseline {shortened(result['baseline'])}" if models > 1 else "")


def _section_lines(section: ReportSection) -> list[str]:
    tables_shown = (table.markdown() for table in section.tables)
    return [f"## {plain(section.title)}", plain(section.about), *tables_shown]


def _details(result: Result) -> str:
    parts = [_reliability(result), *(section.html() for section in details.subsets(result))]
    return f"<h2>Details</h2>{''.join(parts)}" if any(parts) else ""


def _reliability(result: Result) -> str:
    plots = {name: reliability_plot(result, name) for name in result["sets"]}
    shown = "".join(
        f"<figure><figcaption><h3>{clean(shortened(name))}</h3></figcaption>{svg}</figure>"
        for name, svg in plots.items()
        if svg
    )
    if not shown:
        return ""
    about = f'<p class="about">{_RELIABILITY}</p>{keys(list(result["models"]))}'
    return (
        f'<details><summary>Reliability</summary>{about}<div class="charts">{shown}</div></details>'
    )


def _footer(result: Result) -> str:
    return _FOOTER.format(__version__, "study" if "repetitions" in result else "evaluation")
