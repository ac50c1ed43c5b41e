"""Writes a converted network as operators of ONNX: quantised convolutions between QuantizeLinear and DequantizeLinear.

A code q of n bits lies in a byte. A grid that begins at `lower` has in general no code for zero, while the zero point of ONNX is a
code. So the tensor is moved by the difference `apart` = lower + zero * step before it is quantised, where `zero` is the code
nearest to zero: the value of q is (q - zero) * step + apart. The last term is added behind the convolution, where it is a constant
except at the border, whose taps outside the picture do not have it. docs/interchange.md has the arithmetic and its bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..graph.fold import folded, slopes
from ..graph.fuse import FusedConv
from ..graph.nodes import Activation, Affine, Graph, Node
from ..nn import ConvertedNetwork
from ..nn.conv import AdaptiveConv2d, IntegerConv2d
from ..parameters import ConvParameters
from ..quantize import MAX_BITS, MOST_FIXED, act_steps, rest_range, shuffle_order, weight_integers, weight_step
from .float_operators import write_node
from .writing import Writing

Array = np.ndarray


@dataclass(frozen=True)
class Grid:
    """A grid of codes of `bits` bits that begins at `lower`, as QuantizeLinear has it."""

    lower: float
    step: float
    bits: int

    @classmethod
    def of(cls, lower: float, upper: float, bits: int) -> Grid:
        return cls(lower, float(act_steps(lower, upper)[bits - 2]), bits)

    @property
    def zero(self) -> int:
        """The code nearest to zero."""
        return int(np.clip(np.rint(-self.lower / self.step), 0, self.levels))

    @property
    def levels(self) -> int:
        return 2**self.bits - 1

    @property
    def apart(self) -> float:
        """The value of the code nearest to zero."""
        return self.lower + self.zero * self.step


@dataclass(frozen=True)
class Weights:
    """The weights of a convolution: integers [K, C / groups, R, S], the value of the integer 1 for each output, and the constant
    that is added, [K]. All are float64."""

    integers: Array
    scale: Array
    bias: Array


def weights_of(parameters: ConvParameters, gain: torch.Tensor, shift: torch.Tensor) -> Weights:
    """The weights of a convolution of which gain * (conv + bias) + shift is computed. gain, shift: float64 [K]."""
    grid = parameters.weight_grid
    integers = weight_integers(parameters.codes, grid).double()
    upper = parameters.weight_upper.to(torch.float64).reshape(-1).expand(len(integers))
    scale = weight_step(upper, parameters.weight_bits, grid) * gain
    bias = parameters.bias.double() * gain + shift
    return Weights(integers.numpy(), scale.numpy(), bias.numpy())


class QuantizedWriting:
    """Writes the nodes of a converted network. bits: the bits of the input codes of each quantised convolution, by name.

    units: for features that are held in units of a power of two (docs/numerics.md), the factor by which the tensor in the file is
    larger than the features. These are then whole numbers, and all other factors stay exact.
    """

    def __init__(self, to: Writing, model: ConvertedNetwork, bits: Mapping[str, int]) -> None:
        self.to, self.model, self.bits = to, model, bits
        self.graph: Graph = model.spec.graph()
        self.names: dict[str, str] = {self.graph.inputs[0]: "x"}
        self.units: dict[str, float] = {}
        self.alike: dict[str, str] = {}  # for each tensor, one with the same rows and columns
        self.ones: dict[str, str] = {}

    def write(self) -> list[str]:
        """Writes the network, with its upsampler in one piece where it has that form. Returns the names of its outputs in the
        file."""
        items, collapsed = list(self.model.items), self.model.collapsed
        if collapsed is not None:
            key = self.model.spec.tail_names[0]
            at = next(i for i, item in enumerate(items) if isinstance(item, FusedConv) and item.conv.key == key)
            first, items = items[at], items[:at]
        for item in items:
            if isinstance(item, FusedConv):
                self._convolution(item)
            else:
                self._node(item)
        if collapsed is not None:
            assert isinstance(first, FusedConv)
            return [self._collapsed(first, collapsed)]
        return [self._plain(name) for name in self.graph.outputs]

    # ---- tensors

    def _plain(self, name: str) -> str:
        """The features of a tensor in their own unit."""
        unit = self.units.get(name, 1.0)
        return self.names[name] if unit == 1 else self.to.op("Mul", self.names[name], self.to.floats(1 / unit))

    def _node(self, node: Node) -> None:
        inputs = [self._plain(name) for name in node.inputs]
        y = write_node(self.to, node, inputs, self.model.plain_tensor)
        self.names[node.name] = y
        if isinstance(node, Activation | Affine):
            self.alike[node.name] = self.alike.get(node.x, node.x)
        if self.model.fraction is not None and node.name in self.model.stream:
            self._hold(node.name, self.to.op("Mul", y, self.to.floats(2.0**self.model.fraction)))

    def _hold(self, name: str, y: str) -> None:
        """Rounds features in their unit, as the network holds them."""
        assert self.model.fraction is not None
        ends = self.to.floats(-MOST_FIXED), self.to.floats(MOST_FIXED)
        self.names[name] = self.to.op("Clip", self.to.op("Round", y), *ends)
        self.units[name] = 2.0**self.model.fraction

    def _quantized(self, x: str, grid: Grid, shift: float | Array, name: str) -> tuple[str, str]:
        """Two tensors: x, moved by what its grid lies apart from zero, and the values of its codes less that.

        shift: what is subtracted from x besides, for all channels or for each.
        """
        to, away = self.to, np.asarray(shift + grid.apart, np.float32)
        moved = to.op("Sub", x, to.channels_of(away), name=f"{name}/moved") if away.any() else x
        held = moved
        if grid.bits < MAX_BITS:  # a byte saturates at 8 bits by itself
            ends = [to.floats((end - grid.zero) * grid.step) for end in (0, grid.levels)]
            held = to.op("Clip", moved, *ends, name=f"{name}/clipped")
        scale, zero = to.floats(grid.step, f"{name}/step"), to.constant(grid.zero, np.uint8, f"{name}/zero")
        codes = to.op("QuantizeLinear", held, scale, zero, name=f"{name}/codes")
        return moved, to.op("DequantizeLinear", codes, scale, zero, name=f"{name}/values")

    def _weight(self, weights: Weights, name: str) -> str:
        """The weights as bytes that are multiplied by their scale, or as floats where they do not fit, which is so on the odd grid
        of 8 bits."""
        to, scale = self.to, weights.scale.astype(np.float32)
        signed = weights.integers * np.sign(weights.scale).reshape(-1, 1, 1, 1)
        fits = -128 <= signed.min() and signed.max() <= 127 and bool((np.abs(scale) >= np.finfo(np.float32).tiny).all())
        if not fits:
            return to.floats(weights.integers * weights.scale.reshape(-1, 1, 1, 1), name)
        codes = to.constant(signed, np.int8, f"{name}/codes")
        return to.op("DequantizeLinear", codes, to.floats(np.abs(scale), f"{name}/scale"), name=name, axis=0)

    # ---- convolutions

    def _convolution(self, item: FusedConv) -> None:
        """Writes a quantised convolution with everything that is computed together with it."""
        to, key, source = self.to, item.conv.key, item.inputs[0]
        conv, own = self.model.conv(key), self.model.parameters_by_name[key]
        gain, shift = folded(item, self.model.plain_tensor)
        weights = weights_of(own, gain, shift)
        unit, made = self.units.get(source, 1.0), 1.0
        if self.model.fraction is not None and item.name in self.model.stream:
            made = 2.0**self.model.fraction
        x, lower, upper = self.names[source], own.lower, own.upper
        offset = 0.0 if own.input_shift is None else own.input_shift.double().numpy()
        taken: float | Array = offset  # what is subtracted before quantising, in the units of x
        if source in self.graph.inputs:
            before = item.before
            unit = before.divisor if isinstance(before, Affine) and before.divisor is not None else 1.0
            taken = 0.0 if conv.pixel_shift is None else conv.pixel_shift.double().numpy()
        grid = Grid.of(lower * unit, upper * unit, self.bits[own.name])
        moved, values = self._quantized(x, grid, taken, key)
        scaled = Weights(weights.integers, weights.scale * made, weights.bias * made)
        per_value = Weights(scaled.integers, scaled.scale / unit, scaled.bias)
        weight, added = self._weight(per_value, f"{key}.weight"), np.asarray(grid.apart / unit + offset)
        settings: dict[str, Any] = {
            "kernel_shape": list(item.conv.kernel),
            "strides": list(item.conv.stride),
            "dilations": list(item.conv.dilation),
            "pads": self._pads(conv, own),
            "group": item.conv.groups,
        }
        if own.digits == 2:
            half = rest_range(lower * unit, upper * unit)
            second = Grid.of(-half, half, self.bits[own.name])
            _, left = self._quantized(to.op("Sub", moved, values), second, 0.0, f"{key}/second")
            added = added + second.apart / unit
            y = to.op("Add", to.op("Conv", values, weight, **settings), to.op("Conv", left, weight, **settings))
            y = to.op("Add", y, self._constant(source, scaled, added, settings, key))
        elif not added.any() or not any(settings["pads"]):
            bias = scaled.bias + (scaled.scale[:, None, None, None] * self._sums(scaled, added, item.conv.groups)).sum((1, 2, 3))
            y = self._biased(to.op("Conv", values, weight, **settings), bias, key)
        else:
            y = to.op("Conv", values, weight, **settings)
            y = to.op("Add", y, self._constant(source, scaled, added, settings, key))
        self._after(item, y, made, source)

    def _biased(self, y: str, bias: Array, name: str) -> str:
        """A tensor with a constant added to each channel. It is no bias of the convolution, since ONNX Runtime would round that to
        a whole number of the products' unit."""
        return self.to.op("Add", y, self.to.floats(bias.reshape(-1, 1, 1), f"{name}.bias"))

    def _pads(self, conv: AdaptiveConv2d, own: ConvParameters) -> list[int]:
        rows, columns = own.geometry.axes(*own.codes.shape[2:])
        return [rows.before, columns.before, rows.after, columns.after]

    @staticmethod
    def _sums(weights: Weights, added: Array, groups: int) -> Array:
        """The integers of each tap times what is added to the channels that it reads, [K, 1, R, S]."""
        k, c = weights.integers.shape[:2]
        of_channels = np.broadcast_to(added, (c * groups,)).reshape(groups, c)
        of_outputs = of_channels[np.arange(k) // (k // groups)]
        return (weights.integers * of_outputs[:, :, None, None]).sum(1, keepdims=True)

    def _constant(self, source: str, weights: Weights, added: Array, settings: dict[str, Any], key: str) -> str:
        """What is added behind a convolution whose input lacks `added`, [1, K, H, W]: the convolution of a picture that holds it
        everywhere inside, and zeros outside."""
        to = self.to
        sums = self._sums(weights, added, settings["group"]) * weights.scale.reshape(-1, 1, 1, 1)
        bias = to.floats(weights.bias, f"{key}.bias")
        weight = to.floats(sums, f"{key}/border")
        return to.op("Conv", self._ones(source), weight, bias, **(settings | {"group": 1}))

    def _ones(self, source: str) -> str:
        """A picture [1, 1, H, W] of ones, of the size of a tensor."""
        source = self.alike.get(source, source)
        if source not in self.ones:
            x = self.names[source]
            sizes = self.to.sizes(1, 1, self.to.side(x, 2), self.to.side(x, 3))
            self.ones[source] = self.to.op("Expand", self.to.floats([[[[1.0]]]]), sizes)
        return self.ones[source]

    def _after(self, item: FusedConv, y: str, made: float, source: str) -> None:
        """Writes what follows a convolution: activation, shuffle, residual, bounds, and the rounding of features that are held."""
        to = self.to
        if item.function == "relu":
            y = to.op("Relu", y)
        elif item.function == "prelu":
            slope = slopes(item, self.model.plain_tensor)
            assert slope is not None
            y = to.op("PRelu", y, to.floats(slope.numpy().reshape(-1, 1, 1), f"{item.conv.key}.slope"))
        elif item.function != "none":
            raise ValueError(f"'{item.name}': the activation {item.function} of an integer convolution is not written as ONNX")
        if item.shuffle > 1:
            y = to.op("DepthToSpace", y, blocksize=item.shuffle, mode="CRD")
        if item.residual is not None:
            unit = self.units.get(item.residual, 1.0)
            residual = self.names[item.residual]
            residual = residual if unit == made else to.op("Mul", residual, to.floats(made / unit))
            y = to.op("Add", residual, y)
        if item.clamp is not None:
            lower, upper = item.clamp
            y = to.op("Clip", y, to.floats(lower * made), "" if math.isinf(upper) else to.floats(upper * made))
        self.names[item.name] = y
        if item.conv.stride == (1, 1) and item.shuffle == 1 and _keeps(self.model.conv(item.conv.key)):
            self.alike[item.name] = self.alike.get(source, source)
        if made != 1 or (self.model.fraction is not None and item.name in self.model.stream):
            self._hold(item.name, y)

    # ---- the upsampler in one piece

    def _collapsed(self, first: FusedConv, conv: IntegerConv2d) -> str:
        """Writes the collapsed upsampler: one convolution for the pixels inside, and one for each side and corner, whose pixels
        have kernels of their own. No tap falls outside the picture."""
        to, source = self.to, first.inputs[0]
        own = self.model.parameters_by_name[first.conv.key]
        unit, lower, upper = self.units.get(source, 1.0), own.lower, own.upper
        grid = Grid.of(lower * unit, upper * unit, MAX_BITS)
        moved, values = self._quantized(self.names[source], grid, 0.0, "tail")
        y = self._bordered(values, conv, grid.zero, unit, "tail")
        if conv.rest is not None:
            half = rest_range(lower * unit, upper * unit)
            second = Grid.of(-half, half, MAX_BITS)
            _, left = self._quantized(to.op("Sub", moved, values), second, 0.0, "tail/second")
            y = to.op("Add", y, self._bordered(left, conv.rest, second.zero, unit, "tail/second"))
        return to.op("DepthToSpace", y, blocksize=conv.shuffle, mode="CRD")

    def _bordered(self, values: str, conv: IntegerConv2d, zero: int, unit: float, name: str) -> str:
        """A convolution with a kernel for each border class: [N, K, H, W] from values [N, C, H, W]."""
        to = self.to
        order = torch.argsort(shuffle_order(conv.weight.shape[2], conv.shuffle))
        weight = conv.weight[:, :, order].permute(0, 1, 2, 5, 3, 4).double().cpu().numpy()  # [R, S, K, C, R, S]
        alpha = conv.alpha[-1, order].double().cpu().numpy()
        beta = conv.beta[:, :, order].double().cpu().numpy() + alpha * zero * weight.sum((3, 4, 5))
        held = conv.grid[-1].double()
        scale = alpha * float(held[0]) / unit  # the value of the integer 1: alpha is that times the step
        radius = weight.shape[0] // 2
        rows = []
        for above in ("first", "inner", "last"):
            row = [self._piece(values, weight, scale, beta, radius, above, left, name) for left in ("first", "inner", "last")]
            rows.append(to.op("Concat", *row, axis=3))
        return to.op("Concat", *rows, axis=2)

    def _piece(self, values: str, weight: Array, scale: Array, beta: Array, radius: int, above: str, left: str, name: str) -> str:
        """The outputs of the first, inner or last rows and columns: where they are first or last, all border classes of that side
        are computed as outputs side by side, from the pixels that they reach."""
        to, size = self.to, 2 * radius + 1
        sides = {"first": range(radius), "inner": range(radius, radius + 1), "last": range(radius + 1, size)}
        classes = [(i, j) for i in sides[above] for j in sides[left]]
        reach = 2 * radius  # pixels that the outputs of one side reach, together
        taps = [size if side == "inner" else reach for side in (above, left)]

        def place(one: int, side: str) -> tuple[int, int]:
            """The first tap of a class that is inside, and the pixel of the part that it reads."""
            if side == "inner":
                return 0, 0
            first = one - radius if side == "first" else one - size  # of the part's first pixel, the pixel of tap 0
            return (-first, 0) if side == "first" else (0, first + radius)

        k, c = weight.shape[2:4]
        kernels = np.zeros((k, len(classes), c, *taps))
        for number, (i, j) in enumerate(classes):
            (row, at), (column, beside) = place(i, above), place(j, left)
            part = weight[i, j][:, :, row : row + taps[0] - at, column : column + taps[1] - beside]
            kernels[:, number, :, at : at + part.shape[2], beside : beside + part.shape[3]] = part
        constants = np.stack([beta[i, j] for i, j in classes], 1).reshape(-1)
        whole = Weights(kernels.reshape(-1, c, *taps), np.repeat(scale, len(classes)), constants)
        x = values
        for axis, side in ((2, above), (3, left)):
            if side != "inner":
                ends = (0, reach) if side == "first" else (-reach, np.iinfo(np.int64).max)
                x = to.op("Slice", x, *(to.integers([end]) for end in ends), to.integers([axis]))
        label = f"{name}/{above}_{left}"
        y = self._biased(to.op("Conv", x, self._weight(whole, f"{label}.weight")), whole.bias, label)
        if len(classes) == 1:
            return y
        beside_one_another = len(sides[left if above == "inner" else above])
        y = to.op("Reshape", y, to.integers([0, k, beside_one_another, -1]))
        return to.op("Transpose", y, perm=[0, 1, 3, 2]) if above == "inner" else y


def _keeps(conv: AdaptiveConv2d) -> bool:
    """Whether the output of a convolution has the rows and columns of its input."""
    return conv.out_size(64, 48) == (64 * conv.shuffle, 48 * conv.shuffle)
