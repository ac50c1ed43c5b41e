"""The image measure and the bits that it gives an image."""

from __future__ import annotations

import torch
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)
SOBEL_X = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def image_measure(x: torch.Tensor) -> torch.Tensor:
    """Detail of each image: the mean |Sobel gradient| of its luma over both directions and all pixels, times 1000.

    x: [N, 3, H, W] float in 0..255. Returns [N] of the same dtype, 0 for a flat image. Borders are replicated.
    """
    luma = F.conv2d(x / 255, x.new_tensor(LUMA).view(1, 3, 1, 1))
    sobel = x.new_tensor(SOBEL_X) / 8
    gradients = F.conv2d(F.pad(luma, (1, 1, 1, 1), mode="replicate"), torch.stack([sobel, sobel.T]).unsqueeze(1))
    return gradients.abs().mean((1, 2, 3)) * 1000


def image_offsets(measure: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """Bits that an image gets more or less: -1 below `lower`, +1 above `upper`, 0 between and on either threshold.

    measure: [N]. lower, upper: one element each. Returns int32 [N].
    """
    return (measure > upper).to(torch.int32) - (measure < lower).to(torch.int32)


def soft_image_offsets(measure: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """`image_offsets` as floats whose gradient is that of a tanh through both thresholds (AdaBM, section 3.3).

    Thresholds that coincide would make the tanh infinitely steep: their distance counts as at least 1e-3 of the measure.
    """
    half = torch.clamp((upper - lower) / 2, min=1e-3)
    soft = torch.tanh((measure - (upper + lower) / 2) / half)
    return soft - soft.detach() + image_offsets(measure, lower, upper).to(soft.dtype)
