"""Right and wrong arguments of the operators, for tests that call operators in the way torch does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from problems import ConvInstance, ConvProblem, instantiate
from torch._subclasses.fake_tensor import FakeTensorMode

from adabm_kernels import native
from adabm_kernels.nn.conv import IntegerConv2d
from adabm_kernels.planning.layer import plan_layer
from adabm_kernels.planning.times import tile_times
from adabm_kernels.quantize import act_grid
from adabm_kernels.regions import Depths, Region, tiles_of

BACKENDS = ["reference"] if native.why_missing("cpu") else ["cpu", "reference"]
backend = pytest.mark.parametrize("backend", BACKENDS)


def settings_of(instance: ConvInstance, **changes: Any) -> dict[str, Any]:
    """Every argument of ops.conv2d by name."""
    layer = instance.layer
    arguments = {
        "x_q": instance.x_q,
        "x_bits": instance.bits,
        **{name: getattr(layer, name) for name in ("weight", "packed", "alpha", "beta", "slope")},
        "residual": instance.residual,
        "out_grid": instance.out_grid,
        "out_bits": instance.out_bits,
        **{name: getattr(layer, name) for name in ("box_filter", "activation", "shuffle")},
        "packed_codes": False,
        "backend": layer.backend,
        "threads": 1,
    }
    return arguments | changes


def prepared(problem: ConvProblem, backend: str) -> ConvInstance:
    instance = instantiate(problem)
    instance.layer.set_backend(backend, 1)
    return instance


def by_border_class(backend: str) -> dict[str, Any]:
    """Arguments for a convolution with a kernel for each of the 3x3 classes of pixels."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randint(-128, 128, (3, 3, 8, 3, 3, 5), generator=g, dtype=torch.int8)
    tables = torch.rand(7, 8, generator=g) * 0.01, torch.randn(3, 3, 8, generator=g)
    plan = plan_layer("classes", weight.permute(0, 1, 2, 5, 3, 4).numpy(), 8, times=tile_times("scalar"))
    layer = IntegerConv2d("classes", plan, weight, *tables, act_grid(-1.0, 1.0))
    layer.set_backend(backend, 1)
    x_q = torch.zeros(2, 4, 5, 8, dtype=torch.uint8)
    x_q[..., :5] = torch.randint(0, 256, (2, 4, 5, 5), generator=g, dtype=torch.uint8)
    bits = torch.tensor([8, 8], dtype=torch.int32)
    return settings_of(ConvInstance(layer, x_q, bits, None, act_grid(-1.0, 1.0), bits))


def order(operator: str, arguments: dict[str, Any]) -> tuple:
    """The arguments by position, in the order of the operator's schema."""
    schema = getattr(torch.ops.adabm, operator).default._schema
    everywhere = {"depth": None, "region": [], "geometry": [], "features": "float32", "fraction": 0}
    return tuple((everywhere | arguments)[argument.name] for argument in schema.arguments)


def outputs(problem: ConvProblem, y: bool, y_q: bool) -> dict[str, torch.Tensor | None]:
    """Poisoned tensors for ops.conv2d_out."""
    size, channels = problem.out_size, problem.outputs // problem.shuffle**2
    return {
        "y": torch.full((*size, channels), -1e9) if y else None,
        "y_q": torch.full((*size, -(-channels // 4) * 4), 171, dtype=torch.uint8) if y_q else None,
    }


QUANTIZE = {
    "x": torch.linspace(-3, 3, 2 * 5 * 4 * 6).view(2, 5, 4, 6),
    "shift": torch.linspace(-1, 1, 5),
    "grid": act_grid(-2.0, 1.0),
    "bits": torch.tensor([8, 3], dtype=torch.int32),
    "packed_codes": False,
    "threads": 1,
}


def place(region: Region, *size: int) -> dict[str, Any]:
    """The arguments of a region of [images, height, width], in tiles of 3 pixels with the depths 0, 1, 0, 1, ..."""
    images, height, width = size
    shape = images, tiles_of(height, 3, 1), tiles_of(width, 3, 2)
    depths = Depths((torch.arange(math.prod(shape)) % 2).to(torch.uint8).view(shape), 3, 1, 2)
    return {"depth": depths.values, "region": region.numbers(depths)}


def fake_outputs(operator: str, arguments: dict[str, Any]) -> Any:
    with FakeTensorMode() as mode:
        fakes = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        return getattr(torch.ops.adabm, operator)(*order(operator, fakes))


CONV2D_ERRORS = [
    ({"x_q": torch.zeros(2, 5, 8, dtype=torch.uint8)}, r"conv2d: x_q must be \[N, H, W, C4\], got shape \[2, 5, 8\]"),
    (
        {"weight": torch.zeros(9, 3, 3, dtype=torch.int8)},
        r"conv2d: weight must be \[K, R, S, C\] or \[R, S, K, R, S, C\], got shape \[9, 3, 3\]",
    ),
    ({"x_q": torch.zeros(2, 0, 7, 8, dtype=torch.uint8)}, r"conv2d: x_q must not be empty, got shape \[2, 0, 7, 8\]"),
    ({"x_q": torch.zeros(2, 5, 7, 8)}, "conv2d: x_q must be torch.uint8, got torch.float32"),
    (
        {"x_q": torch.zeros(2, 5, 7, 6, dtype=torch.uint8)},
        r"conv2d: x_q must have shape \[2, 5, 7, 8\], got \[2, 5, 7, 6\]",
    ),
    ({"x_bits": torch.tensor([4, 2])}, "conv2d: x_bits must be torch.int32, got torch.int64"),
    ({"x_bits": torch.tensor([4], dtype=torch.int32)}, r"conv2d: x_bits must have shape \[2\], got \[1\]"),
    ({"weight": torch.zeros(9, 3, 3, 6)}, "conv2d: weight must be torch.int8, got torch.float32"),
    (
        {"weight": torch.zeros(3, 1, 9, 3, 3, 6, dtype=torch.int8)},
        r"conv2d: weight must have shape \[3, 3, 9, 3, 3, 6\], got \[3, 1, 9, 3, 3, 6\]",
    ),
    (
        {"weight": torch.zeros(9, 3, 9, 9, 3, 6, dtype=torch.int8)},
        "conv2d: an image with kernels by border class must be at least 9x3, got 5x7",
    ),
    ({"packed": torch.zeros(0)}, "conv2d: packed must be uint8, got torch.float32"),
    ({"packed": torch.zeros(64, dtype=torch.uint8)[::2]}, r"conv2d: packed must be contiguous, got strides \(2,\)"),
    ({"packed": torch.zeros(1, dtype=torch.uint8).expand(64)}, r"conv2d: packed must be contiguous, got strides \(0,\)"),
    ({"alpha": torch.zeros(6, 9)}, r"conv2d: alpha must have shape \[7, 9\], got \[6, 9\]"),
    ({"alpha": torch.zeros(7, 9, dtype=torch.float64)}, "conv2d: alpha must be torch.float32, got torch.float64"),
    ({"weight": torch.zeros(9, 2, 3, 6, dtype=torch.int8)}, "conv2d: the kernel must be odd, got 2x3"),
    ({"beta": torch.zeros(4, 4, 8)}, r"conv2d: beta must have shape \[4, 4, 9\], got \[4, 4, 8\]"),
    ({"activation": "gelu"}, r"conv2d: activation must be one of \('none', 'relu', 'prelu'\), got 'gelu'"),
    ({"out": "bits"}, r"conv2d: out must be one of \('codes', 'float', 'both', 'acc'\), got 'bits'"),
    ({"backend": "abacus"}, r"conv2d: backend must be one of \(.*'reference'.*\), got 'abacus'"),
    ({"threads": -1}, r"conv2d: threads must be 0 \(as torch\) or more, got -1"),
    ({"shuffle": 2}, "conv2d: shuffle.2 must divide 9 outputs, got shuffle=2"),
    ({"shuffle": 0}, "conv2d: shuffle must be 1..16, got 0"),
    ({"shuffle": 17}, "conv2d: shuffle must be 1..16, got 17"),
    ({"activation": "prelu"}, "conv2d: activation 'prelu' needs slope"),
    ({"activation": "prelu", "slope": torch.zeros(8)}, r"conv2d: slope must have shape \[9\], got \[8\]"),
    ({"residual": torch.zeros(2, 5, 7, 8)}, r"conv2d: residual must have shape \[2, 5, 7, 9\], got \[2, 5, 7, 8\]"),
    ({"out": "codes", "out_grid": None}, "conv2d: out='codes' needs out_grid and out_bits"),
    ({"out": "both", "out_bits": None}, "conv2d: out='both' needs out_grid and out_bits"),
    ({"out": "both", "out_grid": torch.zeros(7)}, r"conv2d: out_grid must have shape \[7, 2\], got \[7\]"),
    ({"out": "both", "out_bits": torch.zeros(2)}, "conv2d: out_bits must be torch.int32, got torch.float32"),
]
