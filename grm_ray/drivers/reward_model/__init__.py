"""Training of a reward model: `run` holds the loop, `rows` what is trained on."""
