"""What a driver itself learns on the way, as one: kept in checkpoints, and given back from them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol


class Stateful(Protocol):
    """What can be kept in a checkpoint and given back from it."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class States:
    """Several things with a state, by name. Copied: what goes on does not change what was given."""

    def __init__(self, parts: Mapping[str, Stateful]) -> None:
        self._parts = dict(parts)

    def state_dict(self) -> dict[str, Any]:
        return copy.deepcopy({name: part.state_dict() for name, part in self._parts.items()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(copy.deepcopy(state[name]))
