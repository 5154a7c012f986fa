"""`python -m grm_ray.bon --config F`: best-of-n curves of reward models against a true reward."""

from __future__ import annotations

from pathlib import Path

from grm_ray import command
from grm_ray.config.best_of_n import BestOfNJob


def run(config: BestOfNJob, resume: bool) -> Path:
    """Do the job; returns the path of its report."""
    from grm_ray.drivers.best_of_n import run as best_of_n
    from grm_ray.runtime.logs import quiet_driver

    quiet_driver()
    return best_of_n.run(config, resume)


if __name__ == "__main__":
    command.main(BestOfNJob, run, "Choose the best of n answers by proxies, judge the choice.")
