"""`python -m grm_ray.curate --config F`: preference strength from cross-fitted reward models."""

from __future__ import annotations

from pathlib import Path

from grm_ray import command
from grm_ray.config.judging import CurateJob


def run(config: CurateJob, resume: bool) -> Path:
    """Do the job; returns the path of the curated pairs."""
    from grm_ray.drivers.curate import run as curate
    from grm_ray.runtime.logs import quiet_driver

    quiet_driver()
    return curate.run(config, resume)


if __name__ == "__main__":
    command.main(CurateJob, run, "Judge preference labels by the votes of reward models.")
