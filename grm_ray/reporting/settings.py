"""The settings in which runs differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from grm_ray.reporting.tables import NOTHING, Table, TableCell, shortened

# What names a run or says where it lies differs always, and explains nothing.
_SKIPPED = frozenset({"name", "job", "runs"})
_MOST = 60


def flattened(config: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Each setting under its dotted key, as text; parts of a list of sections by their number."""
    found: dict[str, str] = {}
    for key, value in config.items():
        name = f"{above}{key}"
        if isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping) and value:
            found |= flattened(value, f"{name}.")
        else:
            found[name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return found


def differing(labels: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> Table | None:
    """A row a setting that not all runs have alike, a column a run; None where there is none."""
    flat = [flattened(config) for config in configs]
    keys = dict.fromkeys(key for one in flat for key in one if key not in _SKIPPED)
    rows: list[list[TableCell]] = []
    for key in keys:
        values = [one.get(key, NOTHING) for one in flat]
        if len(set(values)) > 1:
            rows.append([key, *(shortened(value, _MOST) for value in values)])
    return Table(["setting", *labels], rows) if rows else None
