"""The image measure and the bits that it gives an image."""

from __future__ import annotations

import torch

from ..image_bits import LUMA, image_measure, image_offsets

__all__ = ["LUMA", "image_measure", "image_offsets", "soft_image_offsets"]


def soft_image_offsets(measure: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """`image_offsets` as floats whose gradient is that of a tanh through both thresholds (AdaBM, section 3.3).

    Thresholds that coincide would make the tanh infinitely steep: their distance counts as at least 1e-3 of the measure.
    """
    half = torch.clamp((upper - lower) / 2, min=1e-3)
    soft = torch.tanh((measure - (upper + lower) / 2) / half)
    return soft - soft.detach() + image_offsets(measure, lower, upper).to(soft.dtype)
