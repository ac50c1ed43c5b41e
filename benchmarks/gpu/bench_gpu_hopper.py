"""Kernels of compute capability 9.0: residual blocks in one piece, sizes of tiles, images of bytes, easy images, several in flight.

    pytest benchmarks/gpu/bench_gpu_hopper.py --benchmark-only --benchmark-json=benchmarks/results/NAME.json

Each case first proves equal to what it is measured against. Skipped without such a card.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pretend
import pytest
import torch
from bench_gpu_layers import measure as measure_recorded
from bench_gpu_layers import to_card
from bench_gpu_networks import measure, photos, proven
from problems import ConvProblem, bell_codes, instantiate, set_weights

from adabm_kernels import native, ops
from adabm_kernels.backends import cuda
from adabm_kernels.backends.call import Conv, Outputs
from adabm_kernels.backends.structs import conv2d_args
from adabm_kernels.quantize import act_grid, to_pixels

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9 or bool(native.why_missing("cuda")),
    reason="needs a card of compute capability 9.0 and the CUDA library",
)
BLOCKS = pretend.pick([(16, 256, 256), (1, 512, 512), (8, 512, 512), (1, 128, 128)], [(1, 9, 10), (2, 8, 8)])


def block(batch: int, height: int, width: int, bits: int) -> tuple:
    """Both convolutions of a residual block of EDSR-baseline, with random codes on the card."""
    pair = []
    for i in range(2):
        settings = {"bits": (bits,) * batch, "activation": "none" if i else "relu", "residual": bool(i)}
        problem = ConvProblem("block", height, width, 64, 64, **settings)
        instance = instantiate(problem, seed=i)
        set_weights(instance, bell_codes(4, 64, 64), "signed", "auto")
        pair.append(to_card(instance, "cuda"))
    return tuple(pair)


def block_forms(first, second) -> dict[str, Callable[[], None]]:
    """The convolutions of `block` as two calls and as one, which are proven equal. Where the card has no kernel for the block,
    there are only the two calls."""
    y, y_q, inner = torch.empty_like(second.residual), torch.empty_like(first.x_q), torch.empty_like(first.x_q)
    outputs = {"residual": second.residual, "out_grid": second.out_grid, "out_bits": second.out_bits, "y": y, "y_q": y_q}

    def two() -> None:
        first.layer.into(first.x_q, first.bits, y_q=inner, out_grid=second.layer.grid, out_bits=first.out_bits)
        second.layer.into(inner, first.out_bits, **outputs)

    def one() -> None:
        first.layer.into_with(second.layer, first.x_q, first.bits, first.out_bits, **outputs)

    two()
    if first.layer.why_not_with(second.layer):
        return {"two layers": two}
    want = y.clone()
    y.fill_(-1)
    one()
    assert torch.equal(y, want)
    return {"two layers": two, "one kernel": one}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("form", ["two layers", "one kernel"])
@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def bench_block(benchmark, shape: tuple[int, int, int], form: str, bits: int) -> None:
    benchmark.group = f"residual block {shape}, {bits} bits"
    n, h, w = shape
    forms = block_forms(*block(*shape, bits))
    measure_recorded(benchmark, forms[form], bits=bits, macs=2 * n * h * w * 64 * 64 * 9)


def configured(layer, config: int, *tensors: torch.Tensor | None, **settings) -> tuple[native.Conv2dArgs, list]:
    """The arguments of one convolution in a configuration. tensors: x_q, bits, residual, out_grid, out_bits, y and y_q."""
    x_q, bits, residual, out_grid, out_bits, y, y_q = tensors
    tables = (layer.weight, layer.packed, layer.alpha, layer.beta, None)
    conv = Conv(x_q, bits, *tables, residual, out_grid, out_bits, layer.box_filter, layer.activation, 1)
    return conv2d_args(conv, Outputs(y, y_q), config=config, **settings)


def named(kernel: str, config: int) -> str:
    row = native.kernel_configs(kernel)[config - 1]
    return "{tile_width}x{tile_height}, {stages} stages".format(**row) + (", tensor copies" if row["tensor_copies"] else "")


def numbers(kernel: str) -> range:
    """The numbers of the configurations of a kernel, from 1 on. There are none where the library was not built, since all cases are
    then skipped."""
    return range(1, 1 if native.why_missing("cuda") else len(native.kernel_configs(kernel)) + 1)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("config", numbers("resblock"))
@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def bench_block_config(benchmark, shape: tuple[int, int, int], config: int, bits: int) -> None:
    """Times tiles of each size, which show the cost of the halo that is computed twice (csrc/cuda/conv2d_configs.cuh)."""
    benchmark.group = f"residual block {shape}, {bits} bits, by tile"
    first, second = block(*shape, bits)
    y, y_q, inner = torch.empty_like(second.residual), torch.empty_like(first.x_q), torch.empty_like(first.x_q)
    first.layer.into(first.x_q, first.bits, y_q=inner, out_grid=second.layer.grid, out_bits=first.out_bits)
    second.layer.into(inner, first.out_bits, residual=second.residual, y=y)
    want = y.clone()
    between = (None, second.layer.grid, first.out_bits, None, None)
    a, held_a = configured(first.layer, config, first.x_q, first.bits, *between, packed_codes=native.PACKED_X)
    outputs = (second.residual, second.out_grid, second.out_bits, y.fill_(-1), y_q)
    b, held_b = configured(second.layer, 0, first.x_q, first.out_bits, *outputs, packed_codes=native.PACKED_Y)
    b.x_q, b.x_bits = None, a.out_bits

    def one() -> None:
        native.library("cuda").call("adabm_resblock_cuda", a, b, *cuda._place(first.x_q))

    one()
    assert torch.equal(y, want)
    n, h, w = shape
    measure_recorded(benchmark, one, bits=bits, macs=2 * n * h * w * 64 * 64 * 9, config=named("resblock", config))
    del held_a, held_b


LAYERS = {"resident": (64, 64), "staged": (256, 64)}  # channels, outputs


@pytest.mark.parametrize("kernel, config", [(kernel, i) for kernel in LAYERS for i in numbers(kernel)])
@pytest.mark.parametrize("shape", BLOCKS[:2], ids=str)
def bench_layer_config(benchmark, shape: tuple[int, int, int], kernel: str, config: int) -> None:
    """Times one layer, codes to codes, in tiles of each size."""
    channels, outputs = LAYERS[kernel]
    benchmark.group = f"{channels}->{outputs} 3x3 {shape}, by tile"
    n, h, w = shape
    layer = to_card(instantiate(ConvProblem("layer", h, w, channels, outputs, bits=(8,) * n, activation="relu")), "cuda")
    y_q = torch.empty(n, h, w, outputs, dtype=torch.uint8, device="cuda")
    layer.layer.into(layer.x_q, layer.bits, y_q=y_q, out_grid=layer.out_grid, out_bits=layer.out_bits)
    want = y_q.clone()
    args, held = configured(layer.layer, config, layer.x_q, layer.bits, None, layer.out_grid, layer.out_bits, None, y_q.fill_(171))

    def one() -> None:
        native.library("cuda").call("adabm_conv2d_cuda", args, *cuda._place(layer.x_q))

    one()
    assert torch.equal(y_q, want)
    measure_recorded(benchmark, one, bits=8, macs=n * h * w * channels * outputs * 9, config=named(kernel, config))
    del held


@pytest.mark.parametrize("form", ["floats, then torch", "bytes"])
@pytest.mark.parametrize("size", [256, 512])
def bench_tail(benchmark, size: int, form: str) -> None:
    """Times the collapsed tail of EDSR x4 to an image of bytes."""
    benchmark.group = f"tail x4, {size}x{size}"
    size = pretend.pick(size, 8)
    tail = proven("edsr_x4", "cuda").collapsed
    codes = torch.randint(0, 256, (1, size, size, 64), dtype=torch.uint8, device="cuda")
    bits = torch.full((1,), 8, dtype=torch.int32, device="cuda")

    def written() -> torch.Tensor:
        return tail.pixels(codes, bits)

    def rounded() -> torch.Tensor:
        return to_pixels(tail(codes, bits)[0])

    assert torch.equal(written(), rounded())
    measure_recorded(benchmark, written if form == "bytes" else rounded)


@pytest.mark.parametrize("form", ["one by one", "all at once"])
@pytest.mark.parametrize("readers", [2, 8])
def bench_quantize_many(benchmark, readers: int, form: str) -> None:
    """Times the quantisation of the features of an RDN layer to codes for the layers that read them."""
    benchmark.group = f"64 features of 256x256 on {readers} grids"
    x = torch.randn(1, 64, 256, 256, device="cuda").contiguous(memory_format=torch.channels_last)
    grids = [act_grid(-1.0 - i, 2.0).cuda() for i in range(readers)]
    bits = [torch.full((1,), 8, dtype=torch.int32, device="cuda") for _ in range(readers)]
    one, many = ([torch.zeros(1, 256, 256, 64, dtype=torch.uint8, device="cuda") for _ in range(readers)] for _ in range(2))

    def one_by_one() -> None:
        for grid, own_bits, y_q in zip(grids, bits, one, strict=True):
            ops.quantize_out(x, grid, own_bits, y_q, backend="cuda")

    def at_once() -> None:
        ops.quantize_many_out(x, grids, bits, many, backend="cuda")

    one_by_one(), at_once()
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))
    measure_recorded(benchmark, one_by_one if form == "one by one" else at_once, readers=readers)


@pytest.mark.parametrize("images", ["easy", "as they are", "hard"])
@pytest.mark.parametrize("backend", ["cuda"])
def bench_easy_and_hard(benchmark, backend: str, images: str) -> None:
    """Times image offset -1, the decided offset, and +1 for every image, by thresholds that lie above or below all images."""
    benchmark.group = "edsr_x4, 1 of 512x512, by image offset"
    model = copy.deepcopy(proven("edsr_x4", backend))
    x = photos(1, 512).cuda()
    if images != "as they are":
        beyond = 1e9 if images == "easy" else -1e9
        model.measure_lower.fill_(beyond), model.measure_upper.fill_(beyond)
        assert model.image_offsets(x).item() == (-1 if images == "easy" else 1)
    model.set_backend(backend, graph=True)
    measure(benchmark, lambda: model(x), images=images, mean_bits=model.mean_bits(x).mean().item())


@pytest.mark.parametrize("in_flight", [1, 2, 4])
@pytest.mark.parametrize("size", [128, 256])
def bench_in_flight(benchmark, size: int, in_flight: int) -> None:
    """Times four single-image batches, recorded, on as many streams as named (`forward_many`)."""
    benchmark.group = f"edsr_x4, 4 times 1 of {size}x{size}, in flight"
    model = copy.deepcopy(proven("edsr_x4", "cuda"))
    model.set_backend("cuda", graph=True)
    x = photos(1, size).cuda()
    want = model(x)

    def forward() -> list[torch.Tensor]:
        return list(model.forward_many([x] * 4, in_flight))

    assert all(torch.equal(y, want) for y in forward())
    measure(benchmark, forward, in_flight=in_flight)
