"""Ray actors, one role a file. They own processes and devices, take and give record batches."""
