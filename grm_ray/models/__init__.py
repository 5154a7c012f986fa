"""Torch modules and their files: backbone with heads, log-probs, checkpoints. No Ray, no DeepSpeed."""
