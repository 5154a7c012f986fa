"""Torch modules and their files: backbone with heads, log-probs, checkpoints; no Ray inside."""
