"""The ledger: where every row of the run stands, by uid.

A uid is `prompt id : epoch : sample`. Work is idempotent by uid: an event that came before counts
once. On disk it is `ledger.jsonl`, one line a step with the uids that were learned from; a resumed
run cuts the lines after its checkpoint, so that the file tells which prompts were truly used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from grm_ray.runtime.disk import writing


def uid(prompt_id: str, epoch: int, sample: int) -> str:
    """Name of a row of a run, the same whenever it is made again."""
    return f"{prompt_id}:{epoch}:{sample}"


def seed(uid: str, run_seed: int) -> int:
    """31-bit sampling seed of a row: a function of its name, so that a lost row comes back."""
    digest = hashlib.sha256(f"{run_seed}/{uid}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF


class StepLedger:
    """The rows of one step: each is generated once, scored once, evaluated once.

    A row that is forgotten counts as one of which nothing is done.
    """

    def __init__(self, uids: Iterable[str], needs: frozenset[str]) -> None:
        self._done: dict[str, set[str]] = {u: set() for u in uids}
        # Counted along: with many rows the driver cannot look at all of them for every event.
        self._left = dict.fromkeys(needs, len(self._done))

    def record(self, stage: str, uids: Iterable[str]) -> list[str]:
        """Note that `stage` is done for `uids`; returns those for which that is news.

        Raises:
            KeyError: a uid that this step never issued.
        """
        fresh = []
        for name in uids:
            if stage not in self._done[name]:
                self._done[name].add(stage)
                fresh.append(name)
        if stage in self._left:
            self._left[stage] -= len(fresh)
        return fresh

    def forget(self, uids: Iterable[str]) -> None:
        """These rows are made again, from the first stage on."""
        for name in uids:
            for stage in self._done[name] & self._left.keys():
                self._left[stage] += 1
            self._done[name].clear()

    def has(self, stage: str, uid: str) -> bool:
        """Whether `stage` is done for a row."""
        return stage in self._done[uid]

    def left(self, stage: str) -> int:
        """How many rows still need `stage`.

        Raises:
            KeyError: none ever does.
        """
        return self._left[stage]

    def lacking(self, stage: str) -> list[str]:
        return [u for u, done in self._done.items() if stage not in done]

    @property
    def complete(self) -> bool:
        return not any(self._left.values())

    @property
    def uids(self) -> list[str]:
        return list(self._done)


class LedgerFile:
    """`ledger.jsonl`: `{"step": k, "uids": [...]}`, appended after the step's update."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, step: int, uids: list[str]) -> None:
        """Add a step.

        Raises:
            NotWritten: the run must not go on without: it would not know what it learned from.
        """
        with writing(self._path), self._path.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"step": step, "uids": uids}) + "\n")
            out.flush()
            os.fsync(out.fileno())

    def steps(self) -> dict[int, list[str]]:
        """step -> uids; a torn last line (killed while writing) is left out."""
        found: dict[int, list[str]] = {}
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue
                found[entry["step"]] = entry["uids"]
        return found

    def cut_after(self, step: int) -> None:
        """Forget steps after `step`: they are done again from the checkpoint."""
        kept = {k: v for k, v in self.steps().items() if k <= step}
        fresh = self._path.with_name(self._path.name + ".part")
        lines = (json.dumps({"step": k, "uids": v}) + "\n" for k, v in kept.items())
        fresh.write_text("".join(lines), encoding="utf-8")
        fresh.replace(self._path)
