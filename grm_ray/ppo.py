"""`python -m grm_ray.ppo --config F`: PPO against a reward model."""

from __future__ import annotations

from pathlib import Path

from grm_ray import command
from grm_ray.config.ppo import PpoJob


def run(config: PpoJob, resume: bool) -> Path:
    """Do the job; returns the path of its report."""
    from grm_ray.drivers.ppo import run as ppo
    from grm_ray.runtime.logs import quiet_driver

    quiet_driver()
    return ppo.run(config, resume)


if __name__ == "__main__":
    command.main(PpoJob, run, "PPO: vLLM rollouts, a reward pool and a DeepSpeed learner on Ray.")
