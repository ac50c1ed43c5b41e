"""One convolution as AdaBM simulates it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..config import ConvertConfig
from ..networks.spec import ConvSpec
from ..quantize import MAX_BITS, MIN_BITS, fake_quantize_act, fake_quantize_weight, rest_range

END_BITS = 8  # the bits of weights and activations of the ends of a fully quantised network


class SimulatedConv2d(nn.Conv2d):
    """A convolution that first rounds its input and weight to their grids. Zeros pad the rounded input.

    spec: its name, shape and role. weight_grid: "odd" or "signed" (quantize.py). quantized: if False, it computes the plain float
    convolution, with the weights of `float_weights` where those are set. compute_dtype: the float type in which the convolution
    multiplies; None stands for that of its input. shift_a: the value that was added to each channel of the input before the
    convolution, float32 [C], or None. digits_a: float32 [1] or None, see `digits`.

    Parameters: lower_a and upper_a, [1] each, are the range of the input, or of the input less `shift_a` where that is not None.
    The range of the weight (`weight_range`) is upper_w, [1] or [K, 1, 1, 1], on the odd grid and scale_w, [K, 1, 1, 1], on the
    signed grid. An adaptive convolution also has measure_layer, [1], whose rounded value in -1..1 is added to the bits. Ranges
    start as NaN.
    """

    shift_a: torch.Tensor | None
    digits_a: torch.Tensor | None

    def __init__(self, spec: ConvSpec, config: ConvertConfig, weight_grid: str = "odd"):
        rows, columns = spec.sizes
        padding = (rows // 2, columns // 2) if spec.padding is None else spec.padding
        sizes = (spec.sizes, spec.stride, padding, spec.dilation)
        super().__init__(spec.channels_in, spec.channels_out, *sizes, groups=spec.groups, bias=spec.bias)
        self.spec, self.name, self.end, self.config = spec, spec.name, spec.role == "end", config
        self.quantized, self.weight_grid = True, weight_grid
        self.act_bits, self.weight_bits = (END_BITS, END_BITS) if self.end else (config.act_bits, config.weight_bits)
        self.adaptive = config.adaptive and spec.role == "adaptive"
        self.float_weights: tuple[torch.Tensor, torch.Tensor | None] | None = None
        self.compute_dtype: torch.dtype | None = None
        self.register_buffer("shift_a", None)
        self.register_buffer("digits_a", None)
        self.lower_a, self.upper_a = (nn.Parameter(torch.full((1,), float("nan"))) for _ in range(2))
        shape = (spec.channels_out, 1, 1, 1) if weight_grid == "signed" else (1,)
        self.register_parameter(self.range_name, nn.Parameter(torch.full(shape, float("nan"))))
        if self.adaptive:
            self.measure_layer = nn.Parameter(torch.zeros(1))

    @property
    def range_name(self) -> str:
        """Name of the parameter that holds the range of the weight. The name in a state dict tells the grid."""
        return "scale_w" if self.weight_grid == "signed" else "upper_w"

    @property
    def weight_range(self) -> nn.Parameter:
        """The largest weight on the grid."""
        return getattr(self, self.range_name)

    @property
    def digits(self) -> int:
        """How many 8-bit codes hold a value of an end's input: 2 where a second code holds what the first leaves, else 1."""
        return 1 if self.digits_a is None else int(self.digits_a)

    @property
    def layer_offset(self) -> int:
        """The bits that this layer gets more or less: -1, 0 or 1."""
        return int(self.measure_layer.detach().clamp(-1, 1).round()) if self.adaptive else 0

    def bits(self, image_offset: torch.Tensor) -> torch.Tensor:
        """The bits of the input of each image, 2..8.

        image_offset: int32 [N]; or float [N], which keeps its gradient. Returns [N] of the same dtype, or float with the gradient
        of a tanh of `measure_layer` where that is learned (AdaBM, section 3.3).
        """
        if not self.adaptive:
            return torch.full_like(image_offset, self.act_bits)
        offset: int | torch.Tensor = self.layer_offset
        if self.measure_layer.requires_grad and torch.is_grad_enabled():
            soft = torch.tanh(self.measure_layer)
            offset = soft - soft.detach() + offset
        bits = self.act_bits + offset + image_offset
        if not (bits.requires_grad and torch.is_grad_enabled()):
            return bits.clamp(MIN_BITS, MAX_BITS)
        # The published code knows no bounds. The straight-through gradient still tells the direction where a bound binds.
        return bits - bits.detach() + bits.detach().clamp(MIN_BITS, MAX_BITS)

    def quantized_weight(self) -> torch.Tensor:
        """The weight on its grid, as floats of the shape of `weight`."""
        return fake_quantize_weight(self.weight, self.weight_range, self.weight_bits, self.weight_grid)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Moves `float_weights` to other devices too, in its own dtype."""
        if self.float_weights is not None:
            weight, bias = self.float_weights
            self.float_weights = moved(fn, weight), None if bias is None else moved(fn, bias)
        return super()._apply(fn, recurse)

    def forward(self, x: torch.Tensor, image_offset: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """x: [N, C, H, W]. image_offset: [N] (see `bits`). Returns [N, K, H, W] of the dtype of x."""
        if not self.quantized:
            weight, bias = (self.weight, self.bias) if self.float_weights is None else self.float_weights
            return self._convolve(x, weight.to(x.dtype), bias)
        return self._convolve(self.rounded_input(x, image_offset), self.quantized_weight(), self.bias)

    def rounded_input(self, x: torch.Tensor, image_offset: torch.Tensor) -> torch.Tensor:
        """The input on its grid, as floats of the shape of x. image_offset: [N] (see `bits`)."""
        return self._quantized(x, self.bits(image_offset).to(x.dtype).view(-1, 1, 1, 1))

    def _quantized(self, x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
        if self.digits == 2:
            first = fake_quantize_act(x, self.lower_a, self.upper_a, bits)
            half = rest_range(self.lower_a, self.upper_a)
            return first + fake_quantize_act(x - first, -half, half, bits)
        if self.shift_a is None:
            return fake_quantize_act(x, self.lower_a, self.upper_a, bits)
        shift = self.shift_a.to(x.dtype).view(1, -1, 1, 1)
        return fake_quantize_act(x - shift, self.lower_a, self.upper_a, bits) + shift

    def _convolve(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        dtype = x.dtype if self.compute_dtype is None else self.compute_dtype
        bias = None if bias is None else bias.to(dtype)
        y = F.conv2d(x.to(dtype), weight.to(dtype), bias, self.stride, self.padding, self.dilation, self.groups)
        return y.to(x.dtype)


def moved(fn: Callable[[torch.Tensor], torch.Tensor], value: torch.Tensor) -> torch.Tensor:
    """`value` on the device where `fn`, which a module's `_apply` is given, puts its parameters, in the dtype that it has."""
    return fn(value).to(value.dtype)
