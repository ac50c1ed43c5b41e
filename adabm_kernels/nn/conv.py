"""IntegerConv2d and AdaptiveConv2d: one quantised convolution, its tables and its packed weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypedDict

import torch

from .. import native, ops
from ..graph.nodes import Affine, ColourShift, Node
from ..ops import library
from ..parameters import ConvParameters
from ..planning.layer import LayerPlan, plan_layer
from ..planning.times import tile_times
from ..quantize import (
    MAX_BITS,
    PLAIN,
    Geometry,
    act_grid,
    act_steps,
    conv_tables,
    from_fixed,
    rest_range,
    shuffle_order,
    weight_integers,
    weight_step,
)
from ..registry import ConvShape
from .contexts import WithoutParameters

__all__ = ["AdaptiveConv2d", "ConvParameters", "IntegerConv2d", "shuffle_order"]


class ConvSettings(TypedDict):
    """The arguments of a convolution that every operator takes besides its tables (see ops.conv2d)."""

    slope: torch.Tensor | None
    box_filter: bool
    activation: str
    shuffle: int
    packed_codes: bool
    backend: str
    threads: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    padding: tuple[int, ...] | None


class IntegerConv2d(WithoutParameters):
    """A convolution of codes with the tables of its epilogue, which subclasses fill.

    plan: the tile for each bit-width of the codes. weight: int8 [K, R, S, C / groups] or [R, S, K, R, S, C]. alpha, beta, slope:
    see ops.conv2d; where `shuffle` is above 1, outputs are ordered by sub-pixel first. grid: the grid of the input, float32 [7, 2].
    geometry: stride, dilation, groups and padding; where it is not plain, not every backend can compute it (`why_not`). rest: where
    the input has two 8-bit digits, the same convolution for the second digit, whose result is added before the activation
    (`two_digits`).
    """

    def __init__(
        self,
        name: str,
        plan: LayerPlan,
        weight: torch.Tensor,
        alpha: torch.Tensor,
        beta: torch.Tensor,
        grid: torch.Tensor,
        *,
        slope: torch.Tensor | None = None,
        box_filter: bool = False,
        activation: str = "none",
        shuffle: int = 1,
        geometry: Geometry = PLAIN,
    ):
        super().__init__()
        for table, values in {"alpha": alpha, "beta": beta, "slope": slope}.items():
            if values is not None and not values.to(torch.float32).isfinite().all():
                raise ValueError(f"{type(self).__name__}: {table} of '{name}' must be finite in float32, got {_span(values)}")
        self.name, self.plan = name, plan
        self.geometry, self.geometry_numbers = geometry, geometry.numbers(*weight.shape[-3:-1])
        self.box_filter, self.activation, self.shuffle = box_filter, activation, shuffle
        self.register_buffer("weight", weight.to(torch.int8).contiguous())
        self.register_buffer("alpha", alpha.to(torch.float32).contiguous())
        self.register_buffer("beta", beta.to(torch.float32).contiguous())
        self.register_buffer("slope", None if slope is None else slope.to(torch.float32).contiguous())
        self.register_buffer("grid", grid)
        self.register_buffer("packed", torch.empty(0, dtype=torch.uint8), persistent=False)
        self._packed_for = ""
        self.backend, self.threads, self.packed_codes = "reference", 0, False
        self.rest: IntegerConv2d | None = None

    _buffers: dict[str, Any]  # the tensors below by their names, for code that runs so often that attributes would cost too much
    weight: torch.Tensor
    alpha: torch.Tensor
    beta: torch.Tensor
    slope: torch.Tensor | None
    grid: torch.Tensor
    packed: torch.Tensor
    pixel_grid: torch.Tensor  # exists only where the convolution reads pixels (`AdaptiveConv2d.take_pixels`)
    pixel_shift: torch.Tensor | None

    @property
    def bit_range(self) -> tuple[int, int]:
        """The fewest and the most bits that the codes of an image can have here."""
        return MAX_BITS, MAX_BITS

    def extra_repr(self) -> str:
        *_, k, r, s, c = self.weight.shape
        low, high = self.bit_range
        bits = f"{high}-bit" if low == high else f"{low}..{high}-bit"
        settings = [f"{c * self.geometry.groups} -> {k}", f"{r}x{s}", f"{bits} codes"]
        settings += [self.activation] if self.activation != "none" else []
        settings += [f"shuffle {self.shuffle}"] if self.shuffle > 1 else []
        settings += [self.geometry.describe(r, s)] if self.geometry_numbers else []
        return ", ".join(settings)

    @functools.cached_property
    def shape(self) -> ConvShape:
        """The properties that decide which GPU backend is faster."""
        *_, k, r, s, c = self.weight.shape
        low, high = int(self.weight.min()), int(self.weight.max())
        # See docs/gpu_cuda.md: m itself fits 4 bits, or k' of an odd m = 2k' + 1 does. The sum of the codes is needed only where
        # 2k' + 1 does not fit 8 bits.
        odd = not self.box_filter and low >= -15 and high <= 15 and bool((self.weight % 2 != 0).all())
        return ConvShape(
            k,
            c,
            r,
            s,
            bits=self.bit_range,
            shuffle=self.shuffle,
            border_kernels=self.weight.dim() == 6,
            four_bits=odd or (low >= -8 and high <= 7),
            ones=self.box_filter and (low < -64 or high > 63),
        )

    @property
    def out_channels(self) -> int:
        """Channels of the output, after the PixelShuffle."""
        return self.weight.shape[-4] // self.shuffle**2

    def why_not(self, backend: str) -> str:
        """Why a backend cannot compute this convolution; empty where it can."""
        return ops.why_not_geometry(backend, self.geometry, self.weight.shape[-3:-1])

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output of an image of this size, after the PixelShuffle."""
        rows, columns = self.geometry.axes(*self.weight.shape[-3:-1])
        return rows.outputs(height) * self.shuffle, columns.outputs(width) * self.shuffle

    def set_backend(self, backend: str, threads: int) -> None:
        """Computes from now on with a backend that the registry has chosen, and packs the weights for it where needed. Raises
        ValueError where `why_not` has a reason."""
        if backend != "reference" and (self.packed.numel() == 0 or self._packed_for != backend):
            with torch.inference_mode(False):  # the packed weights stay, and are used outside of inference mode
                form = self.plan.tile_for_bits, self.box_filter, self.shuffle, self.geometry
                self.packed = ops.pack_weights(backend, self.weight, *form)
            self._packed_for = backend
        self.backend, self.threads = backend, threads

    def forward(
        self,
        x_q: torch.Tensor,
        bits: torch.Tensor,
        *,
        residual: torch.Tensor | None = None,
        out: str = "float",
        out_grid: torch.Tensor | None = None,
        out_bits: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes ops.conv2d on codes x_q [N, H, W, C4], packed where `packed_codes` is set, and returns its (y, y_q)."""
        return ops.conv2d(
            x_q, bits, *self._tables(), residual=residual, out_grid=out_grid, out_bits=out_bits, out=out, **self._settings()
        )

    def into(
        self,
        x_q: torch.Tensor,
        bits: torch.Tensor,
        *,
        y: torch.Tensor | None = None,
        y_q: torch.Tensor | None = None,
        accumulate: bool = False,
        residual: torch.Tensor | None = None,
        out_grid: torch.Tensor | None = None,
        out_bits: torch.Tensor | None = None,
        fraction: int | None = None,
        depth: torch.Tensor | None = None,
        region: Sequence[int] = (),
    ) -> None:
        """Computes `forward` into tensors that exist already (ops.conv2d_out). fraction: the fraction of y and the residual where
        they are int16, None where they are float32. depth, region: given where not every pixel is computed."""
        # Every layer of a body runs through here. So it calls the operator itself, with arguments by position and buffers from the
        # dictionary.
        held = self._buffers
        library.conv2d_out(
            x_q, bits, held["weight"], held["packed"], held["alpha"], held["beta"], held["slope"], residual, out_grid, out_bits,
            self.box_filter, self.activation, self.shuffle, accumulate, "float32" if fraction is None else "int16", fraction or 0,
            self.packed_codes, self.backend, self.threads, depth, region, y, y_q, self.geometry_numbers,
        )  # fmt: skip

    def pixels(self, x_q: torch.Tensor, bits: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the features as pixels, uint8 [N, H*r, W*r, K/r^2] (ops.conv2d_pixels)."""
        return ops.conv2d_pixels(x_q, bits, *self._tables(), residual=residual, **self._settings())

    def pixels_into(
        self, x_q: torch.Tensor, bits: torch.Tensor, image: torch.Tensor, residual: torch.Tensor | None = None, **place: Any
    ) -> None:
        """Computes `pixels` into an image (ops.conv2d_pixels_out). place: depth and region, as in `into`."""
        ops.conv2d_pixels_out(x_q, bits, *self._tables(), image=image, residual=residual, **place, **self._settings())

    def set_rest(self, rest: IntegerConv2d, lower: float, upper: float) -> None:
        """Takes `rest` for the second of two digits. lower, upper: the range of the first digit."""
        self.rest, self.lower, self.step = rest, lower, act_steps(lower, upper)[-1].item()
        self.late, self.activation = self.activation, "none"
        rest.name = f"{rest.name}, second digit"

    def leave(self, x: torch.Tensor, x_q: torch.Tensor, fraction: int | None = None) -> torch.Tensor:
        """The difference between the features x and the values of their codes x_q, uint8 [N, H, W, C4]. It overwrites x where x is
        float32 [N, H, W, C], and is in fresh memory where x is int16 with a fraction."""
        values = x if fraction is None else from_fixed(x, fraction)
        return values.sub_(x_q[..., : x.shape[3]].float().mul_(self.step).add_(self.lower))

    def two_digits(
        self,
        x_q: torch.Tensor,
        left_q: torch.Tensor,
        bits: torch.Tensor,
        y: torch.Tensor | None = None,
        image: torch.Tensor | None = None,
        **place: Any,
    ) -> torch.Tensor:
        """Returns the features, float32 [N, r*H, r*W, K/r^2], from the 8-bit codes of the first and the second digit, uint8 [N, H,
        W, C4] each.

        y: the tensor to write to, if any. image: an image of 8 bits to write pixels into and to return instead; only without an
        activation. place: depth and region as in `into`, only with a y.
        """
        if y is None:
            y, _ = self(x_q, bits)
        else:
            self.into(x_q, bits, y=y, **place)
        rest = self.rest
        assert rest is not None
        if image is not None:
            rest.pixels_into(left_q, bits, image, residual=y, **place)
            return image
        rest.into(left_q, bits, y=y, accumulate=True, **place)
        if self.late == "relu":
            y.clamp_(min=0)
        elif self.late == "prelu":
            slope = self.slope
            assert slope is not None
            y = torch.where(y < 0, y * slope[: y.shape[3]], y)
        return y

    def why_not_with(self, second: IntegerConv2d) -> str:
        """Why this convolution and the next one cannot run as one; empty where `into_with` can run them."""
        if self.geometry_numbers or second.geometry_numbers:
            return "not both are of stride 1, without dilation and groups"
        if second.backend != self.backend:
            return f"one runs on {self.backend}, the other on {second.backend}"
        return ops.why_not_resblock(self.backend, (self.weight, self.box_filter), (second.weight, second.box_filter))

    def into_with(
        self,
        second: IntegerConv2d,
        x_q: torch.Tensor,
        bits: torch.Tensor,
        inner_bits: torch.Tensor,
        fraction: int | None = None,
        **outputs: Any,
    ) -> None:
        """Runs this convolution and then `second`, as one, into outputs of the second (see ops.resblock_out). fraction: as in
        `into`."""
        boxes = (self.box_filter, second.box_filter)
        ops.resblock_out(
            x_q, bits, self._tables(), second._tables(), second.grid, inner_bits, slope=self.slope, box_filters=boxes,
            activation=self.activation, packed_codes=self.packed_codes, backend=self.backend, **outputs, **_held_in(fraction),
        )  # fmt: skip

    def _tables(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        held = self._buffers
        return held["weight"], held["packed"], held["alpha"], held["beta"]

    def _settings(self) -> ConvSettings:
        return {
            "slope": self._buffers["slope"],
            "box_filter": self.box_filter,
            "activation": self.activation,
            "shuffle": self.shuffle,
            "packed_codes": self.packed_codes,
            "backend": self.backend,
            "threads": self.threads,
            "stride": self.geometry.stride,
            "dilation": self.geometry.dilation,
            "groups": self.geometry.groups,
            "padding": self.geometry.padding,
        }


def _held_in(fraction: int | None) -> dict[str, Any]:
    """The arguments of the operators that say the type of a convolution's features."""
    return {} if fraction is None else {"features": "int16", "fraction": fraction}


class AdaptiveConv2d(IntegerConv2d):
    """A calibrated convolution. Its weights are integers, and the bit-width of each image's codes is data.

    gain, shift: a residual scale, a folded normalisation or a mean colour, float64 [K] or None. They change the convolution's
    result to gain * (conv + bias) + shift. activation: "none", "relu", or "prelu" with `slope` [K]. shuffle: the factor of the
    PixelShuffle. With a factor above 1, outputs are stored by sub-pixel first, so every table of outputs is reordered here once.
    Raises ValueError where an accumulator could overflow.
    """

    def __init__(
        self,
        parameters: ConvParameters,
        *,
        activation: str = "none",
        slope: torch.Tensor | None = None,
        gain: torch.Tensor | None = None,
        shift: torch.Tensor | None = None,
        shuffle: int = 1,
    ):
        k = parameters.codes.shape[0]
        order = shuffle_order(k, shuffle)
        codes = parameters.codes[order]
        grid = parameters.weight_grid
        integers = weight_integers(codes, grid)
        # On the odd grid there are two ways: multiply m = 2k' + 1 itself, or multiply k' and let the kernel add the sum of the
        # codes (docs/numerics.md). The first saves that sum. In the second, numbers are half as wide: weights of 8 bits fit 8 bits,
        # and transformed weights are split less often below. On the signed grid m is k'.
        forms = [(False, integers)] if grid == "signed" or parameters.weight_bits < 8 else []
        geometry, kernel = parameters.geometry, integers.shape[2:]
        # Without plain geometry the sum of the codes is computed by products, which would double the products.
        forms += [(True, codes)] if grid == "odd" and (not forms or geometry.is_plain(*kernel)) else []
        times, plain = tile_times(native.planning_isa()), geometry.is_plain(*kernel)
        plans = [plan_layer(parameters.name, w.numpy(), MAX_BITS, times=times, box_filter=box, plain=plain) for box, w in forms]
        best = min(range(len(forms)), key=lambda i: plans[i].time(*parameters.bit_range))
        (box_filter, operand), plan = forms[best], plans[best]
        upper = parameters.weight_upper.to(torch.float64).reshape(-1).expand(k)[order]
        scale = weight_step(upper, parameters.weight_bits, grid)
        gain = torch.ones(k, dtype=torch.float64) if gain is None else gain.to(torch.float64)[order]
        shift = torch.zeros(k, dtype=torch.float64) if shift is None else shift.to(torch.float64)[order]
        bias = parameters.bias.to(torch.float64)[order]
        lowers = torch.full((integers.shape[1] * geometry.groups,), parameters.lower, dtype=torch.float64)
        if parameters.input_shift is not None:
            lowers = lowers + parameters.input_shift
        # Each output reads the channels of its group, which is the group of its place in torch's order.
        of_outputs = lowers.view(geometry.groups, -1)[order // (k // geometry.groups)]
        steps = act_steps(parameters.lower, parameters.upper)
        alpha, beta = conv_tables(integers, scale, bias, of_outputs, steps, geometry)
        super().__init__(
            parameters.name,
            plan,
            operand.permute(0, 2, 3, 1),
            alpha * gain,
            gain * beta + shift,
            act_grid(parameters.lower, parameters.upper),
            slope=None if slope is None else slope[order],
            box_filter=box_filter,
            activation=activation,
            shuffle=shuffle,
            geometry=geometry,
        )
        self.parameters_ = parameters
        if parameters.digits == 2:
            half = rest_range(parameters.lower, parameters.upper)
            second = replace(parameters, digits=1, lower=-half, upper=half, bias=torch.zeros_like(parameters.bias))
            rest = AdaptiveConv2d(second, gain=gain[torch.argsort(order)], shuffle=shuffle)
            self.set_rest(rest, parameters.lower, parameters.upper)

    def take_pixels(self, before: Node | None) -> None:
        """Keeps the tensors that turn pixels into codes, where pixels are this convolution's input: `pixel_grid`, and
        `pixel_shift`, which is float32 [C] or None. before: the node between the pixels and the convolution, if any, an Affine
        without a gain or a ColourShift."""
        p, shift = self.parameters_, self.parameters_.input_shift
        unit = before.divisor if isinstance(before, Affine) and before.divisor is not None else 1.0
        if isinstance(before, ColourShift):
            # This is subtracted from pixels to get the values that the codes stand for.
            mean = torch.tensor(before.mean, dtype=torch.float32) * -before.sign
            shift = mean if shift is None else mean + shift
        elif isinstance(before, Affine) and before.shift is not None:
            added = torch.tensor(before.shift, dtype=torch.float32)
            shift = (-added if shift is None else shift - added) * unit
        self.register_buffer("pixel_shift", shift)
        self.register_buffer("pixel_grid", act_grid(p.lower * unit, p.upper * unit))

    @property
    def bit_range(self) -> tuple[int, int]:
        """The fewest and the most bits that the codes of an image can have here."""
        return self.parameters_.bit_range

    @property
    def bit_rule(self) -> tuple[int, int]:
        """The pair (base, follows) of image_bits.bits_by_rule: the bits of the input codes, and 1 where images change them or 0."""
        p = self.parameters_
        return (p.act_bits + p.layer_offset, 1) if p.adaptive else (p.act_bits, 0)


def _span(values: torch.Tensor) -> str:
    return f"{values.min():g}..{values.max():g}"
