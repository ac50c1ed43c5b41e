"""Networks with an exit for easy tiles, and pictures that are easy in one part."""

from __future__ import annotations

import torch

from adabm_kernels.exits import ExitParameters
from adabm_kernels.nn import ConvertedNetwork

TILE = 8


def an_exit(scale: int, kernel: int = 5, threshold: int = 60, tile: int = TILE) -> ExitParameters:
    """An exit with a random filter. tile: the side of a depth tile in pixels."""
    generator = torch.Generator().manual_seed(kernel)
    weight = torch.randint(-5, 6, (3 * scale**2, 3, kernel, kernel), generator=generator).to(torch.int8)
    bias = torch.randn(3 * scale**2, generator=generator)
    return ExitParameters(weight, 90, bias, tile, threshold)


def with_exit(model: ConvertedNetwork, parameters: ExitParameters, backend: str = "cpu") -> ConvertedNetwork:
    """The same network with an exit."""
    parts = model.spec, model.config, model.parameters_by_name, model.floats, model.thresholds, model.float_state
    made = type(model)(*parts, parameters, model.fraction).eval()
    made.set_backend(backend)
    return made


def pictures(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Two pictures [2, 3, height, width], with noise on the left half or the upper half and a slope elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    slope = torch.arange(width).expand(height, width) + torch.arange(height)[:, None]
    x = (slope % 200).expand(2, 3, height, width).float().clone()
    noise = torch.randint(0, 256, (3, height, width), generator=generator).float()
    x[0, :, :, : width // 2] = noise[:, :, : width // 2]
    x[1, :, : height // 2] = noise[:, : height // 2]
    return x
