"""The page of an over-optimisation study: what searching each proxy did to the true reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grm_ray import __version__
from grm_ray.reporting.curves import Chart
from grm_ray.reporting.document import document, put
from grm_ray.reporting.evaluation_figures import Section, interval
from grm_ray.reporting.evaluation_plots import keys
from grm_ray.reporting.run_plots import Curve, run_chart
from grm_ray.reporting.samples import clean
from grm_ray.reporting.tables import NOTHING, Cell, Figure, Table, fixed

RESULT = "overoptimization.json"
_ABOUT = (
    "A policy that is led by a proxy does better by the proxy; the question is what becomes of the "
    "true reward. Each reward model was trained at the same budget on the same pairs, labelled by "
    "the true reward, with a share of the labels turned round{flips}; an ensemble has the budget "
    "of all its members. Intervals are 95 %, over prompts and over seeds where there are several; "
    "of two seeds they are wide. The interval of a share kept is drawn over prompts and seeds, "
    "which with two or three seeds is too short: it says what these runs show, not what others "
    "would."
)
_FLIPS = {
    True: " (the same for all)",
    False: " (others for each seed, so that an ensemble averages them out)",
}
_KEPT = (
    "Kept: the share of the highest gain in true reward that is left at the end (best of {n}; the "
    "last evaluation of PPO): 100 % is no over-optimisation. One half of the prompts finds the "
    "peak, the other measures it, so that more than all may be kept. Less the baseline: true "
    "reward at the end, less that of {baseline}. Accuracy: of the reward models, on clean pairs."
)
_D = "d = √KL to the policy at the start"
Result = dict[str, Any]


def write_overoptimization(result: Result, folder: Path) -> Path:
    """Write `report.html` to `folder`; the page's path.

    Args:
        result: what `drivers.overoptimization_figures.figures` returns.
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
        parts.append(f"<h2>{clean(noise)}: {share} % of the labels turned round</h2>")
        parts.append(f'<div class="keys">{keys(names)}</div>')
        charts = [*_choice_charts(found["best_of_n"], names), *_policy_charts(found["ppo"], names)]
        parts.append(f'<div class="charts">{"".join(chart.html() for chart in charts)}</div>')
        parts.append(f'<div class="runs">{summary(result, noise).html()}</div>')
    parts.append(_origins(result).html())
    parts.append(
        f"<footer>Made by grm_ray {__version__} from {RESULT}. Point at a mark to read its "
        "values.</footer>"
    )
    return document(f"{result['name']} · grm_ray", parts)


def summary(result: Result, noise: str) -> Table:
    """One row a proxy: what it is worth at the end, and how much of its peak is left."""
    found = result["noise"][noise]
    chosen, policies = found["best_of_n"] or {}, found["ppo"] or {}
    most = chosen["sizes"][-1] if chosen else "n"
    rows: list[list[Cell]] = []
    for name, proxy in result["proxies"].items():
        model = proxy.get("model") or proxy.get("ensemble_of")
        accuracy = result["models"][noise].get(model)
        one, other = chosen.get("proxies", {}).get(name), policies.get(name)
        rows.append(
            [
                name,
                NOTHING if accuracy is None else fixed(accuracy["mean"], 1, 100),
                *_of_one(one, lambda p: str(p["peak"])),
                *_of_one(other, lambda p: f"step {p['steps'][p['peak']]}"),
            ]
        )
    head = [
        "proxy",
        "accuracy, %",
        f"best of {most}",
        "peak at n",
        "kept, %",
        "less baseline",
        "PPO, end",
        "peak at",
        "kept, %",
        "less baseline",
    ]
    about = _KEPT.format(n=most, baseline=result["baseline"])
    notes = _notes(found)
    return Table(head, rows, "True reward of each proxy", note=f"{about} {notes}".strip())


def _of_one(found: Result | None, place: Any) -> list[Cell]:
    """True reward at the end, the place of the peak, the share kept, less the baseline's."""
    if found is None or found["true"] is None:
        return [NOTHING] * 4
    return [
        interval(found["true"][-1], 3),
        place(found),
        interval(found["kept"], 0, 100),
        NOTHING if found["versus"] is None else _signed(found["versus"]),
    ]


def _signed(found: Result) -> Figure:
    shown = interval(found, 3)
    return Figure(fixed(found["mean"], 3, plus=True), shown.more)


def _notes(found: Result) -> str:
    """Why a share has no interval."""
    of: dict[str, list[str]] = {}
    for part, proxies in (
        ("best-of-n", (found["best_of_n"] or {}).get("proxies", {})),
        ("PPO", found["ppo"] or {}),
    ):
        for name, proxy in proxies.items():
            if proxy["kept"] and proxy["kept"]["note"]:
                of.setdefault(proxy["kept"]["note"], []).append(f"{name} ({part})")
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
    true, own, far = [], [], []
    for name, proxy in found.items():
        place, steps = names.index(name), proxy["steps"]
        said = [f"step {step}" for step in steps]
        if proxy["true"] is not None:
            true.append(_curve(name, place, steps, proxy["true"], said))
        first = proxy["reward"][0]
        own.append(_plain(name, place, steps, [_above(r, first) for r in proxy["reward"]]))
        far.append(_plain(name, place, steps, proxy["d"]))
    drawn = (
        ("PPO: true reward on held-out prompts", true, "true reward", "step"),
        ("PPO: what the proxy sees, above its start", own, "proxy’s score", "step"),
        ("PPO: distance from the start", far, _D, "step"),
    )
    return [
        Chart(title, run_chart(title, curves, unit, across, whole=True), [])
        for title, curves, unit, across in drawn
        if curves
    ]


def _above(value: float | None, first: float | None) -> float | None:
    return None if value is None or first is None else value - first


def _curve(name: str, place: int, x: list[float], found: list[Result], said: list[str]) -> Curve:
    y, low, high = ([at[key] for at in found] for key in ("mean", "low", "high"))
    return Curve(name, place, x, y, low, high, said)


def _plain(name: str, place: int, x: list[float], y: list[float | None]) -> Curve:
    known = [(at, value) for at, value in zip(x, y, strict=True) if value is not None]
    return Curve(name, place, [at for at, _ in known], [value for _, value in known])


def _origins(result: Result) -> Section:
    rows: list[list[Cell]] = [
        [name, ", ".join(f"{key} {value}" for key, value in proxy.items())]
        for name, proxy in result["proxies"].items()
    ]
    rows.append(["seeds", ", ".join(str(seed) for seed in result["seeds"])])
    table = Table(["proxy", "made of"], rows, names=2, prose=True)
    return Section("What was compared", "From config.yaml in this folder.", [table])
