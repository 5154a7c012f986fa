"""The cells of a study: which jobs its factors make, and what names their results."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from grm_ray.config.errors import ConfigError
from grm_ray.config.judging import StudyJob
from grm_ray.config.load import apply, validate
from grm_ray.config.reward_model import RewardModelJob
from grm_ray.drivers.job_key import Keys, precision


@dataclass(frozen=True)
class GridCell:
    """One choice from every factor, and the job that it makes."""

    choices: dict[str, str]
    job: RewardModelJob
    key: str

    def __str__(self) -> str:
        return "/".join(self.choices.values())


def jobs(config: StudyJob) -> Iterator[tuple[dict[str, str], RewardModelJob]]:
    """The choices and the job of every cell; nothing is read.

    Raises:
        ConfigError: naming the cell and the key that is wrong.
    """
    for picked in itertools.product(*(list(choices) for choices in config.vary.values())):
        choices = dict(zip(config.vary, picked, strict=True))
        raw = copy.deepcopy(config.base)
        where = f"cell {'/'.join(picked)}"
        for factor, choice in choices.items():
            for path, value in config.vary[factor][choice].items():
                if path.split(".")[0] in ("name", "runs", "job"):
                    raise ConfigError(f"vary.{factor}.{choice}: {path} is set by the study")
                apply(raw, path, copy.deepcopy(value))
        yield choices, validate(RewardModelJob, {"name": "cell", "tracking": [], **raw}, where)


def grid(config: StudyJob, folder: Path) -> list[GridCell]:
    """Every cell, named by what its result depends on.

    Raises:
        ConfigError: as `jobs`; or two cells are one.
    """
    keys, cells = Keys(), dict[str, GridCell]()
    judged = [
        {name: keys.source(source) for name, source in config.sets.items()},
        precision(config.scoring.dtype, config.judges),
        config.seed,
    ]
    for choices, job in jobs(config):
        key = keys.of(job, *judged)
        job = job.model_copy(update={"name": key, "runs": str(folder / "cells")})
        cell = GridCell(choices, job, key)
        if key in cells:
            raise ConfigError(
                f"vary: cells {cells[key]} and {cell} are the same job: remove one of the choices"
            )
        cells[key] = cell
    return list(cells.values())
