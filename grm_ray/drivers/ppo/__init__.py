"""PPO from start to end: `run` holds the loop, the files beside it what a step is made of."""
