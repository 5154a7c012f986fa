"""One role of a job as its memory and speed are told, and what a process takes by itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from grm_ray.config.schema import Dtype, Workers
from grm_ray.models import backbone

GIB = 2**30
# Anonymous memory (GiB) of a process of each role beside what follows from sizes: Python, Ray,
# torch, transformers, tokenizers, DeepSpeed, vLLM. Measured with a model of half a million weights:
# `benchmarks/memory_estimate.py --only baseline`.
BASELINE = {"trainer": 0.42, "learner": 0.42, "rollout": 0.90, "scorer": 0.33}
# Driver and Ray's own processes of a job, likewise.
DRIVER = 1.65
# On CPUs workers keep what they free (`runtime.cluster.worker_options`), and a process then holds
# more than is ever alive at a time: after two passes of the embedded model with LoRA, in a bare
# process, 1.8 times as much (820 MiB for 450; after the first 1.6), and with every tensor mapped by
# itself 1.0. Measured for that one model and size.
KEPT_HEAP = 1.8


@dataclass
class Role:
    """One role's workers: bytes of each by what they are for, and how fast each may go.

    Attributes:
        parts: on the worker's device; on CPUs that is the machine's memory.
        host: in the machine's memory beside a GPU.
        loading: in the machine's memory while the model is read.
        flops: of a token, by the kind of work ("train", "score", "evaluate", "write").
        reads: bytes that every decoding step reads.
        keys: bytes of the keys and values of an engine's longest row.
        missing: why something is not known.
    """

    name: str
    workers: Workers
    dtype: str
    parts: dict[str, float] = field(default_factory=dict)
    host: float = 0.0
    loading: float = 0.0
    flops: dict[str, float] = field(default_factory=dict)
    reads: float = 0.0
    keys: float = 0.0
    about: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def device(self) -> float:
        return sum(self.parts.values())

    @property
    def on_host(self) -> float:
        """Of one worker, in the machine's memory."""
        own = BASELINE[self.name] * GIB
        if self.workers.gpus:
            return own + max(self.host, self.loading)
        return own + max(self.device + self.host, self.loading)


def dtype_of(dtype: Dtype, workers: Workers) -> str:
    """What "auto" means where the worker will be."""
    if dtype == "auto" and workers.gpus:
        return "bfloat16"
    return backbone.resolve_dtype(dtype)


def in_words(count: float) -> str:
    """A count, short: 134.5 M."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count:g}"
