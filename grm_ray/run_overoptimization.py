"""`python -m grm_ray.run_overoptimization --config F`: which reward survives being searched?

Pairs are labelled by a true reward, reward models are trained on them, best-of-n and PPO search
these, and one page shows what became of the true reward. It goes on where it stopped: a finished
cell is never computed twice.
"""

from __future__ import annotations

from pathlib import Path

from grm_ray import command
from grm_ray.config.overoptimization import OveroptimizationJob


def run(config: OveroptimizationJob, resume: bool) -> Path:
    """Do the job; returns the path of its report."""
    from grm_ray.drivers.overoptimization import run as overoptimization
    from grm_ray.runtime.logs import quiet_driver

    quiet_driver()
    return overoptimization.run(config, resume)


if __name__ == "__main__":
    command.main(OveroptimizationJob, run, "Search proxies of a true reward by best-of-n and PPO.")
