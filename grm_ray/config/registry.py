"""Names that a config may use, and the function behind each: adding one is one line here.

A name of the form `package.module:function` is taken as the user's own function.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import Any

from grm_ray.config.load import ConfigError

REGISTRY: dict[str, dict[str, str]] = {
    # (chosen_B, rejected_B) -> loss_B
    "preference loss": {
        "bradley_terry": "grm_ray.objectives.preference:bradley_terry",
    },
    # (chosen_logp_B, beta) -> loss_B
    "regularizer": {
        "sft": "grm_ray.objectives.regularizers:sft",
    },
    # (prompt text, response text) -> float
    "true reward": {
        "demo_judge": "grm_ray.rewards.judge:judge",
    },
}


def check(kind: str, name: str) -> None:
    """Refuse an unknown name without importing anything of ours.

    Raises:
        ConfigError: with the nearest known name.
    """
    known = REGISTRY[kind]
    if name in known or _is_own(name):
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(known))}"
    raise ConfigError(f"unknown {kind} '{name}'; {hint} (or your own 'package.module:function')")


def resolve(kind: str, name: str) -> Callable[..., Any]:
    """The function behind `name`.

    Raises:
        ConfigError: when the name is unknown or its module or function cannot be imported.
    """
    check(kind, name)
    module, _, function = REGISTRY[kind].get(name, name).partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{kind} '{name}': cannot import {module}:{function} ({error})") from None


def _is_own(name: str) -> bool:
    module, sign, function = name.partition(":")
    return bool(sign) and function.isidentifier() and module.replace(".", "_").isidentifier()
