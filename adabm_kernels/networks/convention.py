"""The convention of a network: what its own code does around its weights, which is the range of its pixels, its mean colour and the
order of its colours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from .spec import UNIT_RANGE, NetworkSpec

# The mean colour of DIV2K, (0.4488, 0.4371, 0.4040), times 255 in float32, as published weights carry it.
DIV2K_PIXELS = (114.44400024414062, 111.46049499511719, 103.02000427246094)

RGB_RANGES = (1, 255)
CHANNEL_ORDERS = ("rgb", "bgr")
MEAN_SHIFTS = ("none", "div2k")
UNIT_MEAN = 2.0  # a mean colour below this belongs to pixels in 0..1, because in 0..255 it would be black

SHIFTS = ("sub_mean.", "add_mean.")  # the beginnings of a mean shift's keys under AdaBM's names
_SIZES = {"sub_mean.weight": 9, "sub_mean.bias": 3, "add_mean.weight": 9, "add_mean.bias": 3}
_NOTHING = torch.empty(0)


@dataclass(frozen=True)
class Convention:
    """How a float network is to be read where its weights leave it open.

    rgb_range: 1 or 255, the largest value of the pixels it takes and gives; None for what the mean colour among its weights or its
        layout says, else 255.
    mean_shift: "none", "div2k" or three numbers in 0..1, the colour in parts of the range that an EDSR subtracts from its input and
        adds to its output; None for what its weights or its layout say.
    channel_order: "rgb", or "bgr" for a network trained on pictures as OpenCV reads them.

    Raises TypeError and ValueError naming the field, its rule and the value.
    """

    rgb_range: float | None = None
    mean_shift: str | tuple[float, float, float] | None = None
    channel_order: str = "rgb"

    def __post_init__(self) -> None:
        number = isinstance(self.rgb_range, (int, float)) and not isinstance(self.rgb_range, bool)
        if self.rgb_range is not None and not (number and self.rgb_range in RGB_RANGES):
            raise ValueError(f"rgb_range must be 1 or 255, got {self.rgb_range!r}")
        if self.channel_order not in CHANNEL_ORDERS:
            raise ValueError(f"channel_order must be 'rgb' or 'bgr', got {self.channel_order!r}")
        if self.mean_shift is None or (isinstance(self.mean_shift, str) and self.mean_shift in MEAN_SHIFTS):
            return
        rule = f"mean_shift must be 'none', 'div2k' or three numbers in 0..1, got {self.mean_shift!r}"
        if isinstance(self.mean_shift, str):
            raise ValueError(rule)
        try:
            colour = tuple(float(value) for value in self.mean_shift)
        except (TypeError, ValueError) as error:
            raise TypeError(rule) from error
        if len(colour) != 3 or not all(0 <= value <= 1 for value in colour):
            raise ValueError(rule)
        object.__setattr__(self, "mean_shift", colour)

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that differ from their defaults, by name."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}


AS_READ = Convention()  # the convention where the caller says nothing beside the weights


def shift_weights(pixels: tuple[float, float, float], rgb_range: float = 255) -> dict[str, torch.Tensor]:
    """The weights that subtract and add a colour in 0..255, for a network whose pixels have the range `rgb_range`."""
    mean, one = torch.tensor(pixels) * (rgb_range / 255), torch.eye(3).view(3, 3, 1, 1)
    return {"sub_mean.weight": one, "sub_mean.bias": -mean, "add_mean.weight": one, "add_mean.bias": mean}


@dataclass(frozen=True)
class Shift:
    """What an EDSR does to colours in float64: `before` @ colour + `minus` before its first convolution, and `after` @ colour +
    `plus` after its last. The colours are in the network's own range of pixels."""

    before: torch.Tensor
    minus: torch.Tensor
    after: torch.Tensor
    plus: torch.Tensor
    rtol: float = 1e-6

    @classmethod
    def by(cls, colour: torch.Tensor) -> Shift:
        """The shift that subtracts this colour and adds it again."""
        one, colour = torch.eye(3, dtype=torch.float64), colour.double()
        return cls(one, -colour, one, colour)

    @classmethod
    def of_weights(cls, state: Mapping[str, torch.Tensor]) -> Shift:
        """The shift that the 1x1 convolutions `sub_mean` and `add_mean` compute. Raises ValueError where the first of them has no
        inverse."""
        precision = max(torch.finfo(state[key].dtype).eps for key in _SIZES)
        before, minus, after, plus = (state[key].double() for key in _SIZES)
        before, after = before.view(3, 3), after.view(3, 3)
        if torch.linalg.matrix_rank(before) < 3:
            raise ValueError(f"detect: 'sub_mean.weight' must not lose a colour, got {before.tolist()}")
        return cls(before, minus, after, plus, max(cls.rtol, precision))

    @property
    def mean(self) -> torch.Tensor:
        """The colour that the first convolution maps to zero, float64 [3]."""
        return -torch.linalg.solve(self.before, self.minus)

    @property
    def rgb_range(self) -> int:
        """The range of pixels that this mean colour belongs to."""
        return 1 if 0 < float(self.mean.abs().max()) < UNIT_MEAN else 255

    def same(self, a: torch.Tensor, b: torch.Tensor) -> bool:
        """Returns whether two values are equal within the precision of the weights."""
        return torch.allclose(a, b, rtol=self.rtol, atol=self.rtol * float(b.abs().max()))

    @property
    def plain(self) -> bool:
        """Returns whether the shift only subtracts a colour and adds the same colour."""
        one = torch.eye(3, dtype=torch.float64)
        return self.same(self.before, one) and self.same(self.after, one) and self.same(self.plus, self.mean)

    def pixels(self, rgb_range: float) -> tuple[float, float, float]:
        """The mean colour in 0..255, as float32 values, where the network's pixels have the range `rgb_range`; exactly DIV2K's
        where it is equal to that within the precision of the weights."""
        mean, usual = self.mean * (255 / rgb_range), torch.tensor(DIV2K_PIXELS, dtype=torch.float64)
        return DIV2K_PIXELS if self.same(mean, usual) else tuple(mean.float().tolist())


def reading(state: Mapping[str, torch.Tensor], convention: Convention, usual: float | None) -> tuple[float, Shift | None]:
    """Returns the range of pixels of weights under AdaBM names, and their mean shift in this range, or None.

    usual: the range that their layout has; None where the layout has no range of its own. A mean colour among the weights is a
    fraction of their range: where the convention names another range, it stays the same fraction.
    """
    own = Shift.of_weights(state) if all(state.get(key, _NOTHING).numel() == count for key, count in _SIZES.items()) else None
    rgb_range = convention.rgb_range or usual or (own.rgb_range if own else 255)
    if convention.mean_shift == "none":
        return rgb_range, None
    if convention.mean_shift is None:
        if own is None or own.rgb_range == rgb_range:
            return rgb_range, own
        factor = rgb_range / own.rgb_range
        return rgb_range, replace(own, minus=own.minus * factor, plus=own.plus * factor)
    div2k = convention.mean_shift == "div2k"
    colour = torch.tensor(DIV2K_PIXELS if div2k else convention.mean_shift, dtype=torch.float64)
    return rgb_range, Shift.by(colour * (rgb_range / (255 if div2k else 1)))


def fold(
    state: Mapping[str, torch.Tensor], spec: NetworkSpec, rgb_range: float, shift: Shift | None, channel_order: str
) -> dict[str, torch.Tensor]:
    """The weights of the same network for RGB in 0..255 with the mean shift of `spec`, under the same AdaBM names.

    Except for the constants that they add, the networks are positively homogeneous: with all these constants times c, they map c x
    to c y. So a range of pixels is a factor on biases and on the means and biases of BatchNorms. Linear maps of colours go into the
    first and last convolutions, next to which they stand. Only the mean colour stays apart, because the first convolution pads with
    zeros after it. Raises ValueError for another range of a network with an activation that is not positively homogeneous.
    """
    gain = 1.0 if UNIT_RANGE in spec.graph().buffers else 255 / rgb_range
    if gain != 1 and not spec.takes_any_range:
        raise ValueError(
            f"detect: rgb_range must be 255 for a network of this kind, {spec.called}: of an activation that is neither a ReLU nor "
            f"one with slopes, biases do not take up the range; got {rgb_range:g}"
        )
    bgr = channel_order == "bgr"
    first, last = spec.convs()[0].name, spec.convs()[-1].name
    folded = {key: value for key, value in state.items() if not key.startswith(SHIFTS)}
    names = [key for key in folded if key.endswith((".bias", ".running_mean"))]
    if gain != 1:
        folded |= {key: (folded[key].double() * gain).float() for key in names}
    one = torch.eye(3, dtype=torch.float64)
    before, after = (one, one) if shift is None else (shift.before, shift.after)
    extra = torch.zeros(3, dtype=torch.float64)
    if spec.mean_shift and shift is not None:
        mean = torch.tensor(spec.mean, dtype=torch.float64)
        own = mean.flip(0) if bgr else mean
        extra = extra if shift.same(shift.plus * gain, own) else shift.plus * gain - own
        folded |= {f"{name}.weight": one.float().view(3, 3, 1, 1) for name in ("sub_mean", "add_mean")}
        folded |= {"sub_mean.bias": -mean.float(), "add_mean.bias": mean.float()}
    if bgr:
        swap = one.flip(0)
        before, after, extra = before @ swap, swap @ after, swap @ extra
    if not torch.equal(before, one):
        weight = folded[f"{first}.weight"].double()
        together = torch.eye(weight.shape[1] // 3, dtype=torch.float64)  # one entry for each group of a pixel's three colours
        folded[f"{first}.weight"] = torch.einsum("kcrs,cd->kdrs", weight, torch.kron(before, together)).float()
    for part in ("weight", "bias"):
        key = f"{last}.{part}"
        if key in folded and not torch.equal(after, one):
            value = folded[key].double()
            folded[key] = torch.einsum("dc,c...->d...", after, value.view(3, -1)).view(value.shape).float()
    if extra.any():
        bias = folded[f"{last}.bias"].double()
        folded[f"{last}.bias"] = (bias.view(3, -1) + extra[:, None]).flatten().float()
    return folded
