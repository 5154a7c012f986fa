"""Bytes of a rank under each ZeRO stage, against sums done by hand."""

import pytest

from grm_ray.config.schema import Optimizer
from grm_ray.models.footprint import Pass, Size
from grm_ray.training.footprint import BUCKET, rank_share

ALL = Size(total=1000, trainable=1000, bytes=2000, trainable_bytes=2000)  # bfloat16
FP32 = Size(total=1000, trainable=1000, bytes=4000, trainable_bytes=4000)
LORA = Size(total=1000, trainable=10, bytes=2000, trainable_bytes=20)
WORK = Pass(tokens=10, peak=50_000, flops=0, forward_flops=0)


def share(size, stage, ranks, gpu=False, work=WORK, offload="none"):
    return rank_share(size, work, Optimizer(zero_stage=stage, offload=offload), ranks, gpu)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_optimizer_is_parted_from_stage_1_on(stage, ranks):
    assert share(ALL, stage, ranks).optimizer == 1000 * 12 / ranks  # master and two moments, fp32


def test_stage_0_in_fp32_has_the_moments_alone():
    assert share(FP32, 0, 4).optimizer == 1000 * 8
    assert share(FP32, 0, 4).gradients == 4000


def test_weights_are_parted_at_stage_3_and_gathered_while_they_are_used():
    assert share(ALL, 2, 4).weights == 2000
    assert share(ALL, 3, 4).weights == 2000 / 4 + 2000
    large = Size(total=8 * 10**9, trainable=10, bytes=16 * 10**9, trainable_bytes=20)
    assert share(large, 3, 8).weights == 2 * 10**9 + 2 * 10**9  # a part, and 1e9 at a time


def test_an_adapter_costs_an_optimizer_of_its_size():
    assert share(LORA, 2, 1).optimizer == 120
    assert share(LORA, 2, 2).optimizer == 60


def test_gradients_of_the_pass_are_counted_once():
    found = share(ALL, 2, 2)
    assert found.gradients == 2000 + 1000  # the bucket, and the rank's own half
    assert found.activations == WORK.peak - 2000
    assert found.device == 2000 + 3000 + 6000 + 48_000


def test_where_the_pass_is_small_the_step_is_what_takes_most():
    small = Pass(tokens=1, peak=2100, flops=0, forward_flops=0)
    assert share(ALL, 2, 2, work=small).device == 2000 + 3000 + 6000 + 2000


def test_buckets_on_a_gpu_have_their_full_size():
    assert share(LORA, 2, 2, gpu=True).gradients == 2 * BUCKET * 2 + 10


def test_offload_moves_to_the_host():
    stays, goes = share(ALL, 2, 2, gpu=True), share(ALL, 2, 2, gpu=True, offload="optimizer")
    assert goes.optimizer == 0 and goes.host >= stays.optimizer
    everything = share(ALL, 3, 2, gpu=True, offload="all")
    assert everything.weights == 2000  # what is gathered
    assert everything.host == share(ALL, 3, 2, gpu=True, offload="optimizer").host + 1000


def test_every_rank_reads_the_whole_model_first():
    assert share(ALL, 3, 8).loading == 2000
