"""What "auto" means: bfloat16 only where the hardware multiplies it."""

import pytest
import torch

from grm_ray.models.backbone import resolve_dtype

X86 = {"architecture": "x86_64", "avx512_bw": True, "avx512_vl": True}


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"architecture": "x86_64", "avx2": True}, "float32"),
        (X86, "float32"),  # kernels that convert to and fro: slower than float32
        (X86 | {"avx512_bf16": True}, "bfloat16"),
        (X86 | {"amx_bf16": True}, "bfloat16"),
    ],
)
def test_a_cpu_has_to_multiply_bfloat16_itself(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_dtype("auto") == dtype
    assert resolve_dtype("bfloat16") == "bfloat16"


def test_a_gpu_multiplies_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_dtype("auto") == "bfloat16"


def test_this_machine_says_what_it_can():
    assert torch.cpu.get_capabilities()["architecture"]
    assert resolve_dtype("auto") in ("float32", "bfloat16")
