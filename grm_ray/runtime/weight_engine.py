"""Our weight-transfer engine inside vLLM: a file in shared memory, one update a version.

vLLM finds it through the `vllm.general_plugins` entry point, which runs `register` in the engine
core and in every worker process. CPU kernels keep repacked weights, so the update goes through
vLLM's layer-wise reload, the same path that its own engines take on GPUs.
"""

from __future__ import annotations

import logging

from grm_ray.runtime import scratch

NAME = "shared_memory"  # as in `rollout.weight_transfer`


def register() -> None:
    """Entry point of vLLM's plugin system; may run several times in one process."""
    scratch.die_with_parent()
    # A layer for which an update holds nothing keeps its weights, which is what we want of those
    # without an adapter; vLLM warns of each of them every time.
    logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if NAME not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            NAME, "grm_ray.runtime.weight_engine_vllm", "SharedMemoryEngine"
        )
