"""Whole networks, converted and float, on one 192x192 image. Each converted one first proves equal to the integer reference."""

from __future__ import annotations

import functools
import time
from statistics import median

import pytest
import torch
from baselines import BASELINES, require
from onnx_baselines import RUNTIMES, onnx_bytes
from shared import shared_path
from turns import THREADS

from adabm_kernels import ConvertConfig, convert_model, load
from adabm_kernels.models import builtin_models
from adabm_kernels.networks.checkpoints import load_state

SIZE = 192
NETWORKS = ("edsr_baseline_x4", "edsr_r8f64_x2", "srresnet_r8f64_x4")


def photo(n: int = 1) -> torch.Tensor:
    """Smooth random colours with some grain, float32 [n, 3, SIZE, SIZE] in 0..255. Benchmarks fix the bits, because the image
    offset of such a picture is chance."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, SIZE // 8, SIZE // 8, generator=g)
    smooth = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic")
    return (smooth * 230 + torch.rand(n, 3, SIZE, SIZE, generator=g) * 25).clamp(0, 255).contiguous()


@functools.cache
def network(name: str, bits: int) -> torch.nn.Module:
    if name == "builtin":
        model = load(builtin_models()[f"edsr_x4_w{bits}a{bits}"])
    else:
        weights = load_state(shared_path("data", "weights", f"{name}.pt"))
        model = convert_model(weights, [photo()], ConvertConfig(weight_bits=bits, act_bits=bits))
    model.set_depth("full")  # rivals compute every block too; benchmarks/quality/depth.py measures what leaving blocks out saves
    return model


@functools.cache
def float_network(name: str) -> torch.nn.Module:
    return network(name, 4).float_model()


def check(model: torch.nn.Module) -> None:
    """Compares the CPU kernels with the integer reference on a crop."""
    crop = photo()[:, :, :24, :30].contiguous()
    got = model(crop)
    model.set_backend("reference")
    want = model(crop)
    model.set_backend("cpu")
    assert torch.equal(got, want)


@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("name", ["builtin", *NETWORKS])
def bench_converted(benchmark, name: str, bits: int) -> None:
    benchmark.group = f"{name} {SIZE}x{SIZE}"
    model = network(name, bits)
    model.set_threads(THREADS)
    model.set_bits(bits)
    check(model)
    x = photo()
    benchmark.extra_info |= {"bits": bits, "threads": THREADS, "backend": model.backend_summary()}
    benchmark.pedantic(lambda: model(x), rounds=15, warmup_rounds=2)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("name", ["builtin", *NETWORKS])
def bench_float(benchmark, name: str, baseline: str) -> None:
    benchmark.group = f"{name} {SIZE}x{SIZE}"
    require(baseline)
    forward = BASELINES[baseline](network(name, 4).float_model())
    x = photo()
    benchmark.extra_info |= {"baseline": baseline, "threads": THREADS}
    with torch.no_grad():
        benchmark.pedantic(lambda: forward(x), rounds=7, warmup_rounds=2)


RIVALS = [
    pytest.param(runtime, int8, collapsed, id=f"{runtime}-{'int8' if int8 else 'float32'}{'-collapsed_tail' if collapsed else ''}")
    for runtime in RUNTIMES
    for int8, collapsed in ((False, False), (True, False), (True, True))
]


@pytest.mark.parametrize("runtime, int8, collapsed", RIVALS)
@pytest.mark.parametrize("name", NETWORKS)
def bench_runtime(benchmark, name: str, runtime: str, int8: bool, collapsed: bool) -> None:
    """Times ONNX Runtime and OpenVINO, and skips those that are not installed."""
    pytest.importorskip("onnx")
    pytest.importorskip(runtime)
    benchmark.group = f"{name} {SIZE}x{SIZE}"
    model, x = float_network(name), photo()
    if collapsed and not hasattr(model.spec, "tail"):
        pytest.skip("its upsampler has activations and does not collapse")
    forward = RUNTIMES[runtime](onnx_bytes(model, SIZE, int8, collapsed), THREADS)
    with torch.no_grad():
        error = (forward(x) - model(x)).abs().mean()
    assert error < (8 if int8 else 1e-2 if not collapsed else 1)  # in grey levels: the same network, not tuned
    benchmark.extra_info |= {"runtime": runtime, "int8": int8, "collapsed": collapsed, "threads": THREADS}
    benchmark.pedantic(lambda: forward(x), rounds=15, warmup_rounds=2)


@pytest.mark.parametrize("size", [64, 128, 256, 512, 1024])
def bench_size(benchmark, size: int) -> None:
    """Times a network by size. `us_per_kilopixel` in the extra information should not depend on the size.

    A shared machine changes its speed within minutes, so that every round follows one of SIZE pixels a side, and `against_192`
    compares the two per pixel.
    """
    benchmark.group = "edsr_baseline_x4 by size"
    model = network("edsr_baseline_x4", 4)
    model.set_threads(THREADS)
    model.set_bits(4)
    x, usual, seconds = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 255, photo(), []

    def one_of_the_usual_size() -> None:
        start = time.perf_counter()
        model(usual)
        seconds.append(time.perf_counter() - start)
        model(x)  # this gives the workspace its size back

    benchmark.pedantic(lambda: model(x), setup=one_of_the_usual_size, rounds=7 if size > 512 else 25, warmup_rounds=2)
    if benchmark.stats:
        per_pixel = benchmark.stats.stats.median / size**2
        benchmark.extra_info |= {"us_per_kilopixel": per_pixel * 1e9, "against_192": per_pixel * SIZE**2 / median(seconds)}


@pytest.mark.parametrize("threads", [1, 2])
def bench_threads(benchmark, threads: int) -> None:
    benchmark.group = f"edsr_baseline_x4 {SIZE}x{SIZE} by threads"
    model = network("edsr_baseline_x4", 4)
    model.set_bits(4)
    model.set_threads(threads)
    x = photo()
    benchmark.pedantic(lambda: model(x), rounds=15, warmup_rounds=2)


@pytest.mark.parametrize("offset", [-1, 0, 1])
def bench_image_offset(benchmark, offset: int) -> None:
    """Times an easy, a middling and a hard image. They have the same pixels, and bits that are one below, at and above the base
    bits."""
    benchmark.group = f"edsr_baseline_x4 {SIZE}x{SIZE} by image offset"
    model = network("edsr_baseline_x4", 4)
    model.set_threads(THREADS)
    model.set_bits(4 + offset)
    x = photo()
    benchmark.extra_info |= {"offset": offset, "threads": THREADS}
    benchmark.pedantic(lambda: model(x), rounds=15, warmup_rounds=2)
