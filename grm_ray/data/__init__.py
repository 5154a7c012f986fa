"""Text to Arrow to packed batches: sources, the scoring contract, table schemas, packing."""
