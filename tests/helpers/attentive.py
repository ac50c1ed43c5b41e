"""A network that the package does not know, whose blocks have more than convolutions: floats, attention, and sums of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from adabm_kernels.graph.builder import Builder
from adabm_kernels.graph.nodes import Activation, Add, Concat, Graph, Multiply, Resize
from adabm_kernels.networks import detect as detection
from adabm_kernels.networks.layouts import State, count
from adabm_kernels.networks.spec import NetworkSpec


@dataclass(frozen=True)
class AttentiveSpec(NetworkSpec):
    """A network from [N, 3, H, W] to [N, 3, 2*H, 2*W].

    A block has a convolution with a SiLU, two convolutions whose results are added and joined with its input, and pixel attention
    (Zhao et al., ECCVW 2020) over all of it. The picture enlarged by bilinear interpolation is added to the output.
    """

    network = "attentive"
    title = called = "Attentive"
    known_by = "'stem.weight' with 'blocks.0.gate.weight'"
    anchor = "stem.weight"

    scale: int
    blocks: int
    channels: int

    def build(self) -> Graph:
        b, c = Builder(), self.channels
        y = b.conv("stem", "x", (3, c), role="end")
        for i in range(self.blocks):
            name, entry = f"blocks.{i}", y
            wide = b.add(Activation(f"{name}.silu", (b.conv(f"{name}.wide", y, (c, 2 * c), 5, body=True),), "silu"))
            short = b.relu(f"{name}.relu", b.conv(f"{name}.first", wide, (2 * c, c), body=True))
            both = b.sum(f"{name}.both", b.conv(f"{name}.second", short, (c, c), body=True), short, 0.5)
            joined = b.add(Concat(f"{name}.joined", (both, entry)))
            inner = b.conv(f"{name}.last", joined, (2 * c, c), body=True)
            gate = b.add(Activation(f"{name}.sigmoid", (b.conv(f"{name}.gate", inner, (c, c), 1, body=True),), "sigmoid"))
            y = b.sum(f"{name}.out", b.add(Multiply(f"{name}.gated", (inner, gate))), entry)
        y = b.relu("fine.act", b.conv("fine", b.add(Resize("enlarged", (y,), 2)), (c, c), role="end"))
        picture = b.add(Resize("picture", ("x",), 2, "bilinear", False))
        return b.graph(b.add(Add("sum", (b.conv("last", y, (c, 3), role="end"), picture))))

    @classmethod
    def fits(cls, state: State) -> bool:
        return "blocks.0.gate.weight" in state

    @classmethod
    def read(cls, state: State, res_scale: float) -> AttentiveSpec:
        return cls(2, count(state, r"blocks\.(\d+)\.gate\."), state["stem.weight"].shape[0])


@contextmanager
def attentive_is_known() -> Iterator[None]:
    """Inside the context the package knows the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detection, "NETWORKS", (*detection.NETWORKS, AttentiveSpec))
        yield
