"""The page of a best-of-n run: true reward over how hard a proxy was searched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grm_ray import __version__
from grm_ray.reporting.curves import Chart
from grm_ray.reporting.document import document, put
from grm_ray.reporting.evaluation_figures import ReportSection, interval
from grm_ray.reporting.plots import Series, line_chart
from grm_ray.reporting.samples import clean
from grm_ray.reporting.tables import NOTHING, Figure, Table, fixed, shortened

RESULT = "best_of_n.json"
Result = dict[str, Any]
_KL = "KL to the policy, nats"
_ORACLE = "the true reward itself"
# Colours of proxies; the last one is the oracle's.
_COLORS, _GRAY = 6, 6
_CURVES = (
    "Expected values over all choices of n of a prompt’s {samples} answers, so that one sample "
    "gives every n; whiskers are 95 % intervals over prompts. The KL of the best of n is log n − "
    "(n − 1) / n at most. Diamonds are soft best-of-n, which draws an answer with weight "
    "exp(score / beta). The gray line chooses by the true reward: no proxy can do better with "
    "these answers. Where a line turns down while the proxy’s own score still rises, the policy "
    "exploits errors of the proxy."
)
_WORTH = (
    "Gain: best of {samples} minus one answer; with several proxies, also minus the best of "
    "{samples} by the first one. Peak: the n of the highest mean, with an interval over prompts. "
    "Since the peak: best of {samples} minus the best of that n, which is found on one half of "
    "the prompts and measured on the other. Kept: the share of the highest gain that the best of "
    "{samples} still has. STARC: distance of proxy and true reward as rankings of the answers to "
    "a prompt: 0 for the same ranking, 0.71 for unrelated ones, 1 for opposite ones."
)
_SOFT = (
    "beta is in standard deviations of the proxy’s score among the answers to one prompt. The KL "
    "is an estimate from {samples} answers and cannot exceed log {samples}: near that value, "
    "{samples} answers are too few."
)
_HABITS = (
    "Means over chosen answers. Lists: share of answers with a line that begins like a list item. "
    "Repetition: share of an answer’s word 4-grams that occur earlier in it."
)


def write_best_of_n(result: Result, folder: Path) -> Path:
    """Write `report.html` to `folder`; the page's path.

    Args:
        result: what `drivers.best_of_n.figures.figures` returns.
    """
    path = Path(folder) / "report.html"
    put(path, html(result))
    return path


def html(result: Result) -> str:
    """The page as text."""
    about = _CURVES.format(samples=result["samples"])
    charts = "".join(chart.html() for chart in _charts(result))
    parts = [
        f'<p class="eyebrow">Best of n</p><h1>{clean(result["name"])}</h1>',
        f'<p class="soft">{clean(_subtitle(result))}</p>',
        f'<p class="verdict">{clean(" ".join(_verdicts(result)))}</p>',
        f'<p class="about">{clean(about)}</p>',
        f'<div class="charts">{charts}</div>',
        _worth(result).html(),
        _sizes(result).html(),
        _habits(result).html(),
        _soft(result).html() if any(p["soft"] for p in result["proxies"].values()) else "",
        _origins(result).html(),
        f"<footer>Made by grm_ray {__version__} from {RESULT}. Point at a chart to see its "
        "values.</footer>",
    ]
    return document(f"{result['name']} · grm_ray", parts)


def _subtitle(result: Result) -> str:
    proxies = len(result["proxies"])
    return (
        f"{result['policy']} · {result['prompts']:,} prompts × {result['samples']:,} answers · "
        f"{proxies} prox{'ies' if proxies > 1 else 'y'}"
    )


def _verdicts(result: Result) -> list[str]:
    """A sentence a proxy."""
    most, found = result["samples"], []
    for name, proxy in result["proxies"].items():
        before, after = (fixed(proxy["true"][i]["mean"], 3) for i in (0, -1))
        gain = interval(proxy["gain"], 3)
        text = (
            f"The best of {most} by {shortened(name)} has a true reward of {after}, one answer "
            f"alone {before} (difference {gain.text}"
        )
        text += f", 95 % interval {gain.more}). " if gain.more else "). "
        peak = proxy["peak"]["mean"]
        if 1 < peak < most:
            share = fixed(proxy["kept"]["share"], 0, 100)
            text += (
                f"It is highest at n = {peak:.0f}; {share} % of that gain is left at n = {most}."
            )
        found.append(text.strip())
    return found


def _charts(result: Result) -> list[Chart]:
    """True reward, the proxies' own score, the habits of answers."""
    kl = result["kl"]
    true, own = [], []
    for i, (name, proxy) in enumerate(result["proxies"].items()):
        color = i % _COLORS
        true.append(_line(name, kl, proxy["true"], color))
        if soft := sorted(proxy["soft"], key=lambda found: found["kl"]):
            x, y = [s["kl"] for s in soft], [s["true"]["mean"] for s in soft]
            true.append(Series(f"{name}, soft", x, y, color, "points"))
        first, unit = proxy["proxy"][0]["mean"], proxy["spread"] or 1.0
        gains = [(found["mean"] - first) / unit for found in proxy["proxy"]]
        own.append(Series(name, kl, gains, color))
    true.append(_line(_ORACLE, kl, result["oracle"]["true"], _GRAY))
    length, habits = [], []
    for i, (name, proxy) in enumerate(result["proxies"].items()):
        color, found = i % _COLORS, proxy["habits"]
        length.append(Series(name, kl, found["tokens"], color))
        habits.append(Series(f"{name}, lists", kl, found["list_rate"], color))
        habits.append(Series(f"{name}, repetition", kl, found["repetition"], color, "points"))
    return [
        Chart(title, line_chart(title, series, unit, zero, across=_KL), series)
        for title, series, unit, zero in (
            ("True reward of the chosen answer", true, "true reward", False),
            ("What the proxy itself sees", own, "gain, standard deviations", True),
            ("Length of the chosen answer", length, "tokens", True),
            ("Lists and repetition", habits, "share", True),
        )
    ]


def _line(name: str, kl: list[float], found: list[dict[str, Any]], color: int) -> Series:
    mean, low, high = ([at[key] for at in found] for key in ("mean", "low", "high"))
    return Series(name, kl, mean, color, low=low, high=high)


def _worth(result: Result) -> ReportSection:
    """One row a proxy; where there are several, each is compared with the first."""
    most, several = result["samples"], len(result["proxies"]) > 1
    rows: list[list[str | Figure]] = [
        [
            name,
            fixed(proxy["true"][0]["mean"], 3),
            fixed(proxy["true"][-1]["mean"], 3),
            interval(proxy["gain"], 3),
            *([interval(proxy["versus"], 3) if proxy["versus"] else NOTHING] * several),
            interval(proxy["peak"], 0),
            interval(proxy["peak"]["fall"], 3),
            fixed(proxy["kept"]["share"], 2),
            fixed(proxy["starc"], 3),
        ]
        for name, proxy in result["proxies"].items()
    ]
    true = result["oracle"]["true"]
    rows.append(
        [_ORACLE, *(fixed(true[i]["mean"], 3) for i in (0, -1)), *[NOTHING] * (5 + several)]
    )
    first = shortened(next(iter(result["proxies"])))
    head = [
        "chosen by",
        "one answer",
        f"best of {most}",
        "gain",
        *([f"minus {first}’s"] * several),
        "peak at n",
        "since the peak",
        "kept",
        "STARC",
    ]
    about = _WORTH.format(samples=most)
    return ReportSection("What the choice is worth", about, [Table(head, rows, foot=1)])


def _sizes(result: Result) -> ReportSection:
    """One row a size."""
    columns = [proxy["true"] for proxy in result["proxies"].values()]
    columns.append(result["oracle"]["true"])
    rows: list[list[str | Figure]] = [
        [str(n), fixed(kl, 3), *(interval(found[i], 3) for found in columns)]
        for i, (n, kl) in enumerate(zip(result["sizes"], result["kl"], strict=True))
    ]
    head = ["n", "KL, nats", *result["proxies"], _ORACLE]
    return ReportSection(
        "True reward at every n", "Means, with 95 % intervals over prompts.", [Table(head, rows)]
    )


def _soft(result: Result) -> ReportSection:
    """One row a proxy and temperature."""
    rows: list[list[str | Figure]] = [
        [
            "" if i else name,
            f"{soft['beta']:g}",
            fixed(soft["kl"], 3),
            interval(soft["proxy"], 3),
            interval(soft["true"], 3),
        ]
        for name, proxy in result["proxies"].items()
        for i, soft in enumerate(proxy["soft"])
    ]
    head = ["chosen by", "beta", "KL, nats", "proxy’s score", "true reward"]
    about = _SOFT.format(samples=result["samples"])
    return ReportSection("Soft best-of-n", about, [Table(head, rows, names=2)])


def _habits(result: Result) -> ReportSection:
    """One row a proxy: one answer alone, and the best of N."""
    scales = (("list_rate", 1, 100), ("repetition", 1, 100), ("tokens", 1, 1))
    rows: list[list[str | Figure]] = [
        [name, *(fixed(proxy["habits"][k][i], d, f) for k, d, f in scales for i in (0, -1))]
        for name, proxy in result["proxies"].items()
    ]
    names = ("lists, %", "repetition, %", "tokens")
    sizes = ("n = 1", f"n = {result['samples']}")
    head = ["chosen by", *(f"{name}, {size}" for name in names for size in sizes)]
    return ReportSection("Habits of the chosen answers", _HABITS, [Table(head, rows)])


def _origins(result: Result) -> ReportSection:
    data, left_out = result["data"], result["left_out"]
    rows: list[list[str | Figure]] = [
        ["policy", f"{result['policy']}, temperature {result['temperature']:g}"],
        ["prompts", f"{data['path']}, split {data['split']}"],
        ["true reward", result["true_reward"]],
        *([name, proxy["path"]] for name, proxy in result["proxies"].items()),
    ]
    tables = [Table(["what", "location"], rows, names=2, prose=True)]
    about = "Every prompt could be used."
    if left_out:
        reasons: list[list[str | Figure]] = [
            [reason, f"{count:,}"]
            for reason, count in sorted(left_out.items(), key=lambda item: -item[1])
        ]
        tables.append(Table(["reason", "prompts"], reasons, "Left out", prose=True))
        about = f"{sum(left_out.values()):,} prompts could not be used; see quarantine.jsonl."
    return ReportSection("Models and data", about, tables)
