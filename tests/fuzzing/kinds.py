"""The kinds of input, and how many cases of each a full run tries."""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.fuzzing.harness import Kind

CASES = {"config": 1000, "data": 6500, "http": 1500, "model": 250, "report": 800}
_MADE_BY = {
    "config": "configs:Configs",
    "data": "rows:Rows",
    "http": "bodies:Bodies",
    "model": "models:Models",
    "report": "runs:Runs",
}


def kind_of(name: str, folder: Path) -> Kind:
    """A kind with what it needs laid out in `folder`."""
    module, _, made = _MADE_BY[name].partition(":")
    kind: Kind = getattr(importlib.import_module(f"tests.fuzzing.{module}"), made)(folder)
    return kind
