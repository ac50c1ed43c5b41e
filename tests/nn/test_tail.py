"""The collapsed tail: equal to the staged one to the last border pixel, and its kernels equal to the integer reference."""

from __future__ import annotations

import pytest
import torch
from problems import runnable_isas
from torch.nn import functional as F

from adabm_kernels import native
from adabm_kernels.networks.collapse import SMALLEST, collapse
from adabm_kernels.nn.conv import shuffle_order
from adabm_kernels.nn.tail import CollapsedConv2d

TAILS = {2: (2,), 3: (3,), 4: (2, 2)}


def random_tail(scale: int, channels: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    sizes = [(channels, channels * r * r) for r in TAILS[scale]] + [(channels, 3)]
    return [(torch.randn(k, c, 3, 3, generator=g) / (9 * c) ** 0.5, torch.randn(k, generator=g)) for c, k in sizes]


def staged(x: torch.Tensor, convs: list, shuffles: tuple[int, ...]) -> torch.Tensor:
    for i, (weight, bias) in enumerate(convs):
        x = F.conv2d(x, weight.double(), bias.double(), padding=1)
        x = F.pixel_shuffle(x, shuffles[i]) if i < len(shuffles) else x
    return x


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(SMALLEST, SMALLEST), (6, 9), (13, 5)])
def test_collapsed_kernels_equal_the_staged_tail_everywhere(scale: int, size: tuple[int, int]) -> None:
    convs = random_tail(scale, 4)
    tail = collapse(convs, TAILS[scale])
    x = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(1)).double()
    h, w = size
    windows = F.unfold(x, 5, padding=2).view(2, -1, h, w)
    got = torch.empty(2, 3 * scale**2, h, w, dtype=torch.float64)
    for y in range(h):
        for z in range(w):
            i, j = (p if p < 2 else max(2, p + 5 - n) for p, n in ((y, h), (z, w)))
            got[:, :, y, z] = windows[:, :, y, z] @ tail.weight[i, j].reshape(3 * scale**2, -1).T + tail.bias[i, j]
    want = staged(x, convs, TAILS[scale])
    # float64 sums of at most 2 * 25 * 4 * 64 terms of size about 1
    assert (F.pixel_shuffle(got, scale) - want).abs().max() < 1e-11


@pytest.mark.parametrize("isa", runnable_isas())
@pytest.mark.parametrize("size", [(SMALLEST, SMALLEST), (6, 31)])
def test_kernels_by_border_class_equal_the_reference(isa: str, size: tuple[int, int]) -> None:
    conv = CollapsedConv2d(collapse(random_tail(4, 12), (2, 2)), -1.5, 2.0, torch.tensor([1.0, 2.0, 3.0]))
    x_q = torch.randint(0, 256, (2, *size, 12), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    bits = torch.full((2,), 8, dtype=torch.int32)
    for out in ("acc", "float"):
        conv.set_backend("reference", 1)
        want, _ = conv(x_q, bits, out=out)
        conv.set_backend("cpu", 2)
        with native.force_isa(isa):
            assert torch.equal(conv(x_q, bits, out=out)[0], want)


def test_eight_bit_weights_stay_within_their_rounding() -> None:
    convs = random_tail(4, 8)
    tail = collapse(convs, (2, 2))
    lower, upper, shift = -2.0, 2.0, torch.tensor([10.0, 20.0, 30.0])
    conv = CollapsedConv2d(tail, lower, upper, shift)
    codes = torch.randint(0, 256, (1, 7, 8, 8), generator=torch.Generator().manual_seed(3))
    x = lower + (upper - lower) / 255 * codes.double()
    want = staged(x.permute(0, 3, 1, 2), convs, (2, 2)) + shift.view(1, 3, 1, 1)
    got, _ = conv(codes.to(torch.uint8), torch.tensor([8], dtype=torch.int32))
    # Each of the 200 weights is off by at most half a step of its output's scale; |x| <= 2. Float32 adds 1e-4 at most.
    step = tail.weight.abs().amax((0, 1, 3, 4, 5))[shuffle_order(48, 4)] / 127
    bound = 200 * 0.5 * step.max() * 2 + 1e-4
    error = (got.permute(0, 3, 1, 2) - want).abs().max()
    assert 0 < error < bound


def test_an_image_smaller_than_the_kernel_is_refused() -> None:
    conv = CollapsedConv2d(collapse(random_tail(2, 4), (2,)), -1.0, 1.0, torch.zeros(3))
    with pytest.raises(RuntimeError, match="must be at least 5x5, got 4x9"):
        conv(torch.zeros(1, 4, 9, 4, dtype=torch.uint8), torch.tensor([8], dtype=torch.int32))
