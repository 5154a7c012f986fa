"""The part of the weight-transfer engine that needs vLLM imported; see weight_engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from grm_ray.runtime.weights import WeightUpdate, read


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand: every update describes itself."""


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """A `WeightUpdate` as a dict of plain values."""

    update: dict[str, Any] = field(default_factory=dict)


class SharedMemoryEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """vLLM's side of the transfer: loads what a `WeightUpdate` names, in the engine's process."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self._rows: set[int] = set()
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        model: Any = self.model  # every model of vLLM has `load_weights`, their base class has not
        model.load_weights(self._noted(read(WeightUpdate.from_dict(update_info.update))))

    def _noted(
        self, weights: Iterator[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """`weights` as they come; remembers how many rows each has."""
        for name, weight in weights:
            self._rows.update(weight.shape[:1])
            yield name, weight

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class synchronises an accelerator, which a CPU engine does not have.
        self.receive_weights(self.parse_update_info(update_info))
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        if not torch.cuda.is_available():
            _repack_heads(self.model, self._rows)

    def shutdown(self) -> None:
        pass


def _repack_heads(model: torch.nn.Module, rows: set[int]) -> None:
    """Have every language head multiply by the weights that it holds now.

    Args:
        rows: of the weights that came. Where none has a row a word, no head has changed.

    vLLM's CPU kernels multiply by a packed copy, and its reload renews the copies of those layers
    that weights came for: a head tied to the embedding would go on with the embedding of before.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        UnquantizedEmbeddingMethod,
    )

    for layer in model.modules():
        if (
            isinstance(layer, ParallelLMHead)
            and isinstance(layer.quant_method, UnquantizedEmbeddingMethod)
            and layer.org_vocab_size in rows
        ):
            layer.quant_method.process_weights_after_loading(layer)
