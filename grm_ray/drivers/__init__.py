"""One loop a file: they hold the ledger and hand references from worker to worker."""
