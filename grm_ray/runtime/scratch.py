"""What an engine leaves on a machine outside its memory, and its end when its parent is gone.

vLLM keeps sockets under the temporary folder and message queues in shared memory. It frees them on
an orderly shutdown only, which a killed actor never sees: its engine would stay behind with its
memory and both cores.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from multiprocessing import connection
from pathlib import Path
from typing import Any

_PREFIX = "grm_ray-engine-"
_WATCHER = "die-with-parent"


def enter() -> None:
    """Give this process, and its future children, a temporary folder of their own."""
    # What torch compiles is for the next engine too: it stays outside.
    compiled = Path(tempfile.gettempdir(), f"torchinductor_{os.getuid()}")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    # A short path: sockets lie in it, whose names may have no more than 107 characters.
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp")
    os.environ["TMPDIR"] = tempfile.tempdir = folder


def die_with_parent() -> None:
    """In a child of a process that entered: clean up and end as soon as the parent is gone."""
    parent = multiprocessing.parent_process()
    if parent is None or any(thread.name == _WATCHER for thread in threading.enumerate()):
        return

    def watch(sentinel: Any = parent.sentinel) -> None:
        connection.wait([sentinel])
        with contextlib.suppress(Exception):
            _clean()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name=_WATCHER, daemon=True).start()


def _clean() -> None:
    """Free the temporary folder and the shared memory that this process has mapped."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if path.startswith("/dev/shm/psm_"):  # Python's own prefix of SharedMemory blocks
            Path(path).unlink(missing_ok=True)
    folder = Path(tempfile.gettempdir())
    if folder.name.startswith(_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)
