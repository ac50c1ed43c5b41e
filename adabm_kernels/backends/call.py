"""What all backends are called with."""

from __future__ import annotations

from typing import NamedTuple

import torch

ACTIVATIONS = {"none": 0, "relu": 1, "prelu": 2}  # ADABM_ACT_* of csrc/include/adabm/adabm.h

FEATURES = {"float32": torch.float32, "int16": torch.int16}  # how y and the residual are stored, in the order of ADABM_FEATURES_*


class Conv(NamedTuple):
    """What a convolution reads, as `ops.conv2d_out` describes it. region: the numbers of `regions.Region`, none without a depth.
    features: one of FEATURES, of the residual and y; fraction: of int16 (quantize.to_fixed), else 0."""

    x_q: torch.Tensor
    x_bits: torch.Tensor
    weight: torch.Tensor
    packed: torch.Tensor
    alpha: torch.Tensor
    beta: torch.Tensor
    slope: torch.Tensor | None
    residual: torch.Tensor | None
    out_grid: torch.Tensor | None
    out_bits: torch.Tensor | None
    box_filter: bool
    activation: str
    shuffle: int
    depth: torch.Tensor | None = None
    region: tuple[int, ...] = ()
    features: str = "float32"
    fraction: int = 0

    @property
    def tensors(self) -> dict[str, torch.Tensor | None]:
        """By name."""
        return dict(zip(self._fields[:10], self[:10], strict=True)) | {"depth": self.depth}


def pitch(tensor: torch.Tensor) -> int:
    """Elements from one pixel of [N, H, W, C], contiguous or a slice of channels, to the next.

    Of a contiguous tensor one pixel wide the stride of the columns means nothing: torch lets it be any number.
    """
    return tensor.shape[3] if tensor.is_contiguous() else tensor.stride(2)


def dense(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor, contiguous."""
    return None if tensor is None else tensor.contiguous()
