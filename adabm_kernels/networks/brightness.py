"""Networks of the brightness alone, as networks of RGB: what their weights are then, and how the colours join.

Such a network takes and gives Y, a sum of the colours with weights `parts` and an offset, and leaves Cb and Cr to bicubic. R, G and
B all hold Y with the same factor `gain`, so that with Y' in place of Y a picture changes by gain * (Y' - Y) in each colour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..graph.builder import Builder
from ..graph.nodes import Affine, Concat, Resize


@dataclass(frozen=True)
class Brightness:
    """Y = parts . RGB + offset * 255, of pixels in 0..255."""

    parts: tuple[float, float, float]
    offset: float

    @property
    def gain(self) -> float:
        """How much one unit of Y adds to each colour."""
        return 1 / sum(self.parts)

    @property
    def shift(self) -> float:
        """What pixels in 0..1 lack for a sum without an offset to be Y. It is added before the first convolution, which pads Y
        with zeros."""
        return self.offset / sum(self.parts)


# ITU-R BT.601 in 16..235, as MATLAB's rgb2ycbcr computes it
STUDIO = Brightness((65.481 / 255, 128.553 / 255, 24.966 / 255), 16 / 255)
FULL = Brightness((0.299, 0.587, 0.114), 0.0)  # ITU-R BT.601 in 0..255, where Y of a grey picture is the picture

MARK = "brightness"  # a buffer of one element in the state dicts of networks of the brightness
COLOURS = "colours"  # key of the convolution that takes the brightness out of a picture


def reads_brightness(state: Mapping[str, torch.Tensor], first: str) -> bool:
    """Whether a network takes one channel, by the weight of its first convolution."""
    weight = state.get(first)
    return weight is not None and weight.ndim == 4 and weight.shape[1] == 1 and weight.is_floating_point()


def of_colours(state: dict[str, torch.Tensor], first: str, of: Brightness) -> dict[str, torch.Tensor]:
    """The state with the first convolution, of which `first` is the weight [K, 1, R, S], turned into a convolution of RGB."""
    parts = torch.tensor(of.parts, dtype=torch.float64).view(1, 3, 1, 1)
    return state | {first: (state[first].double() * parts).float()}


def added_to_colours(state: dict[str, torch.Tensor], last: str, of: Brightness) -> dict[str, torch.Tensor]:
    """The state with a last convolution `last`, whose output is added to Y, turned into one whose output is added to RGB."""
    found = {key: state[key] for key in (f"{last}.weight", f"{last}.bias") if key in state}
    return state | {key: (value.double() * of.gain).repeat(3, *[1] * (value.ndim - 1)).float() for key, value in found.items()}


def beside_colours(state: dict[str, torch.Tensor], last: str, of: Brightness, rgb_range: float) -> dict[str, torch.Tensor]:
    """The state with a last convolution `last` of Y turned into one of its share of each colour, and with the convolution that
    makes the rest of the colours."""
    parts = torch.tensor(of.parts, dtype=torch.float64)
    rest = torch.eye(3, dtype=torch.float64) - of.gain * parts
    found = {key: (state[key].double() * of.gain).float() for key in (f"{last}.weight", f"{last}.bias") if key in state}
    bias = torch.full((3,), -of.gain * of.offset * rgb_range)
    return state | found | {f"{COLOURS}.weight": rest.float().view(3, 3, 1, 1), f"{COLOURS}.bias": bias}


def brightness_of(b: Builder, x: str, of: Brightness, divisor: float | None = None) -> str:
    """The input of the first convolution of `of_colours`, from pixels in 0..255, or in 0..1 with a divisor of 255."""
    return b.add(Affine("offset", (x,), None, (of.shift * (255 if divisor is None else 1),) * 3, divisor))


def with_colours(b: Builder, y: str, scale: int) -> str:
    """The picture of the brightness y, with the colours of the picture "x" enlarged."""
    rest = b.conv(COLOURS, "x", (3, 3), 1, role="float")
    enlarged = bicubic(b, "enlarged", rest, scale)
    return b.sum("sum", b.add(Concat("grey", (y,) * 3)), enlarged)


def bicubic(b: Builder, name: str, x: str, scale: int) -> str:
    """Enlarged as MATLAB and Pillow do (Keys, a = -0.5); at its border as Pillow does."""
    return b.add(Resize(name, (x,), scale, "bicubic", False, antialias=True))
