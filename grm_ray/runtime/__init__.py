"""What keeps a run alive: pool, ledger, weights, placement, snapshots. Knows no language model."""
