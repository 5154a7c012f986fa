"""The table a job shows while it runs: a header, one line a step, and what goes on right now.

Lines are plain text and read the same in a terminal and in a log file. Only a terminal gets the
status line, which the next line overwrites.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

_GAP = "  "
# A status line that changed at every row would cost more terminal than it tells.
_STATUS_SECONDS = 0.1


@dataclass(frozen=True)
class Column:
    """One column: `key` of the metrics (a key that ends in `*` sums all keys that so begin).

    `digits` after the point, in at most `width` characters.
    """

    title: str
    key: str
    width: int
    digits: int

    def text(self, metrics: Mapping[str, Any]) -> str:
        """The value, right-aligned in `width`; `-` where there is none."""
        if self.key.endswith("*"):
            found = [v for k, v in metrics.items() if k.startswith(self.key[:-1]) and _is_number(v)]
            value = sum(found) if found else None
        else:
            value = metrics.get(self.key)
        return fit(value, self.digits, self.width).rjust(self.width)


PPO_COLUMNS = (
    Column("step", "step", 4, 0),
    Column("reward", "reward", 7, 3),
    Column("true", "true_reward", 6, 3),
    Column("KL", "objective/kl", 6, 2),
    Column("length", "response_length", 6, 1),
    Column("tok/s", "tokens_per_second", 5, 0),
    Column("s/step", "phase/*", 6, 1),
    Column("gen", "phase/generate", 5, 1),
    Column("score", "phase/score", 5, 1),
    Column("learn", "phase/learn", 5, 1),
    Column("sync", "phase/sync", 5, 1),
)
RM_COLUMNS = (
    Column("step", "step", 5, 0),
    Column("loss", "loss", 7, 4),
    Column("bt", "loss/preference", 7, 4),
    Column("reg", "loss/regularizer", 7, 4),
    Column("acc", "accuracy", 6, 3),
    Column("lr", "lr", 7, 7),
    Column("tok/s", "tokens_per_second", 6, 0),
    Column("s", "phase/*", 6, 1),
)
# What a line on held-out data shows: key after "eval/", words, digits.
_HELD_OUT = (
    ("true_reward", "true reward", 3),
    ("accuracy", "accuracy", 3),
    ("reward", "reward", 3),
    ("length", "length", 1),
    ("loss", "loss", 4),
    ("greedy_true_reward", "greedy: true reward", 3),
    ("greedy_reward", "greedy: reward", 3),
)


class LiveTable:
    """Prints `columns` to `stream`; any method may be called at any time, before rows or after."""

    def __init__(self, columns: Sequence[Column], stream: TextIO | None = None) -> None:
        self._columns = columns
        self._stream = stream if stream is not None else sys.stdout
        self._terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self._header_shown = False
        self._status_length = 0
        self._status_at = -math.inf

    def row(self, metrics: Mapping[str, Any]) -> None:
        """One line for a step, and one below it for held-out data where the step has any."""
        if any(column.key != "step" and self._has(column, metrics) for column in self._columns):
            self.message(_GAP.join(column.text(metrics) for column in self._columns))
        held_out = _held_out(metrics)
        if held_out:
            step = self._columns[0].text(metrics)
            self.message(f"{step}{_GAP}held-out: {held_out}")

    def message(self, text: str) -> None:
        """A line of its own among the rows."""
        self._clear()
        if not self._header_shown:
            self._header_shown = True
            header = _GAP.join(column.title.rjust(column.width) for column in self._columns)
            self._stream.write(header + "\n")
        self._stream.write(text + "\n")
        self._stream.flush()

    def status(self, phase: str, done: int | None = None, total: int | None = None) -> None:
        """What is going on, such as `generate 12/32 rows`; shown on a terminal only."""
        now = time.monotonic()
        finished = done is not None and done == total
        if not self._terminal or (now - self._status_at < _STATUS_SECONDS and not finished):
            return
        self._status_at = now
        text = phase
        if done is not None:
            text += f" {done}/{total} rows" if total is not None else f" {done} rows"
        # One column short of the edge: a full line would wrap and could not be overwritten.
        text = text[: max(1, shutil.get_terminal_size().columns - 3)]
        self._clear()
        self._stream.write(f"… {text}")
        self._status_length = len(text) + 2
        self._stream.flush()

    def close(self) -> None:
        """Takes the status line away."""
        self._clear()
        self._stream.flush()

    def _clear(self) -> None:
        if self._status_length:
            self._stream.write("\r" + " " * self._status_length + "\r")
            self._status_length = 0

    @staticmethod
    def _has(column: Column, metrics: Mapping[str, Any]) -> bool:
        # Time is spent at step 0 too, where only held-out prompts were answered.
        return not column.key.startswith("phase/") and metrics.get(column.key) is not None


def fit(value: Any, digits: int, width: int) -> str:
    """`value` with `digits` after the point, fewer where it would outgrow `width`.

    More than 5 digits ask for a rate: 2.0e-05.
    """
    if not _is_number(value):
        return "-" if value is None or isinstance(value, float) else str(value)[:width]
    if digits > 5 and value != 0:
        return f"{value:.1e}"
    for places in range(digits, -1, -1):
        text = f"{value:.{places}f}"
        if len(text) <= width:
            return text
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _held_out(metrics: Mapping[str, Any]) -> str:
    parts = []
    for key, words, digits in _HELD_OUT:
        value = metrics.get(f"eval/{key}")
        if not _is_number(value):
            continue
        low, high = metrics.get(f"eval/{key}_low"), metrics.get(f"eval/{key}_high")
        bounds = ""
        if _is_number(low) and _is_number(high):
            bounds = f" ({low:.{digits}f} to {high:.{digits}f})"
        parts.append(f"{words} {value:.{digits}f}{bounds}")
    return ", ".join(parts)
