"""One 64 -> 64 3x3 layer on 192x192 pixels with its fused epilogue, by bit-width, weights and instruction set, beside PyTorch.

`of_peak` in the extra information is a ratio: the direct-equivalent multiply-accumulates a second (median), over the rate that the
instruction set reaches in registers alone, which is measured just before.
"""

from __future__ import annotations

import pytest
import torch
from baselines import require
from problems import ConvProblem, bell_codes, instantiate, runnable_isas, set_weights
from torch.nn import functional as F
from turns import THREADS

from adabm_kernels import native

ISAS = [isa for isa in runnable_isas() if isa != "scalar"]
MACS = 192 * 192 * 64 * 64 * 9


def integer_layer(benchmark, isa: str, grid: str, weight_bits: int, bits: int) -> None:
    problem = ConvProblem("edsr_body", 192, 192, 64, 64, bits=(bits,), out_bits=(4,), weight_bits=weight_bits, activation="relu")
    instance = instantiate(problem)
    set_weights(instance, bell_codes(weight_bits, 64, 64), grid, isa)
    assert torch.equal(instance.run("cpu", "codes", isa, THREADS)[1], instance.run("reference", "codes")[1])
    plan, peak = instance.layer.plan, native.peak(isa, THREADS)
    benchmark.extra_info |= {"bits": bits, "isa": isa, "grid": grid, "weight_bits": weight_bits, "threads": THREADS, "macs": MACS}
    benchmark.extra_info |= {"tile": plan.tile[bits - 2], "products": plan.products_for_bits[bits - 2], "peak_gmacs": peak / 1e9}
    benchmark(lambda: instance.run("cpu", "codes", isa, THREADS))
    if benchmark.stats:
        benchmark.extra_info["of_peak"] = MACS / benchmark.stats.stats.median / peak


@pytest.mark.benchmark(group="conv2d 64->64 3x3 192x192")
@pytest.mark.parametrize("bits", [8, 7, 6, 5, 4, 3, 2])
@pytest.mark.parametrize("isa", ISAS)
def bench_integer_layer(benchmark, isa: str, bits: int) -> None:
    integer_layer(benchmark, isa, "signed", 4, bits)


@pytest.mark.benchmark(group="conv2d 64->64 3x3 192x192")
@pytest.mark.parametrize("weights, bits", [("odd-4", 6), ("odd-4", 4), ("odd-4", 3), ("odd-6", 6), ("signed-6", 6), ("odd-8", 8)])
def bench_other_weights(benchmark, weights: str, bits: int) -> None:
    grid, weight_bits = weights.split("-")
    integer_layer(benchmark, ISAS[-1], grid, int(weight_bits), bits)


@pytest.mark.benchmark(group="conv2d 64->64 3x3 192x192")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def bench_torch_layer(benchmark, dtype: torch.dtype) -> None:
    require(str(dtype).removeprefix("torch."))
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 64, 192, 192, generator=g).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, 64, 3, 3, generator=g).to(dtype).contiguous(memory_format=torch.channels_last)
    bias = torch.zeros(64, dtype=dtype)
    benchmark.extra_info |= {"dtype": str(dtype), "threads": THREADS, "macs": MACS}
    with torch.no_grad():
        benchmark(lambda: F.conv2d(x, weight, bias, padding=1).relu_())
