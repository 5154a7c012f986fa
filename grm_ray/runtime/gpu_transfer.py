"""Weights from GPU to GPU, by vLLM's own transfer engines: `nccl`, or `ipc` on one device.

The learner's side. Each engine's side is a `RolloutWorker.transfer` call a step of vLLM's protocol.
Experimental: its parts were checked against vLLM's interfaces, but it never ran on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from grm_ray.runtime.weights import Version


class LaidWeights(WeightSource):
    """One version's weights, laid ready on the learner's device."""

    def __init__(self) -> None:
        self._weights: list[tuple[str, torch.Tensor]] = []

    def lay(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Copies: the update that comes next must not reach into what is being sent."""
        self._weights = []  # the version before goes first
        self._weights = [(name, weight.detach().clone()) for name, weight in weights]

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, w.dtype, tuple(w.shape)) for name, w in self._weights]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(self._weights)


@dataclass
class Engines:
    """vLLM's `VLLMWeightSyncClient` over rollout workers.

    Attributes:
        ranks_each: GPUs of each engine.
        timeout_s: seconds until a worker that does not answer ends the transfer.
        version: what is being sent.
    """

    workers: list[Any]
    ranks_each: int
    timeout_s: float
    version: Version = field(default_factory=lambda: Version(0, 0))

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos = []
        for number in range(len(self.workers)):
            own = dict(init_info)
            if "rank_offset" in own:  # every GPU of every engine has its own rank in the group
                own["rank_offset"] += number * self.ranks_each
            infos.append(own)
        self._all("init", infos)

    def start_weight_update(self) -> None:
        self._all("start", [None] * len(self.workers))

    def update_weights(self, update_info: Any) -> None:
        self._all("update", [update_info] * len(self.workers))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("finish", [self.version] * len(self.workers))

    def _all(self, step: str, payloads: list[Any]) -> None:
        calls = zip(self.workers, payloads, strict=True)
        ray.get([w.transfer.remote(step, x) for w, x in calls], timeout=self.timeout_s)


class Link:
    """The learner's end; it is joined anew whenever the engines are others than before."""

    def __init__(self, kind: str, ranks_each: int, timeout_s: float) -> None:
        self.source = LaidWeights()
        self._kind, self._ranks_each, self._timeout = kind, ranks_each, timeout_s
        self._engines: Engines | None = None
        self._sender: Any = None

    def send(self, workers: list[Any], version: Version, host: str, port: int) -> None:
        """Bring `workers` what was laid last; they have `version` afterwards.

        Args:
            host, port: where a new group meets.
        """
        if self._engines is None or self._engines.workers != workers:
            self._engines = Engines(list(workers), self._ranks_each, self._timeout)
            self._sender = WeightTransferTrainerFactory.trainer_init(
                self._meeting(host, port), client=self._engines, source=self.source
            )
        self._engines.version = version
        self._sender.send_weights()

    def _meeting(self, host: str, port: int) -> Any:
        if self._kind == "ipc":
            return IPCTrainerInitInfo(rank=0, packed=True)
        assert self._engines is not None
        world = 1 + len(self._engines.workers) * self._ranks_each
        return NCCLTrainerInitInfo(host, port, world, rank=0)
