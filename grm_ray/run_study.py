"""`python -m grm_ray.run_study --config F`: a grid of reward models, each trained and judged once.

It goes on where it stopped: a finished cell is never computed twice.
"""

from __future__ import annotations

from pathlib import Path

from grm_ray import command
from grm_ray.config.judging import StudyJob


def run(config: StudyJob, resume: bool) -> Path:
    """Do the job; returns the path of its report."""
    from grm_ray.drivers.study import run as study
    from grm_ray.runtime.logs import quiet_driver

    quiet_driver()
    return study.run(config, resume)


if __name__ == "__main__":
    command.main(StudyJob, run, "Train and judge a grid of reward models.")
