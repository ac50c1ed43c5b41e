"""RRDBNet (Wang et al., "ESRGAN", ECCVW 2018; "Real-ESRGAN", ICCVW 2021): its graph, and how its state dicts are recognised."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import isqrt

from ..graph.builder import Builder
from ..graph.nodes import Activation, Concat, Crop, Graph, Pad, PixelUnshuffle, Resize
from .layouts import Layout, State, count, listed, matches, parts_renamed
from .spec import NetworkSpec

DENSE_BLOCKS, LAYERS = 3, 5  # the number of dense blocks in a block, and of convolutions in each dense block
FACTOR = 0.2  # the factor on what a block and a dense block add, and the slope of every LeakyReLU

_FIRST_BLOCK = "blocks.0.dense.0.convs.0.weight"


def _dense(found: re.Match[str]) -> str:
    """The name of a convolution, from its numbers in a published name, which begin at 1."""
    block, dense, conv = map(int, found.groups())
    return f"blocks.{block}.dense.{dense - 1}.convs.{conv - 1}"


def _up(found: re.Match[str]) -> str:
    return f"up.{int(found[1]) - 1}"


def _realesrgan(state: State) -> dict[str, str]:
    parts = {
        "conv_first": "stem",
        "conv_body": "after_blocks",
        "conv_hr": "fine",
        "conv_last": "last",
    }
    return parts_renamed(state, parts, {r"body\.(\d+)\.rdb([1-3])\.conv([1-5])(?=\.)": _dense, r"conv_up([1-9])(?=\.)": _up})


def _esrgan(state: State) -> dict[str, str]:
    parts = {
        "conv_first": "stem",
        "trunk_conv": "after_blocks",
        "HRconv": "fine",
        "conv_last": "last",
    }
    return parts_renamed(state, parts, {r"RRDB_trunk\.(\d+)\.RDB([1-3])\.conv([1-5])(?=\.)": _dense, r"upconv([1-9])(?=\.)": _up})


def _old_esrgan(state: State) -> dict[str, str]:
    """New names for the parts of one published list. In this list the convolution after the blocks is the last of the blocks, and
    each convolution that enlarges stands between layers without weights."""
    trunk = f"1.sub.{count(state, r'1[.]sub[.]([0-9]+)[.]') - 1}"
    ups = (count(state, r"(\d+)\.(?:weight|bias)$") - 5) // 3
    parts = {"0": "stem", trunk: "after_blocks", f"{3 * ups + 2}": "fine", f"{3 * ups + 4}": "last"}
    parts |= {f"{3 * i + 3}": f"up.{i}" for i in range(ups)}
    return parts_renamed(state, parts, {r"1\.sub\.(\d+)\.RDB([1-3])\.conv([1-5])\.0(?=\.)": _dense})


LAYOUTS = (
    Layout("realesrgan_rrdb", ("conv_first.weight",), lambda state: "body.0.rdb1.conv1.weight" in state, _realesrgan, 1),
    Layout("esrgan", ("conv_first.weight",), lambda state: "RRDB_trunk.0.RDB1.conv1.weight" in state, _esrgan, 1),
    Layout("esrgan_old", ("1.sub.0.RDB1.conv1.0.weight",), lambda state: "1.sub.0.RDB1.conv1.0.weight" in state, _old_esrgan, 1),
)


@dataclass(frozen=True)
class RRDBSpec(NetworkSpec):
    """The hyper-parameters of one RRDBNet.

    scale: 1, 2 or 4. blocks: the number of residual in residual dense blocks, each with three dense blocks of five convolutions.
    channels: the features between the blocks. growth: the channels that each convolution of a dense block adds, except the last.
    unshuffle: 1, 2 or 4; a square of so many pixels a side becomes the channels of one pixel, and the picture is enlarged by the
    same factor at the end. Real-ESRGAN has this for x2 and x1.
    """

    network = "rrdb"
    title = called = "RRDBNet"
    known_by = (
        "'conv_first.weight' with 'body.0.rdb1.conv1.weight' or 'RRDB_trunk.0.RDB1.conv1.weight', or 'model.0.weight' with "
        "'model.1.sub.0.RDB1.conv1.0.weight'"
    )
    anchor = "stem.weight"
    scales = (1, 2, 4)
    inputs = (3, 12, 48)
    layouts = LAYOUTS
    sharpens = True

    scale: int
    blocks: int
    channels: int = 64
    growth: int = 32
    unshuffle: int = 1

    def __post_init__(self) -> None:
        self.check_sizes("blocks", "channels", "growth")
        if self.unshuffle not in (1, 2, 4):
            raise ValueError(f"RRDBSpec: unshuffle must be 1, 2 or 4, got {self.unshuffle}")

    def build(self) -> Graph:
        b, c, g = Builder(), self.channels, self.growth

        def leaky(name: str, x: str) -> str:
            return b.add(Activation(f"{name}.act", (x,), "leaky_relu", (("negative_slope", FACTOR),)))

        x, factor = "x", self.unshuffle
        if factor > 1:
            x = b.add(PixelUnshuffle("unshuffled", (b.add(Pad("padded", ("x",), factor)),), factor))
        first = y = b.conv("stem", x, (3 * factor**2, c), role="end")
        for i in range(self.blocks):
            entry = y
            for j in range(DENSE_BLOCKS):
                name, dense = f"blocks.{i}.dense.{j}", y
                for k in range(LAYERS - 1):
                    conv = f"{name}.convs.{k}"
                    new = leaky(conv, b.conv(conv, dense, (c + k * g, g), body=True))
                    dense = b.add(Concat(f"{conv}.dense", (dense, new)))
                last = b.conv(f"{name}.convs.{LAYERS - 1}", dense, (c + (LAYERS - 1) * g, c), body=True)
                y = b.sum(name, last, y, FACTOR)
            y = b.sum(f"blocks.{i}", y, entry, FACTOR)
        # Its input spans thousands of levels, and everything that the blocks have added goes through it, so few bits cost more here
        # than anywhere.
        y = b.sum("blocks", b.conv("after_blocks", y, (c, c), role="end"), first)
        ups = (self.scale * factor).bit_length() - 1
        for i in range(ups):
            enlarged = b.add(Resize(f"up.{i}.enlarged", (y,), 2))
            y = leaky(f"up.{i}", b.conv(f"up.{i}", enlarged, (c, c), role="end"))
        y = leaky("fine", b.conv("fine", y, (c, c), role="end" if ups else "adaptive"))
        y = b.conv("last", y, (c, 3), role="end")
        return b.graph(y if factor == 1 else b.add(Crop("cropped", (y, "x"), self.scale)))

    @classmethod
    def fits(cls, state: State) -> bool:
        return "stem.weight" in state and matches(state, r"blocks\.\d+\.dense\.\d+\.convs\.")

    @classmethod
    def read(cls, state: State, res_scale: float) -> RRDBSpec:
        first = state.get(_FIRST_BLOCK)
        if first is None or first.ndim != 4:
            raise ValueError(f"the state dict looks like an RRDBNet but lacks the first of its blocks, got {listed(list(state))}")
        stem, ups = state["stem.weight"], count(state, r"up\.(\d+)\.")
        unshuffle = isqrt(stem.shape[1] // 3) if stem.ndim == 4 else 1
        scale = 2 ** min(ups, 9) // unshuffle
        if scale not in cls.scales:
            taken = f"takes {unshuffle}x{unshuffle} pixels as one and enlarges {ups} times by 2"
            raise ValueError(f"an RRDBNet must be for x1, x2 or x4, got one that {taken}")
        return cls(scale, count(state, r"blocks\.(\d+)\."), first.shape[1], first.shape[0], unshuffle)
