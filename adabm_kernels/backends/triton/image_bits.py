"""The image measure, and the bits that it gives every layer. Neither is copied to the host."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...image_bits import LUMA
from . import launch

RED, GREEN, BLUE = (tl.constexpr(weight / 255) for weight in LUMA)
BLOCK = 1024  # pixels of a program, and partial sums that the second kernel adds in one step


@triton.jit
def _luma(x, row, column, height, width, stride_c, stride_h, stride_w, valid):
    """Luma in 0..1 of pixels [M]; pixels outside the image take the value of the nearest one inside."""
    row = tl.minimum(tl.maximum(row, 0), height - 1)
    column = tl.minimum(tl.maximum(column, 0), width - 1)
    at = x + row * stride_h + column * stride_w
    red, green = tl.load(at, mask=valid, other=0.0), tl.load(at + stride_c, mask=valid, other=0.0)
    return red * RED + green * GREEN + tl.load(at + 2 * stride_c, mask=valid, other=0.0) * BLUE


@triton.jit(do_not_specialize=["height", "width"])
def measure_kernel(x, partial, height, width, stride_n, stride_c, stride_h, stride_w, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Fills partial [N, tiles] with the sum of the absolute Sobel gradients in both directions, times 8, over BLOCK pixels of an
    image.
    """
    tile, image = tl.program_id(0), tl.program_id(1)
    pixel = tile * BLOCK + tl.arange(0, BLOCK)
    valid = pixel < height * width
    row, column = pixel // width, pixel % width
    if WIDE:
        row, column = row.to(tl.int64), column.to(tl.int64)
    x += image.to(tl.int64) * stride_n
    across = tl.zeros((BLOCK,), tl.float32)
    down = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            if i != 1 or j != 1:
                luma = _luma(x, row + (i - 1), column + (j - 1), height, width, stride_c, stride_h, stride_w, valid)
                across += (j - 1) * (2 - (i - 1) * (i - 1)) * luma
                down += (i - 1) * (2 - (j - 1) * (j - 1)) * luma
    total = tl.sum(tl.where(valid, tl.abs(across) + tl.abs(down), 0.0), 0)
    tl.store(partial + image * tl.num_programs(0) + tile, total)


@triton.jit(do_not_specialize=["tiles", "pixels", "layers"])
def decide_kernel(partial, measure, lower, upper, rules, bits, tiles, pixels, layers, BITS: tl.constexpr, STEPS: tl.constexpr,
                  LAYERS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Fills measure [N] or, where BITS is set, bits [L, N] for one image from its partial sums."""
    image = tl.program_id(0)
    sums = tl.zeros((BLOCK,), tl.float64)
    for step in range(STEPS):
        at = step * BLOCK + tl.arange(0, BLOCK)
        sums += tl.load(partial + image * tiles + at, mask=at < tiles, other=0.0).to(tl.float64)
    found = (tl.sum(sums, 0) * 62.5 / pixels).to(tl.float32)  # 62.5 is 1000 / (2 directions * 8)
    if BITS:
        offset = (found > tl.load(upper)).to(tl.int32) - (found < tl.load(lower)).to(tl.int32)
        layer = tl.arange(0, LAYERS)
        known = layer < layers
        base, follows = tl.load(rules + 2 * layer, mask=known, other=0), tl.load(rules + 2 * layer + 1, mask=known, other=0)
        decided = tl.minimum(tl.maximum(base + follows * offset, 2), 8)
        tl.store(bits + layer * tl.num_programs(0) + image, decided, mask=known)
    else:
        tl.store(measure + image, found)


def _partial_sums(x: torch.Tensor) -> torch.Tensor:
    n, _, h, w = x.shape
    launch.check("image_measure", "x", x, h * w)
    partial = torch.empty(n, -(-h * w // BLOCK), dtype=torch.float32, device=x.device)
    reach = sum((size - 1) * abs(stride) for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    constants = {"WIDE": reach > launch.NARROW, "BLOCK": BLOCK, "num_warps": 4, "enable_fp_fusion": False}
    launch.run(measure_kernel, (partial.shape[1], n), (x, partial), (h, w, *x.stride()), **constants)
    return partial


def _decide(
    x: torch.Tensor,
    measure: torch.Tensor | None,
    rule: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    bits: torch.Tensor | None = None,
) -> None:
    """Fills measure [N], or bits [L, N] where a rule (lower, upper, rules) is given."""
    lower, upper, rules = rule or (None, None, None)
    n, _, h, w = x.shape
    with launch.on(x):
        partial = _partial_sums(x)
        tiles, layers = partial.shape[1], 1 if rules is None else rules.shape[0]
        launch.run(
            decide_kernel, (n, 1), (partial, measure, lower, upper, rules, bits), (tiles, h * w, layers), BITS=bits is not None,
            STEPS=triton.next_power_of_2(-(-tiles // BLOCK)), LAYERS=triton.next_power_of_2(layers), BLOCK=BLOCK, num_warps=4,
            enable_fp_fusion=False,
        )  # fmt: skip


def image_measure(x: torch.Tensor) -> torch.Tensor:
    """See call.Kernels. Luma, gradients and sums of 1024 pixels are computed in float32, and the sums of those sums in float64."""
    measure = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    _decide(x, measure)
    return measure


def layer_bits(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, rules: torch.Tensor) -> torch.Tensor:
    """See call.Kernels. It is two launches."""
    bits = torch.empty(rules.shape[0], x.shape[0], dtype=torch.int32, device=x.device)
    _decide(x, None, (lower, upper, rules.contiguous()), bits)
    return bits
