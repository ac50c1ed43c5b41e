"""The image measure, in torch and in numpy, and the bits that it gives an image and each of its layers."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from .quantize import MAX_BITS, MIN_BITS

LUMA = (0.299, 0.587, 0.114)
SOBEL_X = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def as_colours(x: torch.Tensor) -> torch.Tensor:
    """Images of three channels for the image measure, from images [N, C, H, W]. Where C is 3 they are returned as they are. Else
    each of the three channels is the mean of the C channels."""
    return x if x.shape[1] == 3 else x.mean(1, keepdim=True).expand(-1, 3, -1, -1).contiguous()


def image_measure(x: torch.Tensor) -> torch.Tensor:
    """How much detail each image has: the mean |Sobel gradient| of its luma over both directions and all pixels, times 1000.

    x: floats [N, 3, H, W] in 0..255. Images of a traced network may have any range and number of channels (`as_colours`), because
    thresholds are calibrated in the same units. Returns [N] of the same dtype, 0 for a flat image. Borders are replicated.
    """
    x = as_colours(x)
    luma = F.conv2d(x / 255, torch.tensor(LUMA, dtype=x.dtype).to(x.device).view(1, 3, 1, 1))
    sobel = torch.tensor(SOBEL_X, dtype=x.dtype).to(x.device) / 8
    gradients = F.conv2d(F.pad(luma, (1, 1, 1, 1), mode="replicate"), torch.stack([sobel, sobel.T]).unsqueeze(1))
    return gradients.abs().mean((1, 2, 3)) * 1000


def measure_images(x: torch.Tensor) -> torch.Tensor:
    """The image measure, float32 [N], of images [N, 3, H, W] in 0..255. It equals `image_measure` up to the rounding of sums.

    On a CPU it runs in numpy, because torch's threads keep a core busy for a while after every operation that they share. This
    slowed the kernels that follow by a third.
    """
    if x.device.type != "cpu":
        return image_measure(x)
    return torch.tensor([_measure(image) for image in x.detach().numpy()], dtype=torch.float32, device="cpu")


def _measure(image: np.ndarray) -> float:
    red, green, blue = (np.float32(weight / 255) * channel for weight, channel in zip(LUMA, image, strict=True))
    luma = np.pad(red + green + blue, 1, mode="edge")
    across, down = luma[:, 2:] - luma[:, :-2], luma[2:] - luma[:-2]
    across = across[:-2] + 2 * across[1:-1] + across[2:]
    down = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    total = np.abs(across).sum(dtype=np.float64) + np.abs(down).sum(dtype=np.float64)
    return total / (2 * across.size) / 8 * 1000


def image_offsets(measure: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """The bits that an image gets more or less, int32 [N]: -1 where its measure lies below `lower`, +1 where it lies above `upper`,
    and 0 between them and on either threshold.

    measure: [N]. lower, upper: one element each.
    """
    return (measure > upper).to(torch.int32) - (measure < lower).to(torch.int32)


def soft_image_offsets(measure: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """`image_offsets` as floats whose gradient is that of a tanh through both thresholds (AdaBM, section 3.3).

    Thresholds that coincide would make the tanh infinitely steep, so their distance counts as at least 1e-3 of the measure.
    """
    half = torch.clamp((upper - lower) / 2, min=1e-3)
    soft = torch.tanh((measure - (upper + lower) / 2) / half)
    return soft - soft.detach() + image_offsets(measure, lower, upper).to(soft.dtype)


def bits_by_rule(rules: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """The bits of each layer's codes for each image, int32 [L, N]: clamp(base + follows * offset, 2, 8).

    rules: the pair (base, follows) of each layer, int32 [L, 2], where follows is 1 if the image decides and else 0. offsets: the
    bits that each image gets more or less, int32 [N].
    """
    return (rules[:, :1] + rules[:, 1:] * offsets).clamp(MIN_BITS, MAX_BITS)
