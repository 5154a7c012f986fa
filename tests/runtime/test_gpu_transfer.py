"""What can be known of the GPU transfer without a GPU: that it fits vLLM's interfaces."""

import pytest
import torch

from grm_ray.runtime.gpu_transfer import Engines, LaidWeights, Link
from grm_ray.runtime.weights import Version

transfer = pytest.importorskip("vllm.distributed.weight_transfer")


def test_laid_weights_are_what_vllm_is_told_of_and_a_copy():
    learned = {"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    source = LaidWeights()
    source.lay(iter(learned.items()))
    learned["a"] += 1.0  # the next update
    told = [(m.name, m.dtype, m.shape) for m in source.metadata()]
    came = [(name, x.dtype, tuple(x.shape)) for name, x in source]
    assert told == came == [("a", torch.float32, (2, 3)), ("b", torch.bfloat16, (4,))]
    assert all(float(x.sum()) == x.numel() for _, x in source)
    assert dict(source)  # vLLM reads it anew for each update


def test_every_gpu_of_every_engine_has_its_own_rank(monkeypatch):
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferInitInfo

    link = Link("nccl", ranks_each=2, timeout_s=60)
    link._engines = Engines([object()] * 3, 2, 60)
    meeting = link._meeting("10.0.0.1", 2345)
    assert (meeting.world_size, meeting.rank, meeting.packed) == (7, 0, True)
    sent = []
    monkeypatch.setattr(Engines, "_all", lambda self, step, payloads: sent.append((step, payloads)))
    info = {"master_address": "10.0.0.1", "master_port": 2345, "rank_offset": 1, "world_size": 7}
    link._engines.init_weight_transfer_engine(info)
    (step, payloads), offsets = sent[0], [1, 3, 5]
    assert step == "init"
    assert [NCCLWeightTransferInitInfo(**p).rank_offset for p in payloads] == offsets
    link._engines.version = Version(1, 4)
    link._engines.finish_weight_update()
    assert sent[1] == ("finish", [Version(1, 4)] * 3)
