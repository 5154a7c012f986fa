"""Rules of a reward, from their names in a config to numbers of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grm_ray.config import registry

# What a registered rule is called with; the rest of its parameters are the config's.
GIVEN = frozenset({"texts", "prompts"})

# (prompts, answers) -> one number each
Rule = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


def resolve(rules: Sequence[dict[str, Any]]) -> list[Rule]:
    """A function for each of `rules`, which are a `name` and parameters.

    Raises:
        ConfigError: an unknown name or parameter.
    """
    return [_rule(**rule) for rule in rules]


def values(rules: Sequence[Rule], prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """`(B, R)` fp32: what each rule says of each answer.

    Raises:
        ValueError: a rule gives no number to an answer.
    """
    found = np.array([rule(prompts, answers) for rule in rules], np.float32)
    found = found.reshape(len(rules), len(answers))
    for number, row in enumerate(found):
        if not np.isfinite(row).all():
            raise ValueError(f"the reward's rule number {number + 1} gives what is no number")
    return found.T


def _rule(name: str, **parameters: Any) -> Rule:
    function = registry.resolve("rule", name)
    if ":" in name:  # one's own: (prompt, answer) -> number
        registry.check_parameters(f"rule {name}", _alone, parameters, ())
        return lambda prompts, answers: [
            float(function(p, a)) for p, a in zip(prompts, answers, strict=True)
        ]
    registry.check_parameters(f"rule {name}", function, parameters, GIVEN)
    if "prompts" in registry.wants(function):
        return lambda prompts, answers: function(texts=answers, prompts=prompts, **parameters)
    return lambda prompts, answers: function(texts=answers, **parameters).tolist()


def _alone() -> None:
    """One's own functions have no parameters but prompt and answer."""
