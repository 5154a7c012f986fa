"""Pure statistics of rewards: intervals, accuracies, best-of-n, over-optimisation; numpy only."""
