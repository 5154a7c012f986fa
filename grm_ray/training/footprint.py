"""What a rank's weights, gradients and optimizer take under each ZeRO stage: arithmetic on sizes.

It follows what DeepSpeed does with the engine's settings (`engine.ZeroEngine`): a master copy in
fp32 and AdamW's two moments in fp32 of whatever is trained, also where the weights are fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

from grm_ray.config.schema import Optimizer
from grm_ray.models.footprint import Pass, Size

FP32 = 4
# DeepSpeed's defaults, in elements: gradients are reduced in buckets of so many, and stage 3 keeps
# so many gathered weights at a time.
BUCKET = 500_000_000
GATHERED = 1_000_000_000


@dataclass(frozen=True)
class Share:
    """Bytes of one rank, on its device and in the host's memory beside it.

    Attributes:
        loading: host memory before the engine has parted the weights; never at the same time as
            the rest.
    """

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0
    host: float = 0
    loading: float = 0

    @property
    def device(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def rank_share(size: Size, work: Pass | None, config: Optimizer, ranks: int, gpu: bool) -> Share:
    """What a rank holds when it holds most: at the end of a backward pass, or in the step after.

    Args:
        work: its largest micro-batch; None: not known, and not counted.
        gpu: whether the rank has one. On CPUs, memory that is asked for and never written to costs
            nothing, and host and device are one.
    """
    stage, part = config.zero_stage, 1 / ranks
    learning, each = size.trainable, size.trainable_bytes / max(size.trainable, 1)
    weights: float = size.bytes
    if stage == 3:
        whole = size.bytes / max(size.total, 1)
        weights = size.bytes * part + min(size.bytes, GATHERED * whole)
    halves = each < FP32
    # Stage 0 in fp32 has no engine of ZeRO around its optimizer.
    moments = learning * 2 * FP32 * (part if stage or halves else 1.0)
    master = learning * FP32 * part if stage or halves else 0.0
    # Gradients leave each backward pass through buckets, on GPUs two of full size.
    bucket = learning * each if not gpu else 2 * BUCKET * each * (stage > 0)
    if stage == 0:
        bucket = learning * each
    kept = learning * (FP32 if stage == 0 and halves else each * part if stage else 0.0)
    at_step = learning * FP32 * part if stage else 0.0  # the rank's own, laid in one line
    peak = 0.0
    if work is not None:
        # By the end of the pass its gradients are there; they are in `bucket` already.
        peak = max(work.peak - learning * each, 0.0)
    gradients = bucket + kept
    if at_step > peak:
        gradients, peak = gradients + at_step, 0.0
    host = 0.0
    optimizer = master + moments
    if config.offload != "none":
        host += optimizer + learning * each * part + at_step
        optimizer = 0.0
        gradients -= kept
    if config.offload == "all":
        host += size.bytes * part
        weights -= size.bytes * part
    # A rank reads the whole model into its own memory before the engine parts it.
    return Share(weights, gradients, optimizer, peak, host, size.bytes)
