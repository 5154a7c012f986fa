"""The one DeepSpeed engine that both trainers use."""
