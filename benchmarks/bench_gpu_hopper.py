"""Kernels of compute capability 9.0: residual blocks in one piece, images of bytes, easy against hard images, several in flight.

    pytest benchmarks/bench_gpu_hopper.py --benchmark-only --benchmark-json=benchmarks/results/NAME.json

Each case first proves equal to what it is measured against. Skipped without such a card.
"""

from __future__ import annotations

import copy

import pretend
import pytest
import torch
from bench_gpu_layers import measure as measure_recorded
from bench_gpu_layers import to_card
from bench_gpu_networks import measure, photos, proven
from problems import ConvProblem, bell_codes, instantiate, set_weights

from adabm_kernels import native
from adabm_kernels.backends import cuda
from adabm_kernels.backends.structs import conv2d_args

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9 or bool(native.why_missing("cuda")),
    reason="needs a card of compute capability 9.0 and the CUDA library",
)
BLOCKS = pretend.pick([(16, 256, 256), (1, 512, 512), (8, 512, 512), (1, 128, 128)], [(1, 9, 10), (2, 8, 8)])


def block(batch: int, height: int, width: int, bits: int) -> tuple:
    """Both convolutions of a residual block of EDSR-baseline with random codes, on the card."""
    pair = []
    for i in range(2):
        settings = {"bits": (bits,) * batch, "activation": "none" if i else "relu", "residual": bool(i)}
        problem = ConvProblem("block", height, width, 64, 64, **settings)
        instance = instantiate(problem, seed=i)
        set_weights(instance, bell_codes(4, 64, 64), "signed", "auto")
        pair.append(to_card(instance, "cuda"))
    return tuple(pair)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("form", ["two layers", "one kernel"])
@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def bench_block(benchmark, shape: tuple[int, int, int], form: str, bits: int) -> None:
    benchmark.group = f"residual block {shape}, {bits} bits"
    first, second = block(*shape, bits)
    y, y_q, inner = torch.empty_like(second.residual), torch.empty_like(first.x_q), torch.empty_like(first.x_q)
    outputs = {"residual": second.residual, "out_grid": second.out_grid, "out_bits": second.out_bits, "y": y, "y_q": y_q}

    def two() -> None:
        first.layer.into(first.x_q, first.bits, y_q=inner, out_grid=second.layer.grid, out_bits=first.out_bits)
        second.layer.into(inner, first.out_bits, **outputs)

    def one() -> None:
        first.layer.into_with(second.layer, first.x_q, first.bits, first.out_bits, **outputs)

    two()
    want = y.clone()
    y.fill_(-1)
    one()
    assert torch.equal(y, want)
    n, h, w = shape
    measure_recorded(benchmark, one if form == "one kernel" else two, bits=bits, macs=2 * n * h * w * 64 * 64 * 9)


@pytest.mark.parametrize("form", ["floats, then torch", "bytes"])
@pytest.mark.parametrize("size", [256, 512])
def bench_tail(benchmark, size: int, form: str) -> None:
    """The collapsed tail of EDSR x4 to an image of bytes."""
    benchmark.group = f"tail x4, {size}x{size}"
    size = pretend.pick(size, 8)
    tail = proven("edsr_x4", "cuda").collapsed
    codes = torch.randint(0, 256, (1, size, size, 64), dtype=torch.uint8, device="cuda")
    bits = torch.full((1,), 8, dtype=torch.int32, device="cuda")
    image = torch.empty(1, 4 * size, 4 * size, 3, dtype=torch.uint8, device="cuda")
    args, held = conv2d_args(
        codes, bits, tail.weight, tail.packed, tail.alpha, tail.beta, None, None, None, None, False, "none", 4, None, None,
        border_kernels=True, y_image=image.data_ptr(),
    )  # fmt: skip

    def written() -> torch.Tensor:
        native.library("cuda").call("adabm_conv2d_cuda", args, *cuda._place(codes))
        return image

    def rounded() -> torch.Tensor:
        return tail(codes, bits)[0].clamp(0, 255).round().to(torch.uint8)

    assert torch.equal(written(), rounded())
    measure_recorded(benchmark, written if form == "bytes" else rounded)
    del held


@pytest.mark.parametrize("images", ["easy", "as they are", "hard"])
@pytest.mark.parametrize("backend", ["cuda"])
def bench_easy_and_hard(benchmark, backend: str, images: str) -> None:
    """Image offset -1, as decided, +1 for every image, by thresholds that all images are below or above."""
    benchmark.group = "edsr_x4, 1 of 512x512, by image offset"
    model = copy.deepcopy(proven("edsr_x4", backend))
    x = photos(1, 512).cuda()
    if images != "as they are":
        beyond = 1e9 if images == "easy" else -1e9
        model.measure_lower.fill_(beyond), model.measure_upper.fill_(beyond)
        assert model.image_offsets(x).item() == (-1 if images == "easy" else 1)
    model.set_backend(backend, graph=True)
    measure(benchmark, lambda: model(x), images=images, mean_bits=model.mean_bits(x).mean().item())


@pytest.mark.parametrize("flights", [1, 2, 4])
@pytest.mark.parametrize("size", [128, 256])
def bench_in_flight(benchmark, size: int, flights: int) -> None:
    """Four images, each a recorded forward, on as many streams as named: a copy of the model for each."""
    benchmark.group = f"edsr_x4, 4 times 1 of {size}x{size}, streams"
    models = [copy.deepcopy(proven("edsr_x4", "cuda")) for _ in range(flights)]
    streams = [torch.cuda.Stream() for _ in models]
    for model in models:
        model.set_backend("cuda", graph=True)
    x = photos(1, size).cuda()
    want = models[0](x)
    for model in models:
        assert torch.equal(model(x), want)

    def forward() -> None:
        for i in range(4):
            with torch.cuda.stream(streams[i % flights]):
                models[i % flights](x)

    measure(benchmark, forward, flights=flights)
