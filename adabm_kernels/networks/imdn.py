"""IMDN (Hui et al., ACM MM 2019): its graph, and how its state dicts are recognised."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from ..graph.builder import Builder
from ..graph.nodes import Activation, Add, Affine, Concat, Deviation, Graph, Multiply, Pool, Slice
from .layouts import Layout, State, count, listed, matches, parts_renamed, scale_of
from .spec import UNIT_RANGE, NetworkSpec

LAYERS = 4  # convolutions of a block, each of which passes a part of its features to the end of the block
SLOPE = 0.05  # the slope of every LeakyReLU
_SQUEEZE = "imdb.0.cca.0.weight"


def _renamed(state: State) -> dict[str, str]:
    def block(m: re.Match[str]) -> str:
        return f"imdb.{int(m[1]) - 1}."

    parts = {"fea_conv": "stem", "c.0": "merge", "LR_conv": "after", "upsampler.0": "last"}
    patterns = {
        r"IMDB(\d+)\.c([1-4])(?=\.)": lambda m: f"{block(m)}convs.{int(m[2]) - 1}",
        r"IMDB(\d+)\.c5(?=\.)": lambda m: f"{block(m)}merge",
        r"IMDB(\d+)\.cca\.conv_du\.([02])(?=\.)": lambda m: f"{block(m)}cca.{int(m[2]) // 2}",
    }
    return parts_renamed(state, parts, patterns)


def leaky(b: Builder, name: str, x: str) -> str:
    return b.add(Activation(f"{name}.act", (x,), "leaky_relu", (("negative_slope", SLOPE),)))


@dataclass(frozen=True)
class IMDNSpec(NetworkSpec):
    """The hyper-parameters of one IMDN.

    scale: 2, 3 or 4. blocks: the number of blocks, which have four convolutions each. channels: the number of features. squeezed:
    the features inside the channel attention, which reads the mean and the deviation of each channel over the whole picture, or
    over the window where the picture is cut into windows. unit_range: true where the weights expect pixels in 0..1.
    """

    network = "imdn"
    title = called = "IMDN"
    known_by = "'fea_conv.weight' with 'IMDB1.c1.weight'"
    anchor = "stem.weight"
    layouts = (
        Layout(
            "imdn",
            ("fea_conv.weight",),
            lambda state: "fea_conv.weight" in state and matches(state, r"IMDB1\.cca\."),
            _renamed,
            constants=lambda state: {UNIT_RANGE: torch.ones(1)},
        ),
    )
    says_range = True

    scale: int
    blocks: int = 6
    channels: int = 64
    squeezed: int = 4
    unit_range: bool = True

    def __post_init__(self) -> None:
        self.check_sizes("blocks", "channels", "squeezed")
        if self.channels < LAYERS:
            raise ValueError(f"IMDNSpec: channels must be at least {LAYERS}, got {self.channels}")

    @property
    def attention(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.graph().nodes if ".cca" in node.name)

    def build(self) -> Graph:
        b, c, given = Builder(), self.channels, self.channels // LAYERS
        whole = LAYERS * given

        def weighed(name: str, x: str) -> str:
            mean = b.add(Pool(f"{name}.mean", (x,), "adaptive_avg_pool2d", (("output_size", 1),)))
            y = b.add(Add(f"{name}.sum", (b.add(Deviation(f"{name}.deviation", (x,))), mean)))
            y = b.relu(f"{name}.act", b.conv(f"{name}.0", y, (whole, self.squeezed), 1, role="float"))
            y = b.conv(f"{name}.1", y, (self.squeezed, whole), 1, role="float")
            return b.add(Multiply(name, (x, b.add(Activation(f"{name}.sigmoid", (y,), "sigmoid")))))

        x = b.add(Affine("to_range", ("x",), divisor=255.0)) if self.unit_range else "x"
        first = y = b.conv("stem", x, (3, c), role="end")
        blocks = []
        for i in range(self.blocks):
            entry, parts = y, []
            for j in range(LAYERS - 1):
                name = f"imdb.{i}.convs.{j}"
                y = leaky(b, name, b.conv(name, y, (c - given if j else c, c), body=True))
                parts.append(b.add(Slice(f"{name}.given", (y,), 0, given)))
                y = b.add(Slice(f"{name}.kept", (y,), given, c))
            parts.append(b.conv(f"imdb.{i}.convs.{LAYERS - 1}", y, (c - given, given), body=True))
            y = weighed(f"imdb.{i}.cca", b.add(Concat(f"imdb.{i}.parts", tuple(parts))))
            y = b.sum(f"imdb.{i}", b.conv(f"imdb.{i}.merge", y, (whole, c), 1, role="fixed", body=True), entry)
            blocks.append(y)
        y = leaky(b, "merge", b.conv("merge", b.add(Concat("blocks", tuple(blocks))), (self.blocks * c, c), 1))
        y = b.sum("after.sum", b.conv("after", y, (c, c)), first)
        y = b.shuffle("last.shuffle", b.conv("last", y, (c, 3 * self.scale**2), role="end"), self.scale)
        y = b.add(Affine("from_range", (y,), (255.0,))) if self.unit_range else y
        return b.graph(y, {UNIT_RANGE: (1,)} if self.unit_range else {})

    @classmethod
    def fits(cls, state: State) -> bool:
        return "stem.weight" in state and matches(state, r"imdb\.\d+\.")

    @classmethod
    def read(cls, state: State, res_scale: float) -> IMDNSpec:
        weights = [state.get(key) for key in ("stem.weight", _SQUEEZE, "last.weight")]
        if any(weight is None or weight.ndim != 4 for weight in weights):
            raise ValueError(f"the state dict looks like an IMDN but lacks its first block or its ends, got {listed(list(state))}")
        scale, blocks = scale_of(state, "last.weight", 3, cls.scales), count(state, r"imdb\.(\d+)\.")
        return cls(scale, blocks, len(state["stem.weight"]), len(state[_SQUEEZE]), UNIT_RANGE in state)
