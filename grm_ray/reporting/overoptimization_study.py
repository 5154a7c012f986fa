"""The page of an over-optimisation study: what searching each proxy did to the true reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grm_ray import __version__
from grm_ray.reporting.curves import Chart
from grm_ray.reporting.document import document, put
from grm_ray.reporting.evaluation_figures import ReportSection, interval
from grm_ray.reporting.evaluation_plots import keys
from grm_ray.reporting.run_plots import PlotCurve, run_chart
from grm_ray.reporting.samples import clean
from grm_ray.reporting.tables import NOTHING, Figure, Table, TableCell, fixed

RESULT = "overoptimization.json"
_ABOUT = (
    "A policy that is optimised against a proxy gets better by that proxy; the question is what "
    "happens to the true reward. Each reward model was trained with the same budget on the same "
    "pairs, labelled by the true reward, with a share of the labels flipped{flips}; an ensemble "
    "has the budget of all its members. Intervals are 95 %, over prompts and over seeds where "
    "there are several; with two seeds they are wide. The interval of a share kept is "
    "bootstrapped over prompts and seeds, which is too narrow with two or three seeds: it "
    "describes these runs, not others."
)
_FLIPS = {
    True: " (the same for all)",
    False: " (different ones for each seed, so that an ensemble averages them out)",
}
_KEPT = (
    "Kept: the share of the highest gain in true reward that is left at the end ({end}): 100 % "
    "means no over-optimisation. The peak is found on one half of the prompts and measured on the "
    "other, so that the share can exceed 100 %. Minus baseline: the true reward at the end minus "
    "that of {baseline}."
)
_ACCURACY = "Accuracy: mean of the single reward models, on pairs without flipped labels."
_D = "d = √KL to the policy at the start"
Result = dict[str, Any]


def write_overoptimization(result: Result, folder: Path) -> Path:
    """Write `report.html` to `folder`; the page's path.

    Args:
        result: what `drivers.overoptimization.figures.figures` returns.
    """
    path = Path(folder) / "report.html"
    put(path, html(result))
    return path


def html(result: Result) -> str:
    """The page as text."""
    names = list(result["proxies"])
    seeds, proxies = len(result["seeds"]), len(names)
    parts = [
        f'<p class="eyebrow">Over-optimisation</p><h1>{clean(result["name"])}</h1>',
        f'<p class="soft">{proxies} proxies of {clean(result["true_reward"])} · '
        f"{seeds} seed{'s'[: seeds != 1]}</p>",
        f'<p class="about">{_ABOUT.format(flips=_FLIPS[result["flip_seed"] is not None])}</p>',
    ]
    for noise, found in result["noise"].items():
        share = fixed(result["flips"][noise], 0, 100)
        parts.append(f"<h2>{clean(noise)}: {share} % of the labels flipped</h2>")
        parts.append(_noise(result, noise, found, names))
    parts.append(_origins(result).html())
    parts.append(
        f"<footer>Made by grm_ray {__version__} from {RESULT}. Point at a mark to see its "
        "values.</footer>"
    )
    return document(f"{result['name']} · grm_ray", parts)


def _noise(result: Result, noise: str, found: Result, names: list[str]) -> str:
    """One noise level: what is finished of it."""
    tables = [t for t in (choice_table(result, noise), policy_table(result, noise)) if t]
    if not tables:
        return '<p class="about">No proxy has been optimised against yet.</p>'
    shown = [*_choice_charts(found["best_of_n"], names), *_policy_charts(found["ppo"], names)]
    charts = "".join(chart.html() for chart in shown)
    return (
        f'<p class="verdict">{clean(verdict(result, noise))}</p>'
        f'<div class="keys">{keys(names)}</div><div class="charts">{charts}</div>'
        f'<div class="runs">{"".join(table.html() for table in tables)}</div>'
    )


def verdict(result: Result, noise: str) -> str:
    """Whose true reward is highest at the end, beside the baseline's."""
    chosen, policies = _proxies(result, noise)
    said = []
    for what, proxies in ((f"Best of {_most(result, noise)}", chosen), ("PPO", policies)):
        ends = {n: p["true"][-1]["mean"] for n, p in proxies.items() if p["true"] is not None}
        if not ends:
            continue
        best, base = max(ends, key=ends.__getitem__), result["baseline"]
        told = f"{what}: {best} ends highest in true reward, at {fixed(ends[best], 3)}"
        if best != base and base in ends:
            versus = interval(proxies[best]["versus"], 3)
            bounds = f", interval {versus.more}" if versus.more else ""
            told += f"; {base} at {fixed(ends[base], 3)} (difference {versus.text}{bounds})"
        said.append(f"{told}.")
    return " ".join(said)


def choice_table(result: Result, noise: str) -> Table | None:
    """One row a proxy that best-of-n has searched."""
    chosen, _ = _proxies(result, noise)
    if not chosen:
        return None
    most, oracle = _most(result, noise), result["noise"][noise]["best_of_n"]["oracle"]
    rows: list[list[TableCell]] = [
        [
            name,
            _accuracy(result, noise, name),
            interval(proxy["true"][0], 3),
            *_of_one(proxy, str(proxy["peak"])),
            str(proxy["seeds"]),
        ]
        for name, proxy in chosen.items()
    ]
    ends = [fixed(oracle[i], 3) for i in (0, -1)]
    rows.append(["the true reward itself", NOTHING, *ends, *[NOTHING] * 4])
    head = ["proxy", "accuracy, %", "one answer", f"best of {most}", "peak at n", "kept, %"]
    head += ["minus baseline", "seeds"]
    about = _KEPT.format(end=f"best of {most}", baseline=result["baseline"])
    note = f"{about} {_ACCURACY} {_notes(chosen)}"
    title = f"Best of {most}: true reward of the chosen answer"
    return Table(head, rows, title, foot=1, note=note.strip())


def policy_table(result: Result, noise: str) -> Table | None:
    """One row a proxy that PPO has searched."""
    _, policies = _proxies(result, noise)
    if not policies:
        return None
    rows: list[list[TableCell]] = []
    for name, proxy in policies.items():
        start = NOTHING if proxy["true"] is None else interval(proxy["true"][0], 3)
        place = NOTHING if proxy["true"] is None else f"step {proxy['steps'][proxy['peak']]}"
        far = fixed(proxy["d"][-1], 2)
        rows.append([name, start, *_of_one(proxy, place), far, str(len(proxy["seeds"]))])
    head = [
        "proxy",
        "start",
        "end",
        "peak at",
        "kept, %",
        "minus baseline",
        "d at the end",
        "seeds",
    ]
    note = _KEPT.format(end="the last evaluation", baseline=result["baseline"])
    return Table(
        head,
        rows,
        "PPO: true reward on held-out prompts",
        note=f"{note} {_notes(policies)}".strip(),
    )


def _proxies(result: Result, noise: str) -> tuple[Result, Result]:
    """Figures of the proxies that best-of-n and PPO have searched."""
    found = result["noise"][noise]
    return (found["best_of_n"] or {}).get("proxies", {}), found["ppo"] or {}


def _most(result: Result, noise: str) -> int:
    found = result["noise"][noise]["best_of_n"]
    return found["sizes"][-1] if found else 0


def _accuracy(result: Result, noise: str, name: str) -> str:
    proxy = result["proxies"][name]
    found = result["models"][noise].get(proxy.get("model") or proxy.get("ensemble_of"))
    return NOTHING if found is None else fixed(found["mean"], 1, 100)


def _of_one(found: Result, place: str) -> list[TableCell]:
    """True reward at the end, the place of the peak, the share kept, less the baseline's."""
    if found["true"] is None:
        return [NOTHING] * 4
    return [
        interval(found["true"][-1], 3),
        place,
        interval(found["kept"], 0, 100),
        NOTHING if found["versus"] is None else _signed(found["versus"]),
    ]


def _signed(found: Result) -> Figure:
    shown = interval(found, 3)
    return Figure(fixed(found["mean"], 3, plus=True), shown.more)


def _notes(proxies: Result) -> str:
    """Why a share has no interval."""
    of: dict[str, list[str]] = {}
    for name, proxy in proxies.items():
        if proxy["kept"] and proxy["kept"]["note"]:
            of.setdefault(proxy["kept"]["note"], []).append(name)
    return " ".join(f"{', '.join(names)}: {note}." for note, names in of.items())


def _choice_charts(found: Result | None, names: list[str]) -> list[Chart]:
    if found is None:
        return []
    d = [kl**0.5 for kl in found["kl"]]
    said = [f"best of {n}" for n in found["sizes"]]
    true = [
        _curve(name, names.index(name), d, proxy["true"], said)
        for name, proxy in found["proxies"].items()
    ]
    title = "Best of n: true reward of the chosen answer"
    return [Chart(title, run_chart(title, true, "true reward", _D), [])]


def _policy_charts(found: Result | None, names: list[str]) -> list[Chart]:
    if not found:
        return []
    true, over, own, far = [], [], [], []
    for name, proxy in found.items():
        place, steps = names.index(name), proxy["steps"]
        said = [f"step {step}" for step in steps]
        if proxy["true"] is not None:
            true.append(_curve(name, place, steps, proxy["true"], said))
            if None not in proxy["d"]:
                over.append(_curve(name, place, proxy["d"], proxy["true"], said))
        first = proxy["reward"][0]
        own.append(_plain(name, place, steps, [_above(r, first) for r in proxy["reward"]]))
        far.append(_plain(name, place, steps, proxy["d"]))
    drawn = (
        ("PPO: true reward on held-out prompts", true, "true reward", "step"),
        ("PPO: true reward over distance", over, "true reward", _D),
        ("PPO: proxy’s score minus that at the start", own, "proxy’s score", "step"),
        ("PPO: distance from the start", far, "d = √KL", "step"),
    )
    return [
        Chart(title, run_chart(title, curves, unit, across, whole=across == "step"), [])
        for title, curves, unit, across in drawn
        if curves
    ]


def _above(value: float | None, first: float | None) -> float | None:
    return None if value is None or first is None else value - first


def _curve(
    name: str, place: int, x: list[float], found: list[Result], said: list[str]
) -> PlotCurve:
    y, low, high = ([at[key] for at in found] for key in ("mean", "low", "high"))
    return PlotCurve(name, place, x, y, low, high, said)


def _plain(name: str, place: int, x: list[float], y: list[float | None]) -> PlotCurve:
    known = [(at, value) for at, value in zip(x, y, strict=True) if value is not None]
    return PlotCurve(name, place, [at for at, _ in known], [value for _, value in known])


def _origins(result: Result) -> ReportSection:
    rows: list[list[TableCell]] = [
        [name, ", ".join(f"{key} {value}" for key, value in proxy.items())]
        for name, proxy in result["proxies"].items()
    ]
    rows.append(["seeds", ", ".join(str(seed) for seed in result["seeds"])])
    table = Table(["proxy", "made of"], rows, names=2, prose=True)
    return ReportSection("What was compared", "From config.yaml in this folder.", [table])
