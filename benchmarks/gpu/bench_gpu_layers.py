"""Single layers on a GPU: every backend that can run there beside cuDNN float16, with the card's ceilings in the same run.

    pytest benchmarks/gpu/bench_gpu_layers.py --benchmark-only --benchmark-json=benchmarks/results/NAME.json

Everything is recorded in a CUDA graph and a measurement is REPLAYS of it, so that launches of neither side are timed. Each integer
case first proves equal to the integer reference. Skipped without a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pretend
import pytest
import torch
from problems import ConvInstance, ConvProblem, bell_codes, instantiate, set_weights
from torch.nn import functional as F

from adabm_kernels.quantize import pack_codes, unpack_codes
from adabm_kernels.registry import GPU_BACKENDS, Problem, choose
from adabm_kernels.tuning import gpu as tune_gpu

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
REPLAYS = tune_gpu.REPLAYS
SHAPES = {  # by name: batch, height, width, channels, outputs, kernel
    "64->64 3x3, 16 of 256x256": (16, 256, 256, 64, 64, 3),
    "64->64 3x3, 1 of 512x512": (1, 512, 512, 64, 64, 3),
    "256->256 3x3, 1 of 256x256": (1, 256, 256, 256, 256, 3),
    "576->64 1x1, 1 of 256x256": (1, 256, 256, 576, 64, 1),
    "3->64 9x9, 1 of 512x512": (1, 512, 512, 3, 64, 9),
}


def shape_of(name: str) -> tuple[int, ...]:
    """The sizes of one of SHAPES. In a dry run they are those of one tiny image."""
    n, h, w, *rest = SHAPES[name]
    return pretend.pick((n, h, w, *rest), (1, 11, 12, *rest))


def device_facts() -> dict[str, object]:
    p = torch.cuda.get_device_properties(0)
    facts = {"gpu": p.name, "compute_capability": f"{p.major}.{p.minor}", "multiprocessors": p.multi_processor_count}
    return facts | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def recorded(work: Callable[[], object]) -> Callable[[], None]:
    """Records REPLAYS runs of `work` as a graph. The result is a function that replays them and waits for their end."""
    return tune_gpu.recorded(work, pretend.pick(3, 1))


def milliseconds(work: Callable[[], object], rounds: int = 20) -> float:
    """Milliseconds of one run of `work`, recorded: the median of `rounds` measurements, after three that do not count."""
    return tune_gpu.milliseconds(work, pretend.pick(rounds, 1))


def measure(benchmark, work: Callable[[], object], **facts: object) -> None:
    replay = recorded(work)
    benchmark.extra_info |= device_facts() | {"replays": REPLAYS} | facts
    benchmark.pedantic(replay, rounds=pretend.pick(20, 1), warmup_rounds=pretend.pick(3, 0))


def needs(backend: str) -> None:
    try:
        choose(Problem("cuda"), backend)
    except RuntimeError as error:
        pytest.skip(str(error))


# ---- the card's ceilings


def copying() -> tuple[Callable[[], object], int]:
    """Returns two values: a copy far larger than any cache, and the bytes that it reads and writes."""
    source = torch.empty(pretend.pick(1 << 30, 1 << 10), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * source.numel()


MATRICES = ("int8", "float16")


def multiplying(kind: str) -> tuple[Callable[[], object], int]:
    """Returns two values: a product of square matrices of one of MATRICES by cuBLAS, and its multiply-accumulates."""
    n = pretend.pick(8192, 32)
    if kind == "int8":
        a, b = (torch.randint(-8, 8, (n, n), dtype=torch.int8, device="cuda") for _ in range(2))
        return lambda: torch._int_mm(a, b.t()), n**3
    a, b = (torch.randn(n, n, dtype=torch.float16, device="cuda") for _ in range(2))
    return lambda: a @ b.t(), n**3


@pytest.mark.benchmark(group="ceilings")
def bench_copy(benchmark) -> None:
    """Times a copy. Bytes read and written a second are bytes / time."""
    work, count = copying()
    measure(benchmark, work, bytes=count)


@pytest.mark.benchmark(group="ceilings")
@pytest.mark.parametrize("kind", MATRICES)
def bench_matrix(benchmark, kind: str) -> None:
    """Times cuBLAS on square matrices, which gives the card's multiply-accumulates a second."""
    work, macs = multiplying(kind)
    measure(benchmark, work, macs=macs)


# ---- one layer


def layer(shape: str, bits: int, side: int | None = None) -> ConvInstance:
    """A layer with ReLU and codes out. Kernels of 3x3 have 4-bit weights on the signed grid. side: the side of one smaller image,
    None for the images of SHAPES."""
    n, h, w, c, k, r = shape_of(shape)
    n, h, w = (1, side, side) if side else (n, h, w)
    problem = ConvProblem(shape, h, w, c, k, r, bits=(bits,) * n, activation="relu")
    instance = instantiate(problem)
    if r == 3:
        set_weights(instance, bell_codes(4, k, c), "signed", "auto")
    return instance


def to_card(instance: ConvInstance, backend: str) -> ConvInstance:
    """The instance with its tensors on the card and its codes packed."""
    moved = {name: None if t is None else t.cuda() for name, t in vars(instance).items() if name != "layer"}
    instance.layer.cuda().set_backend(backend, 0)
    instance.layer.packed_codes = True
    card = ConvInstance(instance.layer, **moved)
    card.x_q = pack_codes(card.x_q, card.bits)
    return card


def prove(shape: str, backend: str, bits: int) -> None:
    """Raises AssertionError where the layer, on a smaller image, differs from the reference."""
    small = layer(shape, bits, side=21)
    want = small.run("reference", "codes")[1]
    small = to_card(small, backend)
    _, got = small.layer(small.x_q, small.bits, out="codes", out_grid=small.out_grid, out_bits=small.out_bits)
    assert torch.equal(unpack_codes(got.cpu(), small.out_bits.cpu()), want)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def bench_integer_layer_gpu(benchmark, shape: str, backend: str, bits: int) -> None:
    needs(backend)
    benchmark.group = f"conv2d {shape}"
    prove(shape, backend, bits)
    card = to_card(layer(shape, bits), backend)
    n, h, w, c, k, r = shape_of(shape)
    y_q = torch.empty(n, h, w, k, dtype=torch.uint8, device="cuda")
    work = functools.partial(card.layer.into, card.x_q, card.bits, y_q=y_q, out_grid=card.out_grid, out_bits=card.out_bits)
    measure(benchmark, work, bits=bits, backend=backend, macs=n * h * w * c * k * r * r)


def cudnn_layer(shape: str) -> Callable[[], object]:
    """The layer by cuDNN in float16, channels_last, with bias and ReLU as PyTorch runs them."""
    n, h, w, c, k, r = shape_of(shape)
    half = {"dtype": torch.float16, "device": "cuda"}
    x = torch.randn(n, c, h, w, **half).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(k, c, r, r, **half).contiguous(memory_format=torch.channels_last)
    bias = torch.zeros(k, **half)
    torch.backends.cudnn.benchmark = True

    @torch.no_grad()
    def work() -> torch.Tensor:
        return F.conv2d(x, weight, bias, padding=r // 2).relu_()

    return work


@pytest.mark.parametrize("shape", SHAPES)
def bench_cudnn_layer(benchmark, shape: str) -> None:
    benchmark.group = f"conv2d {shape}"
    n, h, w, c, k, r = shape_of(shape)
    measure(benchmark, cudnn_layer(shape), macs=n * h * w * c * k * r * r)
