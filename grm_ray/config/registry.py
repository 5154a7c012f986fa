"""Names that a config may use, and the function behind each: adding one is one line here.

A name of the form `package.module:function` is taken as the user's own function.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from grm_ray.config.errors import ConfigError

REGISTRY: dict[str, dict[str, str]] = {
    # Called with the keywords that `wants` finds. Any of chosen_B, rejected_B, margin_B,
    # smoothing_B -> loss_B; of graded attributes: predicted_BA, labels_BA -> squared_B, counted_B
    "preference loss": {
        "bradley_terry": "grm_ray.objectives.preference:bradley_terry",
        "margin": "grm_ray.objectives.preference:margin",
        "scaled": "grm_ray.objectives.preference:scaled",
        "regression": "grm_ray.objectives.preference:regression",
    },
    # Likewise: any of chosen_logp_B, rejected_logp_B, chosen_ref_logp_B, rejected_ref_logp_B,
    # chosen_tokens_B, rejected_tokens_B, beta -> loss_B
    "regularizer": {
        "sft": "grm_ray.objectives.regularizers:sft",
        "nll": "grm_ray.objectives.regularizers:nll",
        "dpo": "grm_ray.objectives.regularizers:dpo",
        "dpo_noref": "grm_ray.objectives.regularizers:dpo_noref",
        "sft_per_token": "grm_ray.objectives.regularizers:sft_per_token",
        "nll_per_token": "grm_ray.objectives.regularizers:nll_per_token",
        "dpo_per_token": "grm_ray.objectives.regularizers:dpo_per_token",
        "dpo_noref_per_token": "grm_ray.objectives.regularizers:dpo_noref_per_token",
    },
    # (prompt text, response text) -> float
    "true reward": {
        "demo_judge": "grm_ray.rewards.judge:judge",
    },
    # scores_KB and parameters -> rewards_B
    "aggregate": {
        "mean": "grm_ray.rewards.aggregate:mean",
        "median": "grm_ray.rewards.aggregate:median",
        "wco": "grm_ray.rewards.aggregate:minimum",
        "uwo": "grm_ray.rewards.aggregate:mean_minus_variance",
        "mean_minus_std": "grm_ray.rewards.aggregate:mean_minus_std",
        "entropic": "grm_ray.rewards.aggregate:entropic",
        "cvar": "grm_ray.rewards.aggregate:cvar",
    },
    # rewards_B, any of finished_B, lengths_B, longest, references_BM, rule_B, and parameters ->
    # rewards_B; a class is made with the parameters, and called with the rest
    "reward stage": {
        "normalize": "grm_ray.rewards.stages:Normalize",
        "range": "grm_ray.rewards.stages:Range",
        "clip_to_spread": "grm_ray.rewards.stages:ClipToSpread",
        "clip": "grm_ray.rewards.shape:clip",
        "tanh": "grm_ray.rewards.shape:tanh",
        "missing_eos": "grm_ray.rewards.shape:missing_eos_penalty",
        "overlong": "grm_ray.rewards.shape:overlong_penalty",
        "length": "grm_ray.rewards.rules:length_penalty",
        "centred": "grm_ray.rewards.reference:centred",
        "centred_tanh": "grm_ray.rewards.reference:centred_tanh",
        "par": "grm_ray.rewards.reference:par",
        "lsc": "grm_ray.rewards.reference:lsc",
        "rule": "grm_ray.rewards.stages:rule",
        "factor": "grm_ray.rewards.stages:factor",
    },
    # texts (and prompts) and parameters -> values_B; one's own: (prompt, answer) -> float
    "rule": {
        "repetition": "grm_ray.rewards.rules:repetition",
        "matches": "grm_ray.rewards.rules:matches",
        "http": "grm_ray.runtime.http_rule:http",
    },
}

_BY_KEYWORD = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
# Parameters that are the rows' to give and no config's, beside a function's first one.
GIVEN = {
    "aggregate": frozenset[str](),
    "reward stage": frozenset({"finished_B", "lengths_B", "longest", "references_BM", "rule_B"}),
    "rule": frozenset({"texts", "prompts"}),
}


def check(kind: str, name: str, key: str = "") -> None:
    """Refuse an unknown name without importing anything of ours.

    Args:
        key: the config's, for the message.

    Raises:
        ConfigError: with the nearest known name.
    """
    known = REGISTRY[kind]
    if name in known or _is_own(name):
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(known))}"
    where = f"key '{key}': " if key else ""
    own = "(or your own 'package.module:function')"
    raise ConfigError(f"{where}unknown {kind} '{name}'; {hint} {own}")


def resolve(kind: str, name: str, key: str = "") -> Callable[..., Any]:
    """The function behind `name`, which stands at the config's `key`.

    Raises:
        ConfigError: when the name is unknown or its module or function cannot be imported.
    """
    check(kind, name, key)
    module, _, function = REGISTRY[kind].get(name, name).partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(
            f"{kind} '{name}': cannot import {module}:{function} ({type(error).__name__}: {error})"
        ) from None
    if not callable(found):
        raise ConfigError(f"{kind} '{name}': {module}:{function} is not a function")
    return found


def parameters(kind: str, function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Those of an aggregate, a stage or a rule that a config may give."""
    found = inspect.signature(function).parameters
    first = () if inspect.isclass(function) else list(found)[:1]
    others = {*GIVEN[kind], *first}
    return {name: p for name, p in found.items() if name not in others and p.kind in _BY_KEYWORD}


def check_parameters(
    where: str, kind: str, function: Callable[..., Any], given: Mapping[str, Any]
) -> None:
    """Refuse parameters that `function` does not have, the lack of those that it needs, and true
    or false where it takes a number.

    Args:
        where: the config's key, for the message.

    Raises:
        ConfigError: with what the function takes.
    """
    known = parameters(kind, function)
    takes = sorted(known)
    for name, value in given.items():
        if name not in takes:
            near = difflib.get_close_matches(name, takes, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has: {', '.join(takes) or 'none'}"
            raise ConfigError(f"{where}: no parameter '{name}'; {hint}")
        if isinstance(value, bool) and _is_number(known[name]):
            raise ConfigError(f"{where}: {name}: expected a number, got true/false")
    needed = [name for name in takes if known[name].default is inspect.Parameter.empty]
    lacking = [name for name in needed if name not in given]
    if lacking:
        raise ConfigError(f"{where}: needs {', '.join(lacking)}")


def is_path(name: str) -> bool:
    """Whether `name` is a folder or hub id, which no registered name and no function's can be."""
    return "/" in name


def wants(function: Callable[..., Any], optional: bool = True) -> frozenset[str]:
    """Names of the parameters that `function` takes by keyword; `optional`: those too."""
    return frozenset(
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind in _BY_KEYWORD and (optional or p.default is inspect.Parameter.empty)
    )


def _is_own(name: str) -> bool:
    module, sign, function = name.partition(":")
    return bool(sign) and function.isidentifier() and module.replace(".", "_").isidentifier()


def _is_number(parameter: inspect.Parameter) -> bool:
    """Whether it is a number by its annotation, which may be written as text."""
    words = set(re.findall(r"\w+", inspect.formatannotation(parameter.annotation)))
    return bool(words & {"int", "float"}) and "bool" not in words
