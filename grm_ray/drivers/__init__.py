"""A folder a job: its driver holds the ledger and hands references from worker to worker."""
