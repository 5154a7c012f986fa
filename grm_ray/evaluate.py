"""`python -m grm_ray.evaluate --config F`: judge reward models on preference sets."""

from __future__ import annotations

from pathlib import Path

from grm_ray import command
from grm_ray.config.judging import EvaluateJob


def run(config: EvaluateJob, resume: bool) -> Path:
    """Do the job; returns the path of its report."""
    from grm_ray.drivers import evaluate
    from grm_ray.runtime.logs import quiet_driver

    quiet_driver()
    return evaluate.run(config, resume)


if __name__ == "__main__":
    command.main(EvaluateJob, run, "Judge reward models on preference sets, side by side.")
