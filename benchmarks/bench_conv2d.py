"""One 64 -> 64 3x3 layer on 192x192 with its fused epilogue, by bit-width and instruction set, beside PyTorch's float32."""

from __future__ import annotations

import pytest
import torch
from conftest import THREADS
from problems import ConvProblem, instantiate, runnable_isas
from torch.nn import functional as F

from adabm_kernels import native

ISAS = runnable_isas()
MACS = 192 * 192 * 64 * 64 * 9


def layer(bits: int) -> ConvProblem:
    return ConvProblem("edsr_body", 192, 192, 64, 64, bits=(bits,), out_bits=(4,), activation="relu")


@pytest.mark.benchmark(group="conv2d 64->64 3x3 192x192")
@pytest.mark.parametrize("bits", [8, 7, 6, 5, 4, 3, 2])
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
def bench_integer_layer(benchmark, isa: str, bits: int) -> None:
    with native.force_isa(isa):  # also while it is planned: AVX2 takes other tiles
        instance = instantiate(layer(bits))
    assert torch.equal(instance.run("cpu", "codes", isa, THREADS)[1], instance.run("reference", "codes")[1])
    benchmark.extra_info |= {"bits": bits, "isa": isa, "tile": instance.layer.plan.tile[bits - 2], "threads": THREADS, "macs": MACS}
    benchmark(lambda: instance.run("cpu", "codes", isa, THREADS))


@pytest.mark.benchmark(group="conv2d 64->64 3x3 192x192")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def bench_torch_layer(benchmark, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 64, 192, 192, generator=g).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, 64, 3, 3, generator=g).to(dtype).contiguous(memory_format=torch.channels_last)
    bias = torch.zeros(64, dtype=dtype)
    benchmark.extra_info |= {"dtype": str(dtype), "threads": THREADS, "macs": MACS}
    with torch.no_grad():
        benchmark(lambda: F.conv2d(x, weight, bias, padding=1).relu_())
