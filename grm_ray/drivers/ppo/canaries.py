"""Canary prompts: questions whose right answer a pattern knows.

A policy that pleases its reward model by other means than answering forgets them first, and they
need neither a true reward nor a second reward model.
"""

from __future__ import annotations

import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from grm_ray.config.errors import ConfigError
from grm_ray.config.schema import Source
from grm_ray.data import files, parse
from grm_ray.data.records import BadRow, Prompt, as_messages, prompt_id
from grm_ray.data.sources import Quarantine
from grm_ray.drivers.ppo.step import Gathering
from grm_ray.drivers.ppo.stream import Stream
from grm_ray.drivers.ppo.workers import PpoCast
from grm_ray.runtime.ledger import uid
from grm_ray.runtime.weights import Version
from grm_ray.study.intervals import SHARE, bootstrap_mean

COLUMNS = {"prompt", "matches"}


@dataclass(frozen=True)
class Canary:
    """A right answer to `prompt` contains `pattern`."""

    prompt: Prompt
    pattern: re.Pattern[str]


def read_canaries(source: Source, quarantine: Quarantine) -> list[Canary]:
    """The rows of `source`, which have a `prompt` and a regular expression in `matches`.

    Raises:
        ConfigError: the source cannot be used, a pattern is not a regular expression, a prompt
            stands twice, or there is no row left.
    """
    found: dict[str, Canary] = {}
    for file, line, row in files.rows(source, COLUMNS):
        try:
            turns = parse.prompt(row)
            if not isinstance(given := row.get("matches"), str) or not given:
                raise BadRow("matches: not a regular expression")
        except BadRow as error:
            quarantine.add(file, line, str(error))
            continue
        try:
            pattern = re.compile(given)
        except (re.error, OverflowError, RecursionError) as error:
            shown = reprlib.repr(given)
            raise ConfigError(
                f"{file}, line {line}: matches: {shown} is not a regular expression ({error})"
            ) from None
        name = prompt_id(as_messages(turns))
        if name in found:
            raise ConfigError(f"{file}, line {line}: this prompt is already in the file")
        found[name] = Canary(Prompt(name, turns), pattern)
        if source.limit is not None and len(found) == source.limit:
            break
    if not found:
        raise ConfigError(f"{source.path} (split '{source.split}'): no usable canary")
    return list(found.values())


class Canaries:
    """The most likely answer to each canary, by the newest weights.

    Args:
        folder: the run's.
        prompts: reference to their `PROMPTS` table.
        prompt_ids: of its rows.
    """

    def __init__(
        self,
        canaries: list[Canary],
        cast: PpoCast,
        stream: Stream,
        folder: Path,
        prompts: Any,
        prompt_ids: list[str],
    ) -> None:
        self._pattern = {canary.prompt.prompt_id: canary.pattern for canary in canaries}
        self._cast, self._stream, self._folder = cast, stream, folder
        self._prompts, self._ids = prompts, prompt_ids

    def evaluate(self, name: str, version: Version) -> tuple[dict[str, float], np.ndarray]:
        """The share that is right, with its interval, and 1 or 0 for each canary; the answers go
        to `samples/<name>-canaries.parquet`."""
        rows = [(row, uid(prompt, 0, 0)) for row, prompt in enumerate(self._ids)]
        gathering = Gathering(
            self._cast, self._prompts, rows, version, 0, evaluate=False, greedy=True
        )
        self._stream.begin(gathering)
        gathering.release()
        self._stream.gather(gathering)
        said = gathering.step.texts()
        answers = dict(zip(said["uid"].to_pylist(), said["response"].to_pylist(), strict=True))
        right = {u: self.is_right(u.split(":")[0], answer) for u, answer in answers.items()}
        said = said.append_column("right", pa.array([right[u] for u in said["uid"].to_pylist()]))
        pq.write_table(said, self._folder / "samples" / f"{name}-canaries.parquet")
        right_P = np.array([right[name] for _, name in rows], dtype=float)
        interval = bootstrap_mean(right_P, bounds=SHARE)
        return {
            "eval/canary": interval.mean,
            "eval/canary_low": interval.low,
            "eval/canary_high": interval.high,
        }, right_P

    def is_right(self, prompt: str, answer: str) -> bool:
        """Whether the answer contains the pattern of the canary of that id."""
        return self._pattern[prompt].search(answer) is not None
