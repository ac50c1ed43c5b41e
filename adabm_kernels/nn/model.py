"""The interface of a converted network that upscaling and measuring use."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from ..config import ConvertConfig
from ..exits import ExitParameters
from ..networks.spec import NetworkSpec
from ..regions import Depths


class ConvertedModel(nn.Module):
    """A network of few bits. From images float32 [N, 3, H, W] in 0..255 it makes float32 [N, 3, scale*H, scale*W], not clamped.

    This class is the interface only; `ConvertedNetwork` (nn/network.py) computes. parameters_by_name: the quantised convolutions,
    each with its `weight_bits` and `digits`. float_state: the float weights from which the network was made, None where they were
    not kept. full: whether all convolutions are quantised, so that the pixels do not depend on how floats are summed. exit: the
    exit of easy tiles, or None.
    """

    spec: NetworkSpec
    scale: int
    config: ConvertConfig
    parameters_by_name: Mapping[str, Any]
    float_state: dict[str, torch.Tensor] | None
    full: bool
    exit: ExitParameters | None

    @property
    def threads(self) -> int:
        """How many threads compute on a CPU."""
        raise NotImplementedError

    @property
    def varies_depth(self) -> bool:
        """Whether blocks may be left out in some tiles."""
        raise NotImplementedError

    @property
    def running_thresholds(self) -> tuple[float, float] | None:
        """The thresholds that follow the images; None where they are those of calibration."""
        raise NotImplementedError

    def bytes_per_pixel(self) -> int:
        """About how many bytes a forward pass holds for each low-resolution pixel."""
        raise NotImplementedError

    def lending_output(self) -> AbstractContextManager[None]:
        """Inside the block, the result of a forward pass may be overwritten by the next forward pass."""
        raise NotImplementedError

    def pixels(self, x: torch.Tensor, offset: torch.Tensor | None = None, *, origin: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """The forward pass as pixels of 8 bits, uint8 [N, 3, scale*H, scale*W]."""
        raise NotImplementedError

    def image_offsets(self, x: torch.Tensor, *, learn: bool = False) -> torch.Tensor:
        """The bits that each image gets more or less, int32 [N]."""
        raise NotImplementedError

    def layer_bits(self, x: torch.Tensor | None, *, offset: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The bits of the input of each convolution, by name, int32 [N] each."""
        raise NotImplementedError

    def mean_bits(self, x: torch.Tensor | None, *, offset: torch.Tensor | None = None) -> torch.Tensor:
        """The mean bits of each image over the counted convolutions, float32 [N]."""
        raise NotImplementedError

    def tile_depths(self, x: torch.Tensor, *, origin: tuple[int, int] = (0, 0)) -> Depths | None:
        """The depth of each tile of images; None where all tiles have all blocks."""
        raise NotImplementedError

    def computed_share(self, x: torch.Tensor, *, origin: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """The share of each image's pixels for which blocks are computed, float32 [N] in 0..1."""
        raise NotImplementedError

    def float_model(self) -> nn.Module:
        """The float network that this network was made from."""
        raise NotImplementedError
