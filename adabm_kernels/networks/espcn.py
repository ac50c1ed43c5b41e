"""ESPCN (Shi et al., CVPR 2016): its graph, and how its state dicts are recognised."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..graph.builder import Builder
from ..graph.nodes import Activation, Affine, Graph
from .brightness import COLOURS, STUDIO, beside_colours, brightness_of, of_colours, reads_brightness, with_colours
from .layouts import Layout, State, listed, parts_renamed, scale_of
from .spec import UNIT_RANGE, NetworkSpec

_FIRST = "espcn.0.weight"


def _of_colours(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights for RGB. For a network of the brightness, they include the convolution that makes the rest of the colours."""
    if reads_brightness(state, _FIRST):
        state = beside_colours(of_colours(state, _FIRST, STUDIO), "espcn.2", STUDIO, 255)
    return state | {UNIT_RANGE: torch.ones(1)}


def _layout(name: str, first: str, last: str) -> Layout:
    parts = {f"{first}.0": "espcn.0", f"{first}.2": "espcn.1", f"{last}.0": "espcn.2"}
    keys = {f"{part}.weight" for part in parts}
    return Layout(
        name, (f"{first}.0.weight",), lambda s: keys <= s.keys(), lambda s: parts_renamed(s, parts, {}), folded=_of_colours
    )


LAYOUTS = (_layout("yjn870_espcn", "first_part", "last_part"), _layout("lornatang_espcn", "feature_maps", "sub_pixel"))


@dataclass(frozen=True)
class ESPCNSpec(NetworkSpec):
    """The hyper-parameters of one ESPCN: three convolutions with tanh between them.

    scale: 2, 3 or 4. channels, inner: the features after the first and after the second convolution. brightness: true where the
    network makes the brightness alone, and bicubic makes the colours. unit_range: true where the weights expect pixels in 0..1.
    """

    network = "espcn"
    title = called = "ESPCN"
    known_by = "'first_part.0.weight' with 'last_part.0.weight', or 'feature_maps.0.weight' with 'sub_pixel.0.weight'"
    anchor = _FIRST
    layouts = LAYOUTS
    says_range = True

    scale: int
    channels: int = 64
    inner: int = 32
    brightness: bool = False
    unit_range: bool = True

    def __post_init__(self) -> None:
        self.check_sizes("channels", "inner")

    @property
    def any_order(self) -> bool:
        return not self.brightness

    def build(self) -> Graph:
        b, s, divisor = Builder(), self.scale, 255.0 if self.unit_range else None
        y = "x"
        if self.brightness:
            y = brightness_of(b, "x", STUDIO, divisor)
        elif self.unit_range:
            y = b.add(Affine("to_range", ("x",), divisor=divisor))
        y = b.add(Activation("espcn.0.act", (b.conv("espcn.0", y, (3, self.channels), 5, role="end"),), "tanh"))
        y = b.add(Activation("espcn.1.act", (b.conv("espcn.1", y, (self.channels, self.inner), body=True),), "tanh"))
        y = b.conv("espcn.2", y, (self.inner, (1 if self.brightness else 3) * s**2), role="end")
        y = b.shuffle("espcn.2.shuffle", y, s)
        if self.unit_range:
            y = b.add(Affine("from_range", (y,), (255.0,)))
        return b.graph(with_colours(b, y, s) if self.brightness else y, {UNIT_RANGE: (1,)} if self.unit_range else {})

    @classmethod
    def fits(cls, state: State) -> bool:
        return _FIRST in state

    @classmethod
    def read(cls, state: State, res_scale: float) -> ESPCNSpec:
        weights = [state.get(f"espcn.{i}.weight") for i in range(3)]
        if any(weight is None or weight.ndim != 4 for weight in weights):
            raise ValueError(f"the state dict looks like an ESPCN but lacks one of its convolutions, got {listed(list(state))}")
        brightness = f"{COLOURS}.weight" in state
        scale = scale_of(state, "espcn.2.weight", 1 if brightness else 3, cls.scales)
        return cls(scale, len(state[_FIRST]), len(state["espcn.1.weight"]), brightness, UNIT_RANGE in state)
