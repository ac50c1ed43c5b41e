"""The parameters of one calibrated convolution, as checkpoints hold them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .quantize import MAX_BITS, MIN_BITS, PLAIN, WEIGHT_GRIDS, Geometry, act_grid, finite_float32


@dataclass(frozen=True)
class ConvParameters:
    """A calibrated convolution, as checkpoints hold it.

    codes: the codes k' of the weights (quantize.weight_codes), int8 [K, C / groups, R, S].
    weight_bits: the bits of the weights, 2..8.
    weight_upper: the range of the weights, float32 [1] or [K], above 0.
    weight_grid: "odd" or "signed", which says the integers that the codes stand for (quantize.weight_integers).
    bias: float32 [K].
    lower, upper: the range of the input, two different float32 values whose grids float32 holds.
    act_bits: the base bits, 2..8.
    layer_offset: the offset of the layer, -1, 0 or 1.
    adaptive: whether the offsets of images and of the layer apply.
    input_shift: the value that was added to each channel of the input after the range was taken, float32 [C], or None. The codes
        are those of the input without it.
    digits: how many 8-bit codes hold a value of the input, 1 or 2.
    geometry: stride, dilation, groups and padding.

    Raises ValueError naming the field, its rule and the value.
    """

    name: str
    codes: torch.Tensor
    weight_bits: int
    weight_upper: torch.Tensor
    bias: torch.Tensor
    lower: float
    upper: float
    act_bits: int
    layer_offset: int
    adaptive: bool
    weight_grid: str = "odd"
    input_shift: torch.Tensor | None = None
    digits: int = 1
    geometry: Geometry = PLAIN

    def __post_init__(self) -> None:
        codes, upper, bias, shift = self.codes, self.weight_upper, self.bias, self.input_shift
        widths = (MIN_BITS, MAX_BITS)
        for name, low, high in (("weight_bits", *widths), ("act_bits", *widths), ("layer_offset", -1, 1), ("digits", 1, 2)):
            value = getattr(self, name)
            self._require(name, type(value) is int and low <= value <= high, f"a whole number in {low}..{high}")
        self._require("adaptive", type(self.adaptive) is bool, "true or false")
        self._require("weight_grid", self.weight_grid in WEIGHT_GRIDS, f"one of {WEIGHT_GRIDS}")
        self._require("codes", codes.dtype == torch.int8 and codes.dim() == 4 and codes.numel() > 0, "int8 [K, C, R, S]")
        k, groups, most = codes.shape[0], self.geometry.groups, 2 ** (self.weight_bits - 1) - 1
        self._require("codes", k % groups == 0, f"for a number of outputs that {groups} groups divide")
        c = codes.shape[1] * groups
        self._require("codes", -most - 1 <= codes.min() and codes.max() <= most, f"in {-most - 1}..{most}")
        positive = _finite(upper, (1,), (k,)) and bool((upper > 0).all())
        self._require("weight_upper", positive, f"finite float32 [1] or [{k}], above 0")
        self._require("bias", _finite(bias, (k,)), f"finite float32 [{k}]")
        self._require("input_shift", shift is None or _finite(shift, (c,)), f"finite float32 [{c}], or None")
        for name in ("lower", "upper"):
            self._require(name, finite_float32(getattr(self, name)), "a finite number of float32")
        self._require("lower", self.lower < self.upper, f"below upper, {self.upper}")
        ends = torch.tensor([self.lower, self.upper], dtype=torch.float32)
        self._require("lower", bool(ends[0] < ends[1]), f"below upper, {self.upper}, in float32 too")
        try:
            act_grid(self.lower, self.upper)
        except ValueError as error:
            raise ValueError(f"ConvParameters: lower and upper of '{self.name}': {error}") from error

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            seen = repr(value := getattr(self, name))
            if isinstance(value, torch.Tensor):
                span = f", {value.min():g}..{value.max():g}" if value.numel() else ""
                seen = f"{value.dtype} {list(value.shape)}{span}"
            raise ValueError(f"ConvParameters: {name} of '{self.name}' must be {rule}, got {seen}")

    @property
    def bit_range(self) -> tuple[int, int]:
        """The fewest and the most bits that the codes of an image can have here when images decide about bits."""
        if not self.adaptive:
            return self.act_bits, self.act_bits
        base = self.act_bits + self.layer_offset
        return max(base - 1, MIN_BITS), min(base + 1, MAX_BITS)


def _finite(values: torch.Tensor, *shapes: tuple[int, ...]) -> bool:
    return values.dtype == torch.float32 and tuple(values.shape) in shapes and bool(values.isfinite().all())
