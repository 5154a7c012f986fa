"""A job that another job started ends with it, however that one ends."""

from __future__ import annotations

import os
import signal
import threading
import time

VARIABLE = "GRM_RAY_PARENT"
_LOOK_S = 0.5


def named() -> dict[str, str]:
    """The environment of a job that is to end with this process."""
    return {**os.environ, VARIABLE: str(os.getpid())}


def end_with_it() -> None:
    """Send this process SIGTERM once the one that `named` itself is gone; none did: do nothing.

    A job that is killed can tell its jobs nothing: they would go on and keep their folders.
    """
    parent = os.environ.pop(VARIABLE, None)  # what this job starts has other parents
    if parent is None:
        return

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(_LOOK_S)
        # To the main thread, whose waiting another thread's signal would not interrupt.
        main = threading.main_thread().ident
        assert main is not None  # a running thread has one
        signal.pthread_kill(main, signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
