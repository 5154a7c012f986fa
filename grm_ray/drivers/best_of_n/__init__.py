"""Best-of-n: `run` holds the loop, `shards` what it leaves on disk, `figures` what it tells."""
