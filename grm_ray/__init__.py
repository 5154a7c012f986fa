"""grm_ray: reward models that generalise, and reinforcement learning against them, on Ray."""

__version__ = "0.1.0"
