"""`python -m grm_ray.rm --config F`: train a reward model."""

from __future__ import annotations

from pathlib import Path

from grm_ray import command
from grm_ray.config.reward_model import RewardModelJob


def run(config: RewardModelJob, resume: bool) -> Path:
    """Do the job; returns the path of its report."""
    from grm_ray.drivers.reward_model import run as reward_model
    from grm_ray.runtime.logs import quiet_driver

    quiet_driver()
    return reward_model.run(config, resume)


if __name__ == "__main__":
    command.main(RewardModelJob, run, "Train a reward model with DeepSpeed ZeRO workers on Ray.")
