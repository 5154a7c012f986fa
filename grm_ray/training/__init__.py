"""DeepSpeed engine, its checkpoints, and the losses of both trainers."""
