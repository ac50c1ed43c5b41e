"""The work of the host around the kernels: operators of one layer as a network calls them, and whole forward passes, on 8x8 pixels,
where kernels have little to do. `kernel` is the kernel of the layer alone, whose struct is filled in beforehand.

Times are the processor time of one thread (OMP_NUM_THREADS=1), because a wall clock would include other work on the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from bench_network import network
from problems import ConvProblem, instantiate

from adabm_kernels import native, ops
from adabm_kernels.backends.call import Outputs
from adabm_kernels.backends.structs import conv2d_args
from adabm_kernels.quantize import act_grid

pytestmark = pytest.mark.benchmark(timer=time.thread_time)
SIDE = 8
LAYER = ConvProblem("body", SIDE, SIDE, 64, 64, bits=(4,), residual=True)


def operators() -> dict[str, Callable[[], object]]:
    instance = instantiate(LAYER)
    layer = instance.layer
    layer.set_backend("cpu", 1)
    x_q, bits, residual = instance.x_q, instance.bits, instance.residual
    y, y_q, image = torch.empty_like(residual), torch.empty_like(x_q), torch.empty_like(x_q)
    grid = {"out_grid": instance.out_grid, "out_bits": instance.out_bits}
    features, codes, codes_grid = residual.permute(0, 3, 1, 2), torch.empty_like(x_q), act_grid(-2.0, 3.0)
    conv = instance.conv("cpu")
    struct, held = conv2d_args(conv, Outputs(y, y_q), isa=native.isa(), threads=1)
    return {
        "kernel": lambda held=held: native.library("cpu").call("adabm_conv2d_cpu", struct),
        "conv2d_out": lambda: layer.into(x_q, bits, y=y, y_q=y_q, residual=residual, **grid),
        "conv2d": lambda: layer(x_q, bits, residual=residual, out="both", **grid),
        "conv2d_pixels_out": lambda: layer.pixels_into(x_q, bits, image, residual=residual),
        "quantize_out": lambda: ops.quantize_out(features, codes_grid, bits, codes, threads=1),
        "quantize": lambda: ops.quantize(features, codes_grid, bits, threads=1),
    }


@pytest.mark.parametrize("name", ["kernel", "conv2d_out", "conv2d", "conv2d_pixels_out", "quantize_out", "quantize"])
def bench_operator(benchmark, name: str) -> None:
    benchmark.group = f"host: one layer of 64 channels, {SIDE}x{SIDE}"
    benchmark.pedantic(operators()[name], rounds=200, iterations=20, warmup_rounds=5)


@pytest.mark.parametrize("name, bits", [("builtin", 4), ("builtin", 6)])
def bench_forward(benchmark, name: str, bits: int) -> None:
    benchmark.group = f"host: forward of {SIDE}x{SIDE}"
    model, x = network(name, bits), torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 255
    model.set_threads(1)
    benchmark.pedantic(lambda: model(x), rounds=100, iterations=3, warmup_rounds=5)
