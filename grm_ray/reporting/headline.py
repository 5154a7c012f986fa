"""What a run came to: one sentence and a few cards."""

from __future__ import annotations

from dataclasses import dataclass

from grm_ray.reporting.numbers import duration, pretty, signed
from grm_ray.reporting.run import Run, number
from grm_ray.reporting.samples import BeforeAfter
from grm_ray.study.intervals import Interval

# No line break between a number and its sign.
_LEVEL = "95\u00a0% interval"


@dataclass(frozen=True)
class Card:
    """A figure, what it is, and a line on how it came about; all three are HTML."""

    what: str
    value: str
    more: str


def verdict(run: Run, pairs: BeforeAfter | None) -> str:
    """The main finding, with what its numbers can and cannot show; empty where there is none."""
    return _rm_verdict(run) if run.job == "rm" else _ppo_verdict(pairs)


def cards(run: Run, pairs: BeforeAfter | None) -> list[Card]:
    """Headline figures, the most important first."""
    found = _rm_cards(run) if run.job == "rm" else _ppo_cards(run, pairs)
    speed = [v for v in run.column("tokens_per_second") if v is not None]
    seconds = spent(run)
    if speed:
        doing = "learned from" if run.job == "rm" else "generated"
        value = f"{pretty(sum(speed) / len(speed))} tokens/s"
        found.append(Card("Speed", value, f"{doing}, mean over steps"))
    if seconds:
        count = len(run.steps)
        more = f"of work in {count} recorded step" + ("" if count == 1 else "s")
        found.append(Card("Time", duration(seconds), more))
    return found


def spent(run: Run) -> float:
    """Seconds of all phases of all steps: what the run took, without the pauses between resumes."""
    return sum(v for key in run.keys("phase/") for v in run.column(key) if v is not None)


def _ppo_verdict(pairs: BeforeAfter | None) -> str:
    if pairs is None:
        return ""
    true, proxy = pairs.difference("true_reward"), pairs.difference("reward")
    if true is None:
        if proxy is None:
            return ""
        text = f"On {_prompts(proxy[2])} the reward model's score {_moved(proxy)}."
        return text + " No true reward was measured, so it is unknown whether answers improved."
    text = f"On {_prompts(true[2])} the true reward {_moved(true)}."
    if proxy is not None and proxy[2].low > 0 and not true[2].low > 0:
        text += " The reward model's score rose nevertheless: a sign of over-optimisation."
    return text


def _moved(found: tuple[float, float, Interval]) -> str:
    before, after, gain = found
    way = "changed by no more than chance would explain"
    if gain.low > 0:
        way = "rose"
    elif gain.high < 0:
        way = "fell"
    return f"{way}, from {pretty(before)} to {pretty(after)}: {_interval(gain)}"


def _rm_verdict(run: Run) -> str:
    last = _last(run, "eval/accuracy")
    if last is None:
        return ""
    row, value = last
    bounds = _bounds(row, "eval/accuracy")
    text = f"On held-out pairs it prefers the better answer in {_percent(value)} of cases"
    if bounds is None:
        return f"{text}."
    text += f" ({_LEVEL} {_percent(bounds[0])} to {_percent(bounds[1])})."
    return text if bounds[0] > 0.5 else f"{text} That is not clearly better than chance."


def _ppo_cards(run: Run, pairs: BeforeAfter | None) -> list[Card]:
    found = []
    for key, what in (("true_reward", "True reward"), ("reward", "Reward model's score")):
        change = pairs.difference(key) if pairs else None
        if change is not None:
            more = f"{_interval(change[2])}, {_prompts(change[2])}"
            found.append(Card(f"{what}, held-out", _arrow(change[0], change[1]), more))
            continue
        held_out = _first_to_last(run, f"eval/{key}", f"{what}, held-out")
        if card := held_out or _first_to_last(run, key, f"{what}, training prompts"):
            found.append(card)
    if last := _last(run, "objective/kl"):
        more = f"nats per answer, at step {last[0]['step']}"
        found.append(Card("KL to the reference", pretty(last[1]), more))
    length = pairs.difference("length") if pairs else None
    if length is not None:
        more = f"tokens; {_interval(length[2])}"
        found.append(Card("Answer length, held-out", _arrow(length[0], length[1]), more))
    elif card := _first_to_last(run, "response_length", "Answer length, training prompts"):
        found.append(card)
    return found


def _rm_cards(run: Run) -> list[Card]:
    found = []
    if last := _last(run, "eval/accuracy"):
        row, value = last
        bounds = _bounds(row, "eval/accuracy")
        more = f"after step {row['step']}"
        if bounds:
            more = f"{_LEVEL} {_percent(bounds[0])} to {_percent(bounds[1])}, {more}"
        found.append(Card("Held-out accuracy", _percent(value), more))
    if card := _first_to_last(run, "eval/loss", "Preference loss, held-out"):
        found.append(card)
    for key, what in (
        ("loss/preference", "Preference loss, training"),
        ("margin", "Score margin, training"),
    ):
        if card := _first_to_last(run, key, what):
            found.append(card)
    return found


def _first_to_last(run: Run, key: str, what: str) -> Card | None:
    known = [(row["step"], v) for row in run.steps if (v := number(row.get(key))) is not None]
    if not known:
        return None
    (first, start), (last, end) = known[0], known[-1]
    if len(known) == 1:
        return Card(what, pretty(end), f"at step {last}")
    count = len(known) // 10
    if count > 1 and not key.startswith("eval/"):
        # One training batch is noise: a tenth of the run at either end is not.
        start, end = (sum(v for _, v in part) / count for part in (known[:count], known[-count:]))
        return Card(what, _arrow(start, end), f"means of the first and the last {count} steps")
    return Card(what, _arrow(start, end), f"step {first} to step {last}")


def _last(run: Run, key: str) -> tuple[dict, float] | None:
    for row in reversed(run.steps):
        if (value := number(row.get(key))) is not None:
            return row, value
    return None


def _bounds(row: dict, key: str) -> tuple[float, float] | None:
    low, high = number(row.get(f"{key}_low")), number(row.get(f"{key}_high"))
    return None if low is None or high is None else (low, high)


def _interval(gain: Interval) -> str:
    if gain.clusters < 2:
        return signed(gain.mean)
    return f"{signed(gain.mean)} ({_LEVEL} {signed(gain.low)} to {signed(gain.high)})"


def _arrow(before: float, after: float) -> str:
    return f'<span class="from">{pretty(before)} →</span> {pretty(after)}'


def _prompts(gain: Interval) -> str:
    return f"{gain.clusters} held-out prompt" + ("" if gain.clusters == 1 else "s")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"
