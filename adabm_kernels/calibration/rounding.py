"""Weights are rounded so that the output of their layer changes least, instead of each to its nearest level.

Columns are rounded one by one, and the columns that are still free make up for the change, by how the inputs vary together on the
calibration images (Frantar et al., "GPTQ", ICLR 2023; Hassibi and Stork, "Optimal Brain Surgeon", 1993). The layer sees its input
as it is in the quantised network. The change of the mean that is left goes into the bias. The result is plain integers, and kernels
know nothing of this. Aiming at the output of the float network for its own input instead, so that errors of earlier layers are
partly taken back, was worse: it amplifies these errors where the input hardly varies (docs/quality.md).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..quantize import weight_step
from ..simulate import SimulatedConv2d, SimulatedNetwork
from .hooks import before_each_conv

PIXELS = 12288  # pixels of the images that are looked at, several for each unknown of a row
BLOCK = 64  # columns that are rounded before the change is passed on to the others
RIDGE = 0.01  # this share of the mean square of the inputs is added to every square, which leaves inputs alone that hardly vary


def fit_rounding(model: SimulatedNetwork, batch: torch.Tensor, generator: torch.Generator) -> None:
    """Rounds the weights of the body's convolutions on the signed grid, layer by layer, with their present ranges.

    batch: float32 [N, 3, H, W] in 0..255. generator: draws the pixels that are looked at, on the CPU.
    """
    offset = model.image_offsets(batch)

    def fit(conv: SimulatedConv2d, x: torch.Tensor) -> None:
        if not conv.end:
            fit_weights(conv, conv.rounded_input(x, offset), generator)

    with before_each_conv(model, fit):
        model.trunk(batch, offset)


@torch.no_grad()
def fit_weights(conv: SimulatedConv2d, x: torch.Tensor, generator: torch.Generator) -> None:
    """Chooses the integers and the bias of a convolution on the signed grid; `conv.weight` then lies on the grid.

    x: its input on its own grid, float32 [N, C, H, W]. generator: draws the pixels that are looked at, on the CPU.
    """
    weight, seen = conv.weight.flatten(1), _patches(x, conv.kernel_size[0], generator)
    mean = seen.mean(1, keepdim=True)
    seen -= mean
    square = (seen @ seen.T / seen.shape[1]).double()
    ridge = RIDGE * square.diagonal().mean().clamp(min=2.0**-60)
    step = weight_step(conv.weight_range, conv.weight_bits, conv.weight_grid).view(-1, 1).double()
    damped = square + ridge * torch.eye(len(square), device=square.device)
    fitted = (round_columns(weight.double() / step, damped, conv.weight_bits) * step).float()
    if conv.bias is not None:
        conv.bias += ((weight - fitted) @ mean).view(-1)
    conv.weight.copy_(fitted.view_as(conv.weight))


def round_columns(aimed: torch.Tensor, square: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers of the signed grid for rows of numbers, float64 [K, M], in steps of the grid. They are chosen so that the products
    with the inputs change little.

    square: float64 [M, M], positive definite, the mean products of the inputs. Columns of large inputs come first.
    """
    order = square.diagonal().argsort(descending=True)
    left, most = aimed[:, order].clone(), 2 ** (bits - 1)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(square[order][:, order]))
    factor = torch.linalg.cholesky(inverse, upper=True)
    integers = torch.empty_like(left)
    for start in range(0, left.shape[1], BLOCK):
        stop = min(start + BLOCK, left.shape[1])
        errors = torch.empty_like(left[:, start:stop])
        for i in range(start, stop):
            integers[:, i] = left[:, i].round().clamp(-most, most - 1)
            errors[:, i - start] = error = (left[:, i] - integers[:, i]) / factor[i, i]
            left[:, i:stop] -= error[:, None] * factor[i, i:stop]
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return integers[:, order.argsort()]


def _patches(x: torch.Tensor, kernel: int, generator: torch.Generator) -> torch.Tensor:
    """The inputs that a kernel reads at some pixels, float32 [C * kernel^2, pixels]."""
    count = x.shape[0] * x.shape[2] * x.shape[3]
    chosen = torch.randperm(count, generator=generator)[:PIXELS].to(x.device)
    image, pixel = chosen // (x.shape[2] * x.shape[3]), chosen % (x.shape[2] * x.shape[3])
    found = [F.unfold(x[i : i + 1], kernel, padding=kernel // 2)[0][:, pixel[image == i]] for i in range(x.shape[0])]
    return torch.cat(found, 1)
