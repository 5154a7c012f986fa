"""Checkpoints on disk: written beside, renamed, and only then is the oldest removed."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from grm_ray.config.errors import ConfigError, NotWritten
from grm_ray.runtime.disk import synced, writing

STATE = "state.json"


class Snapshots:
    """`checkpoints/step-00010/`: what `fill` wrote, plus `state.json`, complete or not there."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def write(self, step: int, fill: Callable[[Path], dict[str, Any]]) -> Path:
        """Let `fill(folder)` write the workers' parts; what it returns becomes `state.json`.

        Raises:
            NotWritten: nothing of it is left, and the older ones are as they were.
        """
        target = self._folder / f"step-{step:05d}"
        part = target.with_name(target.name + ".part")
        try:
            with writing(target):
                self._folder.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                state = fill(part)
                (part / STATE).write_text(json.dumps({"step": step, **state}, indent=1), "utf-8")
                # On the disk before it has its name, and before an older one goes.
                for path in [*part.rglob("*"), part]:
                    synced(path)
                if target.exists():
                    shutil.rmtree(target)
                part.rename(target)
                synced(self._folder)
        except NotWritten:
            shutil.rmtree(part, ignore_errors=True)  # its space is what others may lack
            raise
        for old in self.all()[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def attempt(
        self, step: int, fill: Callable[[Path], dict[str, Any]], say: Callable[[str], None]
    ) -> None:
        """`write`; where that fails the run goes on, for it is worth more than one checkpoint."""
        try:
            self.write(step, fill)
        except NotWritten as error:
            complete = self.all()
            last = (
                f"the last complete one is {complete[-1].name}" if complete else "there is none yet"
            )
            say(f"warning: step {step}: no checkpoint: {error}; {last}")

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = self._folder.glob("step-*") if self._folder.is_dir() else []
        whole = [p for p in found if p.name[5:].isdigit() and (p / STATE).is_file()]
        return sorted(whole, key=lambda p: int(p.name[5:]))

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest one and its state; None where there is none.

        Raises:
            ConfigError: its state cannot be read.
        """
        complete = self.all()
        if not complete:
            return None
        with self.reading(complete[-1]):
            try:
                state = json.loads((complete[-1] / STATE).read_text(encoding="utf-8"))
                if not (isinstance(state, dict) and "step" in state):
                    raise ValueError("it has no step")
            except ValueError as error:
                raise ConfigError(f"{complete[-1] / STATE} is damaged ({error})") from None
        return complete[-1], state

    @contextlib.contextmanager
    def reading(self, path: Path) -> Iterator[None]:
        """What is wrong with the checkpoint `path` is told with the way to the one before it."""
        try:
            yield
        except ConfigError as error:
            older = [other.name for other in self.all() if other != path]
            if not older:
                raise
            raise ConfigError(f"{error}; to continue from {older[-1]}, move {path} away") from error
