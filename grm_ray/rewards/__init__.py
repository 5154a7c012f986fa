"""From raw scores to the reward that is learned from: arrays in, arrays out. No Ray, no I/O."""
