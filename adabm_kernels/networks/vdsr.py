"""VDSR (Kim et al., CVPR 2016): its graph, and how its state dicts are recognised."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..graph.builder import Builder
from ..graph.nodes import Graph
from .brightness import MARK, STUDIO, added_to_colours, bicubic, brightness_of, of_colours, reads_brightness
from .layouts import Layout, State, count, listed, matches, parts_renamed, scale_said, with_each_scale
from .spec import NetworkSpec

_FIRST = "vdsr.0.weight"


def _lornatang(state: State) -> dict[str, str]:
    layers = count(state, r"trunk\.(\d+)\.conv\.")
    parts = {"conv1.0": "vdsr.0", "conv2": f"vdsr.{layers + 1}"}
    return parts_renamed(state, parts, {r"trunk\.(\d+)\.conv(?=\.)": lambda m: f"vdsr.{int(m[1]) + 1}"})


def _twtygqyy(state: State) -> dict[str, str]:
    layers = count(state, r"residual_layer\.(\d+)\.conv\.")
    parts = {"input": "vdsr.0", "output": f"vdsr.{layers + 1}"}
    return parts_renamed(state, parts, {r"residual_layer\.(\d+)\.conv(?=\.)": lambda m: f"vdsr.{int(m[1]) + 1}"})


def _of_colours(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights for RGB: a network of the brightness adds to each colour what it adds to the brightness."""
    if not reads_brightness(state, _FIRST):
        return state
    last = f"vdsr.{count(state, r'vdsr[.]([0-9]+)[.]') - 1}"
    return added_to_colours(of_colours(state, _FIRST, STUDIO), last, STUDIO) | {MARK: torch.ones(1)}


def _layout(name: str, first: str, body: str, rename: object) -> Layout:
    return Layout(
        name,
        (first,),
        lambda state: first in state and matches(state, body),
        rename,  # type: ignore[arg-type]
        1,
        folded=_of_colours,
        by_scale=with_each_scale,
    )


LAYOUTS = (
    _layout("lornatang_vdsr", "conv1.0.weight", r"trunk\.\d+\.conv\.", _lornatang),
    _layout("twtygqyy_vdsr", "input.weight", r"residual_layer\.\d+\.conv\.", _twtygqyy),
)


@dataclass(frozen=True)
class VDSRSpec(NetworkSpec):
    """The hyper-parameters of one VDSR, which enlarges a picture by bicubic and adds to it the details that its convolutions
    compute.

    scale: 2, 3 or 4; the same weights serve for each. layers: the number of convolutions between the first and the last. channels:
    the features between all of them. bias: true where the convolutions have biases. brightness: true where the network was trained
    on the brightness alone; then it changes nothing but the brightness.
    """

    network = "vdsr"
    title = called = "VDSR"
    article = "a"
    known_by = "'conv1.0.weight' with 'trunk.0.conv.weight', or 'input.weight' with 'residual_layer.0.conv.weight'"
    anchor = _FIRST
    layouts = LAYOUTS

    scale: int
    layers: int
    channels: int = 64
    bias: bool = False
    brightness: bool = False

    def __post_init__(self) -> None:
        self.check_sizes("layers", "channels")

    @property
    def any_order(self) -> bool:
        return not self.brightness

    def build(self) -> Graph:
        b, c, last = Builder(), self.channels, self.layers + 1
        enlarged = bicubic(b, "enlarged", "x", self.scale)
        y = brightness_of(b, enlarged, STUDIO) if self.brightness else enlarged
        for i in range(last):
            y = b.conv(f"vdsr.{i}", y, (c if i else 3, c), role="adaptive" if i else "end", body=i > 0, bias=self.bias)
            y = b.relu(f"vdsr.{i}.act", y)
        y = b.sum("sum", b.conv(f"vdsr.{last}", y, (c, 3), role="end", bias=self.bias), enlarged)
        marks = [f"scale_{self.scale}", *([MARK] if self.brightness else [])]
        return b.graph(y, {mark: (1,) for mark in marks})

    @classmethod
    def fits(cls, state: State) -> bool:
        return _FIRST in state

    @classmethod
    def read(cls, state: State, res_scale: float) -> VDSRSpec:
        layers, first = count(state, r"vdsr\.(\d+)\.") - 2, state[_FIRST]
        if layers < 1 or first.ndim != 4:
            raise ValueError(f"the state dict looks like a VDSR but lacks its first or last convolution, got {listed(list(state))}")
        return cls(scale_said(state), layers, first.shape[0], "vdsr.0.bias" in state, MARK in state)
