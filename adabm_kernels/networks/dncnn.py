"""DnCNN (Zhang et al., IEEE TIP 2017), which takes noise away: its graph, and how its state dicts are recognised."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from ..graph.builder import Builder
from ..graph.nodes import Add, BatchNorm, Graph
from .brightness import FULL, added_to_colours, of_colours, reads_brightness
from .layouts import Layout, State, count, listed
from .spec import NetworkSpec

_FIRST = "denoise.convs.0.weight"


def _renamed(prefix: str, state: State) -> dict[str, str]:
    """New names for convolutions and for the norms after them, which take turns with activations in one published list."""
    numbers = {int(m[1]): key for key in state if (m := re.fullmatch(rf"{prefix}(\d{{1,4}})\.weight", key))}
    parts, convs = {}, -1
    for number in sorted(numbers):
        norm = state[numbers[number]].ndim == 1
        convs += not norm
        parts[f"{prefix}{number}."] = f"denoise.{'norms' if norm else 'convs'}.{convs}."
    found = {key: re.match(rf"{prefix}\d+\.", key) for key in state}
    return {key: parts.get(m[0], m[0]) + key[m.end() :] if m else key for key, m in found.items()}


def _of_colours(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights for RGB: a network of grey pictures is given the brightness, and what it subtracts from the brightness is
    subtracted from each colour."""
    if not reads_brightness(state, _FIRST):
        return state
    last = f"denoise.convs.{count(state, r'denoise[.]convs[.]([0-9]+)[.]') - 1}"
    return added_to_colours(of_colours(state, _FIRST, FULL), last, FULL)


def _is_list(prefix: str, state: State) -> bool:
    """Returns whether everything under the prefix is a list of convolutions and norms. Other networks, too, have a part that is
    called "model.0"."""
    weights = [state.get(f"{prefix}{i}.weight") for i in (0, 2)]
    return all(w is not None and w.ndim == 4 for w in weights) and all(re.match(rf"{prefix}\d+\.[a-z_]+$", key) for key in state)


LAYOUTS = (
    Layout("kair", (), lambda s: _is_list("", s), lambda s: _renamed("", s), 1, folded=_of_colours),
    Layout("dncnn", ("dncnn.0.weight",), lambda s: _is_list("dncnn.", s), lambda s: _renamed("dncnn.", s), 1, folded=_of_colours),
)


@dataclass(frozen=True)
class DnCNNSpec(NetworkSpec):
    """The hyper-parameters of one DnCNN, which subtracts from x the noise that its convolutions find.

    scale: 1. layers: the number of convolutions between the first and the last. channels: the features between all of them. norm:
    the `eps` of the BatchNorm after each of these layers; 0 where there is none. first_bias: true where the first convolution has a
    bias. bias: true where the others have one.
    """

    network = "dncnn"
    title = called = "DnCNN"
    article = "a"
    known_by = "'model.0.weight' with 'model.2.weight', or 'dncnn.0.weight' with 'dncnn.2.weight'"
    anchor = _FIRST
    scales = (1,)
    layouts = LAYOUTS

    scale: int
    layers: int
    channels: int = 64
    norm: float = 0.0
    first_bias: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        self.check_sizes("layers", "channels")

    def build(self) -> Graph:
        b, c, last = Builder(), self.channels, self.layers + 1
        y = b.relu("denoise.acts.0", b.conv("denoise.convs.0", "x", (3, c), role="end", bias=self.first_bias))
        for i in range(1, last):
            y = b.conv(f"denoise.convs.{i}", y, (c, c), bias=self.bias, body=True)
            if self.norm:
                y = b.add(BatchNorm(f"denoise.norms.{i}", (y,), f"denoise.norms.{i}", c, self.norm))
            y = b.relu(f"denoise.acts.{i}", y)
        noise = b.conv(f"denoise.convs.{last}", y, (c, 3), role="end", bias=self.bias)
        return b.graph(b.add(Add("sum", (noise, "x"), (-1.0, 1.0))))

    @classmethod
    def fits(cls, state: State) -> bool:
        return _FIRST in state

    @classmethod
    def read(cls, state: State, res_scale: float) -> DnCNNSpec:
        layers, first = count(state, r"denoise\.convs\.(\d+)\.") - 2, state[_FIRST]
        if layers < 1 or first.ndim != 4:
            raise ValueError(f"the state dict looks like a DnCNN but has no three convolutions in a row, got {listed(list(state))}")
        norm = any(key.startswith("denoise.norms.") for key in state)
        if layers == 5 and not norm:
            raise ValueError(
                "a DnCNN of 7 convolutions cannot be told from an IRCNN, whose convolutions are dilated, as those of the integer "
                "networks are not"
            )
        bias = "denoise.convs.1.bias" in state
        first_bias = bias or "denoise.convs.0.bias" in state
        # This is the eps of KAIR and of the authors' code, whose first convolutions have biases, and of SaoYan's, which has none.
        eps = (1e-4 if first_bias else 1e-5) if norm else 0.0
        return cls(1, layers, first.shape[0], eps, first_bias, bias)
