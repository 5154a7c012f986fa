"""A run folder as the report reads it: whatever is there, with a note on what is not.

A run that was killed leaves steps, perhaps half a line, perhaps no samples: all of that is read
as far as it goes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grm_ray.config.document import check_tree, legible, parse
from grm_ray.config.errors import ConfigError

# No figure of a run is as large, and what is can overflow where it is squared or summed.
_ABSURD = 1e100
SAMPLE_COLUMNS = ("uid", "prompt", "response", "reward", "true_reward", "length")


@dataclass
class Run:
    """`steps`: metrics objects in the order of their "step"; `notes`: what a reader must know."""

    folder: Path
    job: str
    config: dict[str, Any]
    config_text: str
    steps: list[dict[str, Any]]
    samples: dict[str, list[dict[str, Any]]]
    quarantined: int
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.folder.resolve().name)

    def section(self, key: str) -> dict[str, Any]:
        """A part of the configuration, empty where it is missing or is no part."""
        found = self.config.get(key)
        return found if isinstance(found, dict) else {}

    def column(self, key: str) -> list[float | None]:
        """The values of `key`, one a step, None where a step has no such number."""
        return [number(row.get(key)) for row in self.steps]

    def has(self, key: str) -> bool:
        return any(value is not None for value in self.column(key))

    def keys(self, prefix: str) -> list[str]:
        """Keys that begin with `prefix`, in the order of their first appearance."""
        found = dict.fromkeys(k for row in self.steps for k in row if k.startswith(prefix))
        return [key for key in found if self.has(key)]


def is_run(folder: Path) -> bool:
    """Whether `folder` holds what every run writes first."""
    return (folder / "config.yaml").is_file() or (folder / "metrics.jsonl").is_file()


def job_of(folder: Path) -> Any:
    """What `folder`'s config.yaml calls its job; None where it does not say."""
    return _config(folder, [])[0].get("job")


def read_run(folder: Path) -> Run:
    """Read what `folder` holds; nothing in it is needed."""
    notes: list[str] = []
    config, text = _config(folder, notes)
    steps = _steps(folder, notes)
    job = config.get("job")
    if job not in ("rm", "ppo"):
        job = "rm" if any("accuracy" in row or "eval/accuracy" in row for row in steps) else "ppo"
        if steps:
            notes.append(f"config.yaml has no key job: shown as {job}, judging by its metrics.")
    run = Run(folder, job, config, text, steps, _samples(folder, notes), _quarantined(folder))
    run.notes = notes + _alarms(run) + _gaps(run)
    return run


def _alarms(run: Run) -> list[str]:
    """What the run's guard said and did."""
    return [
        f"Step {row['step']}, guard ({row['guard/action']}): {row.get('guard/reason', '')}."
        for row in run.steps
        if row.get("guard/action")
    ]


def number(value: Any) -> float | None:
    """`value` as a float, None where it is no number that can be drawn."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _ABSURD else None


def _config(folder: Path, notes: list[str]) -> tuple[dict[str, Any], str]:
    path = folder / "config.yaml"
    if not path.is_file():
        notes.append("There is no config.yaml in this folder.")
        return {}, ""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        config = parse(text, "config.yaml")
        check_tree(config, "config.yaml")
    except ConfigError as error:
        notes.append(f"The configuration cannot be read: {legible(str(error))}")
        config = None
    return (config if isinstance(config, dict) else {}), text


def _steps(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    by_step: dict[int, dict[str, Any]] = {}
    torn = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line, parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            row = None
        step = number(row.get("step")) if isinstance(row, dict) else None
        if step is None:
            torn += 1
        else:
            by_step[int(step)] = {**row, "step": int(step)}
    if torn:
        notes.append(f"{_count(torn, 'line')} of metrics.jsonl could not be read.")
    bad = {
        (step, str(key))
        for step, row in by_step.items()
        if isinstance(keys := row.get("non_finite"), list)
        for key in keys
        if key
    }
    if bad:
        first = min(step for step, _ in bad)
        names = ", ".join(sorted({key for _, key in bad}))
        notes.append(f"Sometimes not a finite number, first in step {first}: {names}.")
    return [by_step[step] for step in sorted(by_step)]


def _samples(folder: Path, notes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """name of the file -> its rows. Step files are many: only the newest is read."""
    paths = {path.stem: path for path in sorted((folder / "samples").glob("*.parquet"))}
    newest = max((name for name in paths if name.startswith("step-")), default=None)
    rows = {}
    for name in ("before", "after", newest):
        if name is None or name not in paths:
            continue
        found = read_samples(paths[name], notes)
        if found is not None:
            rows[name] = found
    return rows


def read_samples(path: Path, notes: list[str]) -> list[dict[str, Any]] | None:
    """The answers in `path`; None, and a note, where they cannot be read."""
    try:
        table = pq.read_table(path)
        table.validate(full=True)
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, ArithmeticError, ValueError) as error:
        notes.append(f"samples/{path.name} cannot be read: {legible(str(error))}")
        return None
    columns = SAMPLE_COLUMNS
    return [{**{c: row.get(c) for c in columns}, "uid": str(row.get("uid"))} for row in rows]


def _quarantined(folder: Path) -> int:
    path = folder / "quarantine.jsonl"
    if not path.is_file():
        return 0
    total = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue  # a line that a killed run left half-written
            # An entry may stand for many rows.
            count = number(entry.get("rows", 1)) if isinstance(entry, dict) else None
            total += int(count or 0)
    return total


def _gaps(run: Run) -> list[str]:
    if not run.steps:
        return [
            "No step has been finished yet: the run has just started, or ended before its first "
            "step."
        ]
    notes = []
    last = int(run.steps[-1]["step"])
    wanted = number(run.section("ppo").get("steps")) if run.job == "ppo" else None
    unfinished = wanted is not None and last < wanted
    if unfinished:
        notes.append(f"Step {last} of {wanted:.0f}: the run is still running, or was stopped.")
    if run.job == "ppo" and "before" not in run.samples:
        notes.append(
            "No answers from before training were saved, so there is nothing to compare with."
        )
    elif run.job == "ppo" and "after" not in run.samples:
        notes.append(
            "There are no answers from after training yet: a run writes them when it ends."
        )
    if run.quarantined:
        rows = _count(run.quarantined, "input row")
        notes.append(f"{rows} could not be used; quarantine.jsonl says which and why.")
    return notes


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")
