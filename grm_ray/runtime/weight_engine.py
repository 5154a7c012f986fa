"""Our weight-transfer engine inside vLLM: a file in shared memory, one update a version.

vLLM finds it through the `vllm.general_plugins` entry point, which runs `register` in the engine
core and in every worker process. CPU kernels keep repacked weights, so the update goes through
vLLM's layer-wise reload, the same path that its own engines take on GPUs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection
from typing import Any

NAME = "shared_memory"


def register() -> None:
    """Entry point of vLLM's plugin system; may run several times in one process."""
    _die_with_parent()
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if NAME not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            NAME, "grm_ray.runtime.weight_engine_vllm", "SharedMemoryEngine"
        )


def _die_with_parent() -> None:
    """End this vLLM child when its parent is gone, also by SIGKILL.

    vLLM stops its children on an orderly shutdown only; a killed actor would leave an engine
    behind that holds its memory and both cores.
    """
    parent = multiprocessing.parent_process()
    if parent is None or any(t.name == "die-with-parent" for t in threading.enumerate()):
        return

    def watch(sentinel: Any = parent.sentinel) -> None:
        connection.wait([sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()
