"""FSRCNN (Dong et al., ECCV 2016): its graph, and how its state dicts are recognised."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from ..graph.builder import Builder
from ..graph.nodes import Activation, Graph
from .brightness import COLOURS, STUDIO, beside_colours, brightness_of, of_colours, reads_brightness, with_colours
from .layouts import Layout, State, count, listed, scale_said, with_each_scale
from .spec import NetworkSpec

_FIRST, _LAST = "fsrcnn.convs.0.weight", "fsrcnn.last"
_KERNEL = 9  # pixels a side of the transposed convolution's kernel


def _in_turns(start: int) -> object:
    """Gives the new names in a list in which convolutions and PReLUs take turns. start: the number that the first of them has among
    all convolutions."""

    def rename(found: re.Match[str]) -> str:
        number = int(found[1])
        return f"fsrcnn.{('convs', 'acts')[number % 2]}.{start + number // 2}."

    return rename


def _renamed(lists: tuple[str, ...], last: str, state: State) -> dict[str, str]:
    renamed: dict[str, str] = {}
    start = 0
    for part in lists:
        pattern = re.compile(rf"{part}\.(\d+)\.")
        renamed |= {key: pattern.sub(_in_turns(start), key) for key in state if pattern.match(key)}  # type: ignore[call-overload]
        start += (count(state, rf"{part}\.(\d+)\.") + 1) // 2
    return {key: renamed.get(key, re.sub(rf"^{last}\.", f"{_LAST}.", key)) for key in state}


def shuffled(weight: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
    """The weight of the convolution that, followed by a PixelShuffle, equals a transposed convolution. The sides of that one's
    output are `stride` times those of its input.

    weight: that of the transposed convolution, [C, K, R, R]. Returns [K * stride^2, C, S, S] with an odd S. Output number stride *
    q + r of the transposed convolution reads input q + t by its tap r + padding - stride * t.
    """
    c, k, taps, _ = weight.shape
    half = max((padding + stride - 1) // stride, (taps - 1 - padding) // stride)
    made = weight.new_zeros(k, stride, stride, c, 2 * half + 1, 2 * half + 1)
    places = [(r, t, r + padding - stride * t) for r in range(stride) for t in range(-half, half + 1)]
    places = [place for place in places if 0 <= place[2] < taps]
    for r, t, tap in places:
        for q, u, other in places:
            made[:, r, q, :, t + half, u + half] = weight[:, :, tap, other].T
    return made.flatten(0, 2)


def _folded(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights, with the transposed convolution turned into a convolution that a PixelShuffle follows. For a network of the
    brightness, they include the convolution that makes the rest of the colours."""
    weight, bias = state.get(f"{_LAST}.weight"), state.get(f"{_LAST}.bias")
    marked = any(f"scale_{scale}" in state for scale in FSRCNNSpec.scales)
    if not marked or weight is None or bias is None or weight.shape[2:] != (_KERNEL, _KERNEL):
        return state
    scale = scale_said(state)
    made = {f"{_LAST}.weight": shuffled(weight, scale, _KERNEL // 2), f"{_LAST}.bias": bias.repeat_interleave(scale**2)}
    state = state | made
    return beside_colours(of_colours(state, _FIRST, STUDIO), _LAST, STUDIO, 1) if reads_brightness(state, _FIRST) else state


def _layout(name: str, lists: tuple[str, ...], last: str) -> Layout:
    keys = {f"{lists[0]}.0.weight", f"{lists[1]}.0.weight", f"{last}.weight"}
    first = f"{lists[0]}.0.weight"
    return Layout(
        name,
        (first,),
        lambda state: keys <= state.keys(),
        lambda state: _renamed(lists, last, state),
        1,
        folded=_folded,
        by_scale=with_each_scale,
    )


LAYOUTS = (
    _layout("yjn870_fsrcnn", ("first_part", "mid_part"), "last_part"),
    _layout("lornatang_fsrcnn", ("feature_extraction", "shrink", "map", "expand"), "deconv"),
)


@dataclass(frozen=True)
class FSRCNNSpec(NetworkSpec):
    """The hyper-parameters of one FSRCNN, whose transposed convolution of 9x9 is computed as one of 5x5 or 3x3 and a PixelShuffle.

    scale: 2, 3 or 4. layers: the number of convolutions between the shrinking and the expanding one. channels, inner: the features
    outside of these two convolutions, and between them. brightness: true where the network makes the brightness alone, and bicubic
    makes the colours.
    """

    network = "fsrcnn"
    title = called = "FSRCNN"
    known_by = "'first_part.0.weight' with 'last_part.weight', or 'feature_extraction.0.weight' with 'deconv.weight'"
    anchor = _FIRST
    layouts = LAYOUTS
    module_layers = ("ConvTranspose2d",)

    scale: int
    layers: int = 4
    channels: int = 56
    inner: int = 12
    brightness: bool = False

    def __post_init__(self) -> None:
        self.check_sizes("layers", "channels", "inner")

    @property
    def any_order(self) -> bool:
        return not self.brightness

    def build(self) -> Graph:
        b, d, s = Builder(), self.channels, self.inner
        y = brightness_of(b, "x", STUDIO) if self.brightness else "x"
        shapes = [(3, d, 5), (d, s, 1), *[(s, s, 3)] * self.layers, (s, d, 1)]
        for i, (inputs, outputs, kernel) in enumerate(shapes):
            role = "adaptive" if i else "end"
            y = b.conv(f"fsrcnn.convs.{i}", y, (inputs, outputs), kernel, role=role, body=i > 0)
            y = b.add(Activation(f"fsrcnn.acts.{i}", (y,), "prelu", key=f"fsrcnn.acts.{i}", slopes=outputs))
        kernel = shuffled(torch.empty(1, 1, _KERNEL, _KERNEL), self.scale, _KERNEL // 2).shape[-1]
        y = b.conv(_LAST, y, (d, (1 if self.brightness else 3) * self.scale**2), kernel, role="end")
        y = b.shuffle(f"{_LAST}.shuffle", y, self.scale)
        return b.graph(with_colours(b, y, self.scale) if self.brightness else y, {f"scale_{self.scale}": (1,)})

    @classmethod
    def fits(cls, state: State) -> bool:
        return _FIRST in state

    @classmethod
    def read(cls, state: State, res_scale: float) -> FSRCNNSpec:
        layers = count(state, r"fsrcnn\.convs\.(\d+)\.") - 3
        weights = [state.get(f"fsrcnn.convs.{i}.weight") for i in (0, 1)]
        if layers < 1 or any(weight is None or weight.ndim != 4 for weight in weights):
            raise ValueError(f"the state dict looks like an FSRCNN but lacks some of its convolutions, got {listed(list(state))}")
        brightness = f"{COLOURS}.weight" in state
        return cls(scale_said(state), layers, len(state[_FIRST]), len(state["fsrcnn.convs.1.weight"]), brightness)
