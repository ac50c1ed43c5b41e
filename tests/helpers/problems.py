"""Named convolution problems that tests and benchmarks share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from adabm_kernels import native
from adabm_kernels.backends.call import Conv
from adabm_kernels.nn.conv import AdaptiveConv2d, ConvParameters
from adabm_kernels.planning.layer import plan_layer
from adabm_kernels.planning.tiles import DIRECT, MIN_BITS
from adabm_kernels.planning.times import tile_times
from adabm_kernels.quantize import PLAIN, Geometry, act_grid, padded_channels, to_fixed, weight_integers


@dataclass(frozen=True)
class ConvProblem:
    """One convolution with its epilogue. bits: the bits of each image's input codes. out_bits: the bits of each image's output
    codes."""

    name: str
    height: int
    width: int
    channels: int
    outputs: int
    kernel: int = 3
    weight_bits: int = 4
    bits: tuple[int, ...] = (4,)
    out_bits: tuple[int, ...] | None = None
    activation: str = "none"
    residual: bool = False
    shuffle: int = 1
    lower: float = -1.5
    upper: float = 2.25
    geometry: Geometry = PLAIN
    kernel_w: int | None = None  # the width of a kernel that is not square

    @property
    def kernel_size(self) -> tuple[int, int]:
        return self.kernel, self.kernel_w or self.kernel

    @property
    def out_size(self) -> tuple[int, int, int]:
        """Images, rows and columns of the output."""
        rows, columns = self.geometry.axes(*self.kernel_size)
        return len(self.bits), rows.outputs(self.height) * self.shuffle, columns.outputs(self.width) * self.shuffle

    def __str__(self) -> str:
        bits = "".join(map(str, self.bits))
        return f"w{self.weight_bits}a{bits}-{self.name}-{self.height}x{self.width}"


@dataclass
class ConvInstance:
    """A problem with data: `layer`, and the arguments of one call of this layer."""

    layer: AdaptiveConv2d
    x_q: torch.Tensor
    bits: torch.Tensor
    residual: torch.Tensor | None
    out_grid: torch.Tensor
    out_bits: torch.Tensor

    def run(self, backend: str, out: str, isa: str = "auto", threads: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        self.layer.set_backend(backend, threads)
        residual = None if out == "acc" else self.residual
        with native.force_isa(isa):
            return self.layer(self.x_q, self.bits, residual=residual, out=out, out_grid=self.out_grid, out_bits=self.out_bits)

    def pixels(self, backend: str, isa: str = "auto", threads: int = 1) -> torch.Tensor:
        self.layer.set_backend(backend, threads)
        with native.force_isa(isa):
            return self.layer.pixels(self.x_q, self.bits, residual=self.residual)

    def conv(self, backend: str) -> Conv:
        """The arguments that a backend's own `conv2d_out` reads."""
        layer = self.layer
        layer.set_backend(backend, 1)
        tables = (self.x_q, self.bits, layer.weight, layer.packed, layer.alpha, layer.beta, layer.slope, self.residual)
        settings = layer.box_filter, layer.activation, layer.shuffle
        return Conv(*tables, self.out_grid, self.out_bits, *settings, geometry=layer.geometry)


def int16_features(conv: Conv, fraction: int) -> Conv:
    """The convolution with 16-bit features. A residual of floats becomes the int16 numbers that hold its values."""
    floats = conv.residual is not None and conv.residual.dtype == torch.float32
    residual = to_fixed(conv.residual, fraction) if floats else conv.residual
    return replace(conv, residual=residual, features="int16", fraction=fraction)


def random_parameters(p: ConvProblem, generator: torch.Generator, extreme: bool = False) -> ConvParameters:
    """Random weights over the whole grid. extreme: whether they take only its two ends, at which saturation would show."""
    low, high = -(2 ** (p.weight_bits - 1)), 2 ** (p.weight_bits - 1) - 1
    shape = (p.outputs, p.channels // p.geometry.groups, *p.kernel_size)
    if extreme:
        codes = torch.where(torch.rand(shape, generator=generator) < 0.5, low, high)
        codes[0], codes[-1] = low, high
    else:
        codes = torch.randint(low, high + 1, shape, generator=generator)
    return ConvParameters(
        name=str(p),
        codes=codes.to(torch.int8),
        weight_bits=p.weight_bits,
        weight_upper=torch.rand(p.outputs, generator=generator) * 0.1 + 0.01,
        bias=torch.randn(p.outputs, generator=generator),
        lower=p.lower,
        upper=p.upper,
        act_bits=max(p.bits),
        layer_offset=0,
        adaptive=False,
        geometry=p.geometry,
    )


def instantiate(p: ConvProblem, seed: int = 0, extreme: bool = False) -> ConvInstance:
    """The problem with random codes, weights and tables, which are the same for the same seed."""
    g = torch.Generator().manual_seed(seed)
    layer = AdaptiveConv2d(
        random_parameters(p, g, extreme),
        activation=p.activation,
        slope=torch.rand(p.outputs, generator=g) if p.activation == "prelu" else None,
        shuffle=p.shuffle,
    )
    n = len(p.bits)
    top = torch.tensor([2**b for b in p.bits]).view(n, 1, 1, 1)
    shape = (n, p.height, p.width, p.channels)
    if extreme:
        codes = torch.where(torch.rand(shape, generator=g) < 0.9, top - 1, 0)
    else:
        codes = (torch.rand(shape, generator=g) * top).to(torch.int64)
    x_q = torch.zeros(n, p.height, p.width, padded_channels(p.channels), dtype=torch.uint8)
    x_q[..., : p.channels] = codes.to(torch.uint8)
    residual = torch.randn(*p.out_size, p.outputs // p.shuffle**2, generator=g) if p.residual else None
    out_bits = torch.tensor(p.out_bits or p.bits, dtype=torch.int32)
    return ConvInstance(layer, x_q, torch.tensor(p.bits, dtype=torch.int32), residual, act_grid(-2.0, 3.0), out_bits)


def half_units(outputs: int, activation: str, fraction: int, sizes: tuple[int, int, int] = (7, 13, 20)) -> ConvInstance:
    """A problem whose results are odd and even multiples of half of 2^-fraction. Those of the first outputs are too large for
    int16, infinite or NaN. sizes: height, width and channels."""
    instance = instantiate(ConvProblem("halves", *sizes, outputs, bits=(3, 4), activation=activation, residual=True))
    step, layer = 2.0**-fraction, instance.layer
    instance.residual *= 100 * step
    instance.out_grid *= 2.0**fraction / 100
    instance.out_grid[:, 1] *= 100 / 2.0**fraction
    layer.alpha.fill_(step / 2)
    layer.beta.zero_()
    ends = (32766.5, 32767.5, -32767.5, 4e4, -4e4, float("inf"), -float("inf"), float("nan"))
    layer.beta[..., : len(ends)] = torch.tensor(ends) * step
    layer.alpha[:, 5:8] = 0  # otherwise infinities could meet
    return instance


def bell_codes(weight_bits: int, outputs: int, channels: int) -> torch.Tensor:
    """Codes k' [K, C, 3, 3] with the distribution that calibration gives: bell-shaped and cut off, with a range of three standard
    deviations."""
    g = torch.Generator().manual_seed(0)
    most = 2 ** (weight_bits - 1)
    return torch.round(torch.randn(outputs, channels, 3, 3, generator=g) * most / 3).clamp(-most, most - 1).to(torch.int64)


def set_weights(instance: ConvInstance, codes: torch.Tensor, grid: str, isa: str) -> None:
    """Gives the layer codes k' [K, C, R, S] of a weight grid, and a plan for all bits of its input. The tables stay as they are."""
    layer = instance.layer
    forms = [(False, weight_integers(codes, grid))] + ([(True, codes)] if grid == "odd" else [])
    times = tile_times(isa)
    plans = [plan_layer(layer.name, w.numpy(), 8, times=times, box_filter=box) for box, w in forms if w.abs().max() <= 128]
    bits = instance.bits.tolist()
    best = min(range(len(plans)), key=lambda i: sum(plans[i].time(b, b) for b in bits))
    layer.plan, (layer.box_filter, integers) = plans[best], forms[len(forms) - len(plans) :][best]
    layer.weight = integers.permute(0, 2, 3, 1).to(torch.int8).contiguous()
    layer.packed = torch.empty(0, dtype=torch.uint8)


def set_tile(instance: ConvInstance, tile: str, most_bits: int) -> None:
    """Makes a tile compute codes of 2..most_bits bits, whatever was planned."""
    plan, count = instance.layer.plan, most_bits - MIN_BITS + 1
    instance.layer.plan = replace(plan, tile=(tile,) * count + (DIRECT.name,) * (len(plan.tile) - count))
    instance.layer.packed = torch.empty(0, dtype=torch.uint8)


def collapsed(height: int, width: int, channels: int, outputs: int, shuffle: int, bits: tuple[int, ...], borders: bool) -> dict:
    """The arguments of a collapsed upsampler with kernels of 5x5, whose weights fall off outwards. borders: whether the layer has
    kernels of its own at the border."""
    g = torch.Generator().manual_seed(height * 100 + width)
    fall_off = torch.tensor([0.1, 0.5, 1, 0.5, 0.1])
    shape = (5, 5) if borders else ()
    weight = torch.randn(*shape, outputs, 5, 5, channels, generator=g) * 40 * fall_off.view(-1, 1, 1) * fall_off.view(1, -1, 1)
    weight = weight.round().clamp(-128, 127).to(torch.int8)
    top = torch.tensor([2**b for b in bits]).view(-1, 1, 1, 1)
    x_q = torch.zeros(len(bits), height, width, padded_channels(channels), dtype=torch.uint8)
    x_q[..., :channels] = (torch.rand(len(bits), height, width, channels, generator=g) * top).to(torch.uint8)
    classes = 5 if borders else 9
    beta = torch.randn(classes, classes, outputs, generator=g)
    alpha = torch.rand(7, outputs, generator=g)
    size = (len(bits), height * shuffle, width * shuffle, outputs // shuffle**2)
    tables = (x_q, torch.tensor(bits, dtype=torch.int32), weight, alpha, beta)
    return {"tables": tables, "shuffle": shuffle, "residual": torch.randn(size, generator=g)}


def runnable_isas() -> list[str]:
    """The instruction sets that were built and that this machine has."""
    if native.why_missing("cpu"):
        return []
    return [name for name in list(native.ISAS)[1:] if all(native.isa_built_and_present(name))]


PROBLEMS = [
    ConvProblem("edsr_body", 13, 19, 64, 64, bits=(4, 2, 6), out_bits=(3, 8, 5), activation="relu"),
    ConvProblem("edsr_residual", 9, 23, 64, 64, bits=(3, 5), residual=True),
    ConvProblem("w6_body", 8, 12, 64, 64, weight_bits=6, bits=(6, 8, 7), residual=True),
    ConvProblem("w8_box", 7, 11, 32, 48, weight_bits=8, bits=(8, 6), out_bits=(8, 4)),
    ConvProblem("head", 10, 17, 3, 64, weight_bits=8, bits=(8,), out_bits=(4,)),
    ConvProblem("upsampler", 6, 9, 64, 256, weight_bits=8, bits=(8,), shuffle=2),
    ConvProblem("tail_three", 6, 14, 64, 3, weight_bits=8, bits=(8,), out_bits=(8,)),
    ConvProblem("tail_single", 6, 9, 32, 48, weight_bits=8, bits=(8,), shuffle=4),
    ConvProblem("shuffle_three", 5, 7, 20, 63, bits=(5,), shuffle=3),
    ConvProblem("odd_channels", 7, 10, 37, 53, bits=(4, 7), activation="prelu", residual=True),
    ConvProblem("one_by_one", 9, 9, 80, 16, kernel=1, bits=(4, 8)),
    ConvProblem("nine_by_nine", 11, 12, 3, 64, kernel=9, weight_bits=8, bits=(8,), activation="prelu"),
    ConvProblem("one_pixel", 1, 1, 16, 16, bits=(4,)),
    ConvProblem("one_row", 1, 30, 16, 32, bits=(6,)),
    ConvProblem("one_column", 30, 1, 16, 32, kernel=9, bits=(2,)),
    ConvProblem("wide_input", 3, 8, 512, 64, bits=(8,)),
]

# These problems have strides, dilation, groups, kernels of even size or padding, for backends with any_geometry.
GEOMETRIES = [
    ConvProblem("stride_two", 13, 18, 20, 64, bits=(4, 8), activation="relu", residual=True, geometry=Geometry(stride=(2, 2))),
    ConvProblem("stride_rows", 9, 40, 8, 70, bits=(5,), out_bits=(7,), geometry=Geometry(stride=(3, 1), padding=(0, 2))),
    ConvProblem("patches", 12, 20, 3, 48, kernel=4, weight_bits=8, bits=(8,), geometry=Geometry(stride=(4, 4), padding=(0, 0))),
    ConvProblem("dilated", 12, 25, 16, 64, bits=(3, 6), residual=True, geometry=Geometry(dilation=(2, 2))),
    ConvProblem("dilated_rows", 9, 14, 6, 13, kernel=5, kernel_w=3, bits=(8,), geometry=Geometry(dilation=(3, 1))),
    ConvProblem("even", 7, 23, 12, 20, kernel=2, bits=(4,), geometry=Geometry()),
    ConvProblem("uneven_padding", 6, 9, 10, 16, kernel=3, kernel_w=4, bits=(7,), geometry=Geometry(padding=(4, 0, 1, 5))),
    ConvProblem("one_by_one_strided", 9, 9, 24, 32, kernel=1, bits=(4, 8), geometry=Geometry(stride=(2, 3), padding=(0, 0))),
    ConvProblem("two_groups", 8, 21, 32, 128, bits=(4, 6), activation="prelu", residual=True, geometry=Geometry(groups=2)),
    ConvProblem("many_groups", 6, 13, 48, 48, bits=(2, 8), activation="relu", geometry=Geometry(groups=8)),
    ConvProblem("odd_groups", 5, 17, 30, 50, weight_bits=7, bits=(6,), geometry=Geometry(groups=5, stride=(1, 2), padding=(1, 1))),
    ConvProblem("box_groups", 5, 9, 12, 24, weight_bits=8, bits=(8, 5), geometry=Geometry(groups=3)),
    ConvProblem("shuffled_groups", 5, 11, 8, 64, bits=(4,), shuffle=2, geometry=Geometry(groups=4)),
    ConvProblem("depthwise", 11, 27, 64, 64, bits=(4, 8), activation="relu", residual=True, geometry=Geometry(groups=64)),
    ConvProblem("depthwise_odd", 7, 30, 37, 37, weight_bits=8, bits=(8, 7), activation="prelu", geometry=Geometry(groups=37)),
    ConvProblem("depthwise_wide", 5, 80, 80, 80, kernel=5, bits=(6,), residual=True, geometry=Geometry(groups=80)),
    ConvProblem("depthwise_strided", 12, 19, 32, 32, bits=(5, 8), geometry=Geometry((2, 2), groups=32, padding=(1, 1))),
    ConvProblem("depthwise_dilated", 9, 20, 18, 18, weight_bits=6, bits=(8,), geometry=Geometry(dilation=(2, 3), groups=18)),
    ConvProblem("depthwise_even", 6, 7, 20, 20, kernel=2, kernel_w=4, bits=(8,), geometry=Geometry(groups=20)),
    ConvProblem("multiplier", 6, 12, 10, 30, bits=(4, 8), residual=True, geometry=Geometry(groups=10)),
    ConvProblem("multiplier_shuffled", 5, 6, 12, 48, bits=(8,), weight_bits=8, shuffle=2, geometry=Geometry(groups=12)),
    ConvProblem("depthwise_row", 1, 33, 16, 16, bits=(8,), geometry=Geometry(groups=16)),
    ConvProblem("depthwise_column", 33, 1, 16, 16, bits=(8,), geometry=Geometry(groups=16)),
]
