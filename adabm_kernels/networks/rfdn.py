"""RFDN (Liu et al., "Residual Feature Distillation Network", ECCVW 2020): its graph, and how its state dicts are recognised."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from ..graph.builder import Builder
from ..graph.nodes import Activation, Affine, Concat, Conv, Crop, Graph, Multiply, Pad, Pool, ResizeLike
from .imdn import leaky
from .layouts import Layout, State, count, listed, matches, parts_renamed, scale_of
from .spec import UNIT_RANGE, NetworkSpec

STEPS = 3  # steps of a block, each of which passes a part of its features to the end of the block
LEAST_SIDE = 15  # the least side of a picture for which the attention's strided convolution and pooling leave a pixel
_ATTENTION = "rfdb.0.esa.in.weight"
_ESA = {"conv1": "in", "conv_f": "near", "conv_max": "far.0", "conv2": "down", "conv3": "far.1", "conv3_": "far.2", "conv4": "out"}


def _renamed(state: State) -> dict[str, str]:
    def block(m: re.Match[str]) -> str:
        return f"rfdb.{int(m[1]) - 1}."

    parts = {"fea_conv": "stem", "c.0": "merge", "LR_conv": "after", "upsampler.0": "last"}
    patterns = {
        r"B(\d+)\.c([1-3])_d(?=\.)": lambda m: f"{block(m)}given.{int(m[2]) - 1}",
        r"B(\d+)\.c([1-3])_r(?=\.)": lambda m: f"{block(m)}convs.{int(m[2]) - 1}",
        r"B(\d+)\.c4(?=\.)": lambda m: f"{block(m)}given.{STEPS}",
        r"B(\d+)\.c5(?=\.)": lambda m: f"{block(m)}merge",
        r"B(\d+)\.esa\.(conv1|conv_f|conv_max|conv2|conv3|conv3_|conv4)(?=\.)": lambda m: f"{block(m)}esa.{_ESA[m[2]]}",
    }
    return parts_renamed(state, parts, patterns)


@dataclass(frozen=True)
class RFDNSpec(NetworkSpec):
    """The hyper-parameters of one RFDN.

    scale: 2, 3 or 4. blocks: the number of blocks, which have three steps each. channels: the number of features. squeezed: the
    features inside the spatial attention, which reads more than a hundred pixels around each pixel, but none outside its window.
    unit_range: true where the weights expect pixels in 0..1.
    """

    network = "rfdn"
    title = called = "RFDN"
    known_by = "'fea_conv.weight' with 'B1.c1_d.weight'"
    anchor = "stem.weight"
    layouts = (
        Layout(
            "rfdn",
            ("fea_conv.weight",),
            lambda state: "fea_conv.weight" in state and matches(state, r"B1\.c1_d\."),
            _renamed,
            constants=lambda state: {UNIT_RANGE: torch.ones(1)},
        ),
    )
    says_range = True

    scale: int
    blocks: int = 4
    channels: int = 50
    squeezed: int = 12
    unit_range: bool = True

    def __post_init__(self) -> None:
        self.check_sizes("blocks", "channels", "squeezed")
        if self.channels < 2:
            raise ValueError(f"RFDNSpec: channels must be at least 2, got {self.channels}")

    @property
    def attention(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.graph().nodes if ".esa" in node.name)

    def build(self) -> Graph:
        b, c, part, f = Builder(), self.channels, self.channels // 2, self.squeezed

        def weighed(name: str, x: str) -> str:
            inner = b.conv(f"{name}.in", x, (c, f), 1, role="float")
            y = b.add(Conv(f"{name}.down", (inner,), f"{name}.down", f, f, stride=(2, 2), padding=(0, 0), role="float"))
            y = b.add(Pool(f"{name}.pool", (y,), "max_pool2d", (("kernel_size", 7), ("stride", 3))))
            for i in range(3):
                y = b.conv(f"{name}.far.{i}", y, (f, f), role="float")
                y = b.relu(f"{name}.far.{i}.act", y) if i < 2 else y
            y = b.add(ResizeLike(f"{name}.enlarged", (y, x)))
            y = b.sum(f"{name}.sum", y, b.conv(f"{name}.near", inner, (f, f), 1, role="float"))
            y = b.conv(f"{name}.out", y, (f, c), 1, role="float")
            return b.add(Multiply(name, (x, b.add(Activation(f"{name}.sigmoid", (y,), "sigmoid")))))

        x = b.add(Pad("padded", ("x",), least=LEAST_SIDE))
        x = b.add(Affine("to_range", (x,), divisor=255.0)) if self.unit_range else x
        first = y = b.conv("stem", x, (3, c), role="end")
        blocks = []
        for i in range(self.blocks):
            name, parts = f"rfdb.{i}", []
            for j in range(STEPS):
                parts.append(leaky(b, f"{name}.given.{j}", b.conv(f"{name}.given.{j}", y, (c, part), 1, body=True)))
                y = leaky(b, f"{name}.convs.{j}", b.sum(f"{name}.sum.{j}", b.conv(f"{name}.convs.{j}", y, (c, c), body=True), y))
            last = f"{name}.given.{STEPS}"
            parts.append(leaky(b, last, b.conv(last, y, (c, part), body=True)))
            joined = b.add(Concat(f"{name}.parts", tuple(parts)))
            y = weighed(f"{name}.esa", b.conv(f"{name}.merge", joined, (4 * part, c), 1, role="fixed", body=True))
            blocks.append(y)
        y = leaky(b, "merge", b.conv("merge", b.add(Concat("blocks", tuple(blocks))), (self.blocks * c, c), 1))
        y = b.sum("after.sum", b.conv("after", y, (c, c)), first)
        y = b.shuffle("last.shuffle", b.conv("last", y, (c, 3 * self.scale**2), role="end"), self.scale)
        y = b.add(Affine("from_range", (y,), (255.0,))) if self.unit_range else y
        y = b.add(Crop("cropped", (y, "x"), self.scale))
        return b.graph(y, {UNIT_RANGE: (1,)} if self.unit_range else {})

    @classmethod
    def fits(cls, state: State) -> bool:
        return "stem.weight" in state and matches(state, r"rfdb\.\d+\.")

    @classmethod
    def read(cls, state: State, res_scale: float) -> RFDNSpec:
        weights = [state.get(key) for key in ("stem.weight", _ATTENTION, "last.weight")]
        if any(weight is None or weight.ndim != 4 for weight in weights):
            raise ValueError(f"the state dict looks like an RFDN but lacks its first block or its ends, got {listed(list(state))}")
        scale, blocks = scale_of(state, "last.weight", 3, cls.scales), count(state, r"rfdb\.(\d+)\.")
        return cls(scale, blocks, len(state["stem.weight"]), len(state[_ATTENTION]), UNIT_RANGE in state)
