"""Turns networks of the brightness alone into networks of RGB: what their weights become, and how the colours are added to the
result.

Such a network takes and gives Y, a sum of the colours with weights `parts` and an offset, and leaves Cb and Cr to bicubic. R, G and
B all contain Y with the same factor `gain`: with Y' in place of Y, each colour of a picture changes by gain * (Y' - Y).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..graph.builder import Builder
from ..graph.nodes import Affine, Concat, Resize


@dataclass(frozen=True)
class Brightness:
    """The brightness Y = parts . RGB + offset * 255 of pixels in 0..255."""

    parts: tuple[float, float, float]
    offset: float

    @property
    def gain(self) -> float:
        """The amount that one unit of Y adds to each colour."""
        return 1 / sum(self.parts)

    @property
    def shift(self) -> float:
        """The number that is added to each colour of pixels in 0..1 so that a sum without an offset gives Y. It is added before the
        first convolution, which pads Y with zeros."""
        return self.offset / sum(self.parts)


# ITU-R BT.601 in 16..235, as MATLAB's rgb2ycbcr computes it
STUDIO = Brightness((65.481 / 255, 128.553 / 255, 24.966 / 255), 16 / 255)
FULL = Brightness((0.299, 0.587, 0.114), 0.0)  # ITU-R BT.601 in 0..255, where Y equals a grey picture

MARK = "brightness"  # the key of a buffer of one element, which marks networks of the brightness
COLOURS = "colours"  # the key of the convolution that takes the brightness out of a picture


def reads_brightness(state: Mapping[str, torch.Tensor], first: str) -> bool:
    """Returns whether a network takes one channel, by the weight of its first convolution."""
    weight = state.get(first)
    return weight is not None and weight.ndim == 4 and weight.shape[1] == 1 and weight.is_floating_point()


def of_colours(state: dict[str, torch.Tensor], first: str, of: Brightness) -> dict[str, torch.Tensor]:
    """The state, with the first convolution, whose weight [K, 1, R, S] has the key `first`, turned into a convolution of RGB."""
    parts = torch.tensor(of.parts, dtype=torch.float64).view(1, 3, 1, 1)
    return state | {first: (state[first].double() * parts).float()}


def added_to_colours(state: dict[str, torch.Tensor], last: str, of: Brightness) -> dict[str, torch.Tensor]:
    """The state, with the last convolution, whose output is added to Y, turned into a convolution whose output is added to RGB.
    last: its key."""
    found = {key: state[key] for key in (f"{last}.weight", f"{last}.bias") if key in state}
    return state | {key: (value.double() * of.gain).repeat(3, *[1] * (value.ndim - 1)).float() for key, value in found.items()}


def beside_colours(state: dict[str, torch.Tensor], last: str, of: Brightness, rgb_range: float) -> dict[str, torch.Tensor]:
    """The state, with the last convolution, which makes Y, turned into one that makes the share of Y in each colour, and with the
    convolution that makes the rest of the colours. last: the key of the last convolution."""
    parts = torch.tensor(of.parts, dtype=torch.float64)
    rest = torch.eye(3, dtype=torch.float64) - of.gain * parts
    found = {key: (state[key].double() * of.gain).float() for key in (f"{last}.weight", f"{last}.bias") if key in state}
    bias = torch.full((3,), -of.gain * of.offset * rgb_range)
    return state | found | {f"{COLOURS}.weight": rest.float().view(3, 3, 1, 1), f"{COLOURS}.bias": bias}


def brightness_of(b: Builder, x: str, of: Brightness, divisor: float | None = None) -> str:
    """Adds the node that makes the input of the first convolution of `of_colours`, from pixels in 0..255, or from pixels in 0..1
    with a divisor of 255."""
    return b.add(Affine("offset", (x,), None, (of.shift * (255 if divisor is None else 1),) * 3, divisor))


def with_colours(b: Builder, y: str, scale: int) -> str:
    """Adds the nodes that make a picture of the brightness y and of the enlarged colours of the picture "x"."""
    rest = b.conv(COLOURS, "x", (3, 3), 1, role="float")
    enlarged = bicubic(b, "enlarged", rest, scale)
    return b.sum("sum", b.add(Concat("grey", (y,) * 3)), enlarged)


def bicubic(b: Builder, name: str, x: str, scale: int) -> str:
    """Enlarges x as MATLAB and Pillow do (Keys, a = -0.5), and at its border as Pillow does."""
    return b.add(Resize(name, (x,), scale, "bicubic", False, antialias=True))
