"""Whole networks on a GPU, by size, batch and bits: the backends that run there, float16 eager and compiled, and the simulated
model.

    pytest benchmarks/gpu/bench_gpu_networks.py --benchmark-only --benchmark-json=benchmarks/results/NAME.json

A time is that of REPLAYS forward passes and the wait for them. The extra information has the most memory that torch held beyond the
model and its input, both during the first passes, which compile and record, and after them. Each converted network first proves
equal to the integer reference on a crop. Skipped without a GPU.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import pretend
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adabm_kernels import ConvertConfig, convert_model
from adabm_kernels.calibrate import calibrate
from adabm_kernels.networks.edsr import EDSR, EDSRSpec
from adabm_kernels.networks.rdn import RDN, RDNSpec
from adabm_kernels.networks.srresnet import SRResNet, SRResNetSpec
from adabm_kernels.nn import ConvertedNetwork
from adabm_kernels.nn.conv import IntegerConv2d
from adabm_kernels.registry import GPU_BACKENDS, Problem, choose

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
REPLAYS, ROUNDS = 5, 15
CASES = [
    *(("edsr_x4", size, batch) for size in (128, 256, 512, 1024) for batch in (1, 8)),
    *(("rdn_b_x4", size, batch) for size in (128, 256, 512) for batch in (1, 8) if size * batch <= 2048),
]
case = pytest.mark.parametrize(("name", "size", "batch"), CASES)


def photos(batch: int, size: int) -> torch.Tensor:
    """Smooth random colours with some grain, in 0..255."""
    batch, size = pretend.pick((batch, size), (min(batch, 2), 16))
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, size // 8, size // 8, generator=g)
    smooth = F.interpolate(coarse, scale_factor=8, mode="bicubic")
    return (smooth * 230 + torch.rand(batch, 3, size, size, generator=g) * 25).clamp(0, 255)


@functools.cache
def converted(name: str) -> ConvertedNetwork:
    """EDSR-baseline x4, RDN-B x4 (D=16, C=8, G=64) or SRResNet x4 with random weights, which take as long as any others."""
    torch.manual_seed(0)
    blocks, layers = pretend.pick((16, 8), (2, 2))  # the whole RDN-B takes minutes to calibrate and plan
    if name == "edsr_x4":
        model = EDSR(EDSRSpec(scale=4, blocks=blocks, channels=64))
    elif name == "rdn_b_x4":
        model = RDN(RDNSpec(scale=4, blocks=blocks, layers=layers, channels=64, growth=64))
    else:
        model = SRResNet(SRResNetSpec(scale=4, blocks=blocks, channels=64))
    settings = ConvertConfig(recipe="paper", steps=0, bit_aware_clipping=False, batch=1)
    return convert_model(model, [photos(1, 48)], settings)


NETWORKS = ("edsr_x4", "rdn_b_x4", "srresnet_x4")


def layers_of_networks() -> list[IntegerConv2d]:
    """The integer convolutions of all networks that can be built here."""
    return [conv for name in NETWORKS for conv in converted(name).convs()]


def proven(name: str, backend: str) -> ConvertedNetwork:
    """The network on the card and on this backend, after it has proved equal to the reference on a crop. Skips where the backend
    cannot run."""
    try:
        choose(Problem("cuda"), backend)
    except RuntimeError as error:
        pytest.skip(str(error))
    model = _proven(name, backend)
    model.set_backend(backend)  # all backends share this model, which may be set to another one
    return model


@functools.cache
def _proven(name: str, backend: str) -> ConvertedNetwork:
    return prove(converted(name).cuda(), backend)


def prove(model: ConvertedNetwork, backend: str) -> ConvertedNetwork:
    """Sets a network on the card to this backend and returns it. Raises AssertionError where a crop differs from the reference."""
    x = photos(2, 24).cuda() * torch.tensor([0.1, 1.0], device="cuda").view(2, 1, 1, 1)
    model.set_bits("auto")
    model.set_backend("reference", graph=False)
    want = model(x)
    model.set_backend(backend)
    assert torch.equal(model(x), want)
    return model


def several(forward: Callable[[], object]) -> None:
    """Runs what one measurement times: REPLAYS forward passes and the wait for them."""
    for _ in range(pretend.pick(REPLAYS, 1)):
        forward()
    torch.cuda.synchronize()


def forward_milliseconds(forward: Callable[[], object]) -> float:
    """Milliseconds of one forward pass: the median of ROUNDS measurements, after three that do not count."""
    times = []
    for _ in range(pretend.pick(ROUNDS, 1) + 3):
        start = time.perf_counter()
        several(forward)
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:]) / pretend.pick(REPLAYS, 1) * 1e3


def measure(benchmark, forward: Callable[[], object], **facts: object) -> None:
    rounds = functools.partial(several, forward)
    before, peaks = torch.cuda.memory_allocated(), []
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        rounds()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    card = torch.cuda.get_device_properties(0)
    benchmark.extra_info |= {"gpu": card.name, "compute_capability": f"{card.major}.{card.minor}", "replays": REPLAYS}
    benchmark.extra_info |= dict(zip(("first_peak_bytes", "peak_bytes"), peaks, strict=True)) | facts
    benchmark.pedantic(rounds, rounds=pretend.pick(ROUNDS, 1), warmup_rounds=pretend.pick(2, 0))


def group_of(name: str, size: int, batch: int) -> str:
    return f"{name}, {batch} of {size}x{size}"


@case
@pytest.mark.parametrize("bits", ["auto", 8, 6, 4, 2])
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def bench_converted(benchmark, backend: str, bits: str | int, name: str, size: int, batch: int) -> None:
    """Times the network recorded as a CUDA graph. "auto" includes the decision about bits; with fixed bits the image is not
    measured."""
    benchmark.group = group_of(name, size, batch)
    model, x = proven(name, backend), photos(batch, size).cuda()
    model.set_backend(backend, graph=True)
    model.set_bits(bits)
    measure(benchmark, lambda: model(x), backend=backend, bits=bits, mean_bits=model.mean_bits(x).mean().item())
    model.set_backend(backend, graph=False)


@case
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def bench_decision(benchmark, backend: str, name: str, size: int, batch: int) -> None:
    """Times the image measure and the bits of all layers alone, launched anew each time, for comparison with the time of a forward
    pass."""
    benchmark.group = group_of(name, size, batch)
    model, x = proven(name, backend), photos(batch, size).cuda()
    model.set_bits("auto")
    measure(benchmark, lambda: model._bit_table(x, learn=False), backend=backend)


@case
@pytest.mark.parametrize("mode", ["eager", "max-autotune"])
def bench_float16(benchmark, mode: str, name: str, size: int, batch: int) -> None:
    """Times the float network in float16, channels_last: by cuDNN, and by torch.compile with CUDA graphs."""
    benchmark.group = group_of(name, size, batch)
    x = photos(batch, size).cuda().to(torch.float16, memory_format=torch.channels_last)
    with torch.no_grad():
        forward = in_float16(float_model(name), mode)
        measure(benchmark, lambda: forward(x), mode=mode)


def in_float16(model: nn.Module, mode: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The float network on the card in float16, channels_last: "eager", or compiled in a mode of torch.compile."""
    model = model.cuda().to(torch.float16, memory_format=torch.channels_last)
    torch.backends.cudnn.benchmark = True
    return model if mode == "eager" else torch.compile(model, mode=mode)


def float_model(name: str) -> nn.Module:
    return converted(name).float_model().eval()


@pytest.mark.parametrize(("name", "size", "batch"), [("edsr_x4", 256, 1), ("rdn_b_x4", 128, 1)])
def bench_simulated(benchmark, name: str, size: int, batch: int) -> None:
    """Times the published form: quantisation simulated on floats, in eager float32."""
    benchmark.group = group_of(name, size, batch)
    settings = ConvertConfig(recipe="paper", steps=0, bit_aware_clipping=False, batch=1)
    model = calibrate(float_model(name), [photos(1, 48)], settings).cuda()
    x = photos(batch, size).cuda()
    with torch.no_grad():
        measure(benchmark, lambda: model(x))
