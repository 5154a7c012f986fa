"""Which curves a run's page has, and the section on where its time went."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from grm_ray.reporting.numbers import duration, pretty
from grm_ray.reporting.plots import Series, line_chart, stacked_bars, thinned
from grm_ray.reporting.run import Run

# A phase keeps its colour in every report, whichever other phases there are.
_PHASE_COLORS = {"generate": 0, "score": 4, "learn": 2, "sync": 1, "evaluate": 3, "other": 6}
_MARKS = {
    "line": '<path class="c{0} line" d="M1 6H21"/><circle class="c{0} dot" cx="11" cy="6" r="3"/>',
    "points": '<path class="c{0} line dashed" d="M1 6H21"/>'
    '<path class="c{0} diamond" d="M11 0.5l5.5 5.5l-5.5 5.5l-5.5-5.5z"/>',
}
_PPO_ABOUT = (
    "The policy is trained on the first; the second only watches, and training never sees it. "
    "Where the first still rises while the second falls, the policy exploits errors of the reward "
    "model."
)
_RM_ABOUT = "Held-out results carry 95 % intervals; the dotted line is the accuracy of guessing."


@dataclass(frozen=True)
class Chart:
    """A drawn chart with its title and the series its legend names."""

    title: str
    svg: str
    series: list[Series]

    def html(self) -> str:
        items = "".join(
            f'<li><svg viewBox="0 0 22 12" aria-hidden="true">{_MARKS[s.marks].format(s.color)}'
            f"</svg>{escape(s.label)}</li>"
            for s in self.series
        )
        legend = f'<ul class="legend">{items}</ul>' if items else ""
        caption = f"<figcaption><h3>{escape(self.title)}</h3>{legend}</figcaption>"
        return f"<figure>{caption}{self.svg}</figure>"


def charts(run: Run) -> tuple[str, list[Chart]]:
    """What to say about the main curves, and the curves."""
    return (_RM_ABOUT, _rm(run)) if run.job == "rm" else (_PPO_ABOUT, _ppo(run))


def more_charts(run: Run) -> list[Chart]:
    """The curves of the machinery: for who looks into a run that went wrong."""
    wanted = [
        ("loss/policy", "Policy loss", "loss", 0),
        ("loss/value", "Value loss", "loss", 0),
        ("policy/entropy", "Entropy of the policy", "nats per token", 2),
        ("policy/clip_fraction", "Share of clipped tokens", "share of tokens", 2),
        ("policy/approx_kl", "KL to the policy that answered", "nats per token", 2),
        ("engine_gap", "Difference between engine and learner", "mean |log-prob gap|, nats", 1),
        ("reward_std", "Spread of the reward", "standard deviation", 0),
        ("grad_norm", "Gradient norm", "norm", 3),
        ("lr", "Learning rate", "per step", 3),
        ("tokens_per_second", "Speed", "tokens per second", 3),
    ]
    found = [
        _chart(run, title, unit, [(key, "training", color)]) for key, title, unit, color in wanted
    ]
    return [chart for chart in found if chart is not None]


def _ppo(run: Run) -> list[Chart]:
    found = [
        _chart(
            run,
            "Reward: the reward model's score",
            "score",
            [
                ("reward", "training", 0),
                ("eval/reward", "held-out", 0),
                ("eval/greedy_reward", "held-out, greedy", 2),
            ],
        ),
        _chart(
            run,
            "True reward: the judge's score",
            "score",
            [
                ("true_reward", "training", 1),
                ("eval/true_reward", "held-out", 1),
                ("eval/greedy_true_reward", "held-out, greedy", 2),
            ],
        ),
        _chart(
            run,
            "KL to the reference",
            "nats per answer",
            [("objective/kl", "training", 2), ("eval/kl", "held-out", 2)],
            zero=True,
        ),
        _chart(
            run,
            "Length of answers",
            "tokens",
            [("response_length", "training", 3), ("eval/length", "held-out", 3)],
            zero=True,
        ),
        # What a guard watches where there is no true reward.
        _chart(
            run,
            "Canaries answered right",
            "share of canaries",
            [("eval/canary", "most likely answer", 4)],
            zero=True,
        ),
        _chart(
            run,
            "Disagreement of the members",
            "standard deviation",
            [("reward/disagreement", "training", 6), ("eval/disagreement", "held-out", 6)],
            zero=True,
        ),
    ]
    return [chart for chart in found if chart is not None]


def _rm(run: Run) -> list[Chart]:
    found = [
        _chart(
            run,
            "Accuracy: the better answer scores higher",
            "share of pairs",
            [("accuracy", "training", 0), ("eval/accuracy", "held-out", 1)],
            guide=0.5,
        ),
        _chart(
            run,
            "Preference loss",
            "nats per pair",
            [("loss/preference", "training", 0), ("eval/loss", "held-out", 1)],
        ),
        _chart(
            run,
            "Parts of the loss",
            "nats",
            [
                ("loss", "what is minimised", 1),
                ("loss/preference", "preference", 0),
                ("loss/regularizer", "regulariser", 2),
            ],
        ),
        _chart(run, "Margin between the answers", "score", [("margin", "training", 3)]),
    ]
    return [chart for chart in found if chart is not None]


def _chart(
    run: Run,
    title: str,
    unit: str,
    wanted: list[tuple[str, str, int]],
    zero: bool = False,
    guide: float | None = None,
) -> Chart | None:
    x = [float(row["step"]) for row in run.steps]
    series = [
        thinned(
            Series(
                label,
                x,
                run.column(key),
                color,
                "points" if key.startswith("eval/") else "line",
                run.column(f"{key}_low") if run.has(f"{key}_low") else [],
                run.column(f"{key}_high") if run.has(f"{key}_high") else [],
            )
        )
        for key, label, color in wanted
        if run.has(key)
    ]
    if not series:
        return None
    return Chart(title, line_chart(title, series, unit, zero, guide), series)


def phases(keys: Iterable[str]) -> tuple[list[str], list[int]]:
    """Names of the phases of `keys` in the order in which they are drawn, and their colours."""
    known = list(_PHASE_COLORS)
    names = [key.removeprefix("phase/") for key in keys]
    names.sort(key=lambda name: known.index(name) if name in known else -1)
    spare = (color for color in (5, 1, 4, 0) if color not in _PHASE_COLORS.values())
    return names, [_PHASE_COLORS[n] if n in _PHASE_COLORS else next(spare, 5) for n in names]


def time_section(run: Run) -> str:
    """Seconds by phase: a bar a step, and the totals."""
    names, colors = phases(run.keys("phase/"))
    if not names:
        return ""
    keys = [f"phase/{name}" for name in names]
    columns = [[v or 0.0 for v in run.column(key)] for key in keys]
    rows = [list(row) for row in zip(*columns, strict=True)]
    steps = [float(row["step"]) for row in run.steps]
    svg = stacked_bars("Seconds by phase", names, steps, rows, colors)
    totals = [sum(column) for column in columns]
    total = sum(totals) or 1.0
    timed = sum(any(row) for row in rows) or 1  # the evaluation before the first step is not
    body = "".join(
        f'<tr class="c{color}"><td><i class="key"></i>{name}</td><td>{duration(seconds)}</td>'
        f'<td class="spare">{pretty(seconds / timed)} s</td>'
        f"<td>{100 * seconds / total:.0f}\u00a0%</td>"
        f'<td class="share"><i style="width:{100 * seconds / max(totals):.1f}%"></i></td></tr>'
        for name, color, seconds in zip(names, colors, totals, strict=True)
    )
    return (
        '<h2>Where the time went</h2><p class="about">Wall-clock time of each step, by the phase '
        "that the run was waiting for.</p>"
        f'<div class="charts"><figure><figcaption><h3>Seconds by phase</h3></figcaption>{svg}'
        "</figure><figure><table><thead><tr><th>phase</th><th>total</th>"
        f'<th class="spare">per step</th><th>share</th><th></th></tr></thead>'
        f"<tbody>{body}</tbody></table></figure></div>"
    )
