"""16-bit features by their formula, and a small network that holds its residual stream in them."""

from __future__ import annotations

import functools

import numpy as np
import torch
from operators import order, settings_of
from problems import ConvInstance
from small import small_edsr

from adabm_kernels import ConvertConfig, convert_model, ops
from adabm_kernels.calibrate import calibrate
from adabm_kernels.nn import ConvertedNetwork
from adabm_kernels.simulate import SimulatedNetwork

STREAM = ("stream0", "stream1")  # the buffers of the features that pass the blocks by


def held_by(value: torch.Tensor, fraction: int) -> np.ndarray:
    """The int16 that holds each value in units of 2^-fraction, by the formula of docs/numerics.md in float64, where the product is
    exact too."""
    scaled = np.rint(value.double().numpy() * 2.0**fraction)
    return np.where(np.isnan(scaled), -32767, np.clip(scaled, -32767, 32767)).astype(np.int16)


def int16_residual(instance: ConvInstance, fraction: int, seed: int = 3) -> torch.Tensor | None:
    """A residual of random values of int16, both ends included, that takes the place of the instance's; None where it has none."""
    if instance.residual is None:
        return None
    g = torch.Generator().manual_seed(seed)
    spread = torch.randn(instance.residual.shape, generator=g) * 2.0 ** (fraction - 1)
    stored = spread.clamp(-32767, 32767).round().to(torch.int16)
    stored.view(-1)[:2] = torch.tensor([-32767, 32767], dtype=torch.int16)
    return stored


def wanted(instance: ConvInstance, fraction: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The y and y_q that follow from the operator on floats and the formula."""
    residual = int16_residual(instance, fraction)
    floats = None if residual is None else torch.from_numpy(residual.numpy() * 2.0**-fraction).float()
    arguments = settings_of(instance, out="float", backend="reference", residual=floats)
    y, _ = torch.ops.adabm.conv2d(*order("conv2d", arguments))
    stored = torch.from_numpy(held_by(y, fraction))
    values = torch.from_numpy(stored.numpy() * 2.0**-fraction).float()
    return stored, ops.quantize(values.permute(0, 3, 1, 2), instance.out_grid, instance.out_bits, backend="reference")


def images(height: int = 24, width: int = 24, count: int = 2) -> torch.Tensor:
    """Noise on the left and a slope on the right: float32 [count, 3, height, width] in 0..255."""
    g = torch.Generator().manual_seed(6)
    x = torch.rand(count, 3, height, width, generator=g) * 255
    x[..., width // 2 :] = torch.linspace(30, 200, width - width // 2)
    return x


@functools.cache
def simulated() -> SimulatedNetwork:
    config = ConvertConfig(residual="int16", adaptive=False, depths="none")
    return calibrate(small_edsr(blocks=3), [images()], config, check=False)


def converted(backend: str = "reference") -> ConvertedNetwork:
    model = convert_model(simulated())
    model.set_backend(backend)
    model.set_threads(1)
    return model
