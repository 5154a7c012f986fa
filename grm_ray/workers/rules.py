"""Rules of a reward, from their names in a config to numbers of answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grm_ray.config import registry

# (prompts, answers) -> one number each
Rule = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


def resolve(rules: Sequence[dict[str, Any]]) -> list[Rule]:
    """A function for each of `rules`, which are a `name` and parameters.

    Raises:
        ConfigError: an unknown name or parameter.
    """
    return [_rule(**rule) for rule in rules]


def values(rules: Sequence[Rule], prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """`(B, R)` fp32: what each rule says of each answer; NaN where it gives no number."""
    found = np.array([rule(prompts, answers) for rule in rules], np.float32)
    return found.reshape(len(rules), len(answers)).T


def each(
    function: Callable[[str, str], float], prompts: Sequence[str], answers: Sequence[str]
) -> tuple[list[float], list[str | None]]:
    """What somebody's own function says of each answer, and why it says nothing of some: NaN there.

    One odd answer, which a parser fails on, must not end a run.
    """
    found: list[float] = []
    reasons: list[str | None] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        value, reason = float("nan"), None
        try:
            value = float(function(prompt, answer))
            if not math.isfinite(value):
                value, reason = float("nan"), f"it returned {value}"
        except Exception as error:  # noqa: BLE001 - it is not our function
            reason = f"{type(error).__name__}: {error}"
        found.append(value)
        reasons.append(reason)
    return found, reasons


def _rule(name: str, **parameters: Any) -> Rule:
    function = registry.resolve("rule", name)
    if ":" in name:  # one's own: (prompt, answer) -> number
        registry.check_parameters(f"rule {name}", "rule", _alone, parameters)
        return lambda prompts, answers: each(function, prompts, answers)[0]
    registry.check_parameters(f"rule {name}", "rule", function, parameters)
    if "prompts" in registry.wants(function):
        return lambda prompts, answers: function(texts=answers, prompts=prompts, **parameters)
    return lambda prompts, answers: function(texts=answers, **parameters).tolist()


def _alone() -> None:
    """One's own functions have no parameters but prompt and answer."""
