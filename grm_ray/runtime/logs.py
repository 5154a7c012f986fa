"""Where a process's own and its libraries' output goes: a file in the run folder."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path


def to_file(path: Path) -> None:
    """Send this process's stdout and stderr, and its future children's, to `path`.

    At the level of file descriptors, since vLLM's and DeepSpeed's C++ parts write there too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def quiet_driver() -> None:
    """Keep library chatter off the driver's terminal, which shows one table."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("grm_ray").setLevel(logging.WARNING)  # our own warnings are for the user
