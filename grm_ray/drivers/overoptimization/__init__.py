"""The study of over-optimisation: `plan` lists its cells, `run` starts a job for each."""
