"""Which blocks tiles can go without, and how far around tiles that have them everything else is read."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import traced_modules
from attentive import AttentiveSpec

from adabm_kernels.graph.builder import Builder
from adabm_kernels.graph.nodes import Activation, Concat, Conv, Graph, PixelUnshuffle, Pool, Resize
from adabm_kernels.graph.trace import trace
from adabm_kernels.graph.trunk import least_tile, reaches, stopped, trunk
from adabm_kernels.networks.edsr import EDSRSpec
from adabm_kernels.networks.rdn import RDNSpec
from adabm_kernels.networks.rrdb import RRDBSpec
from adabm_kernels.networks.spec import NetworkSpec
from adabm_kernels.networks.srresnet import SRResNetSpec
from adabm_kernels.networks.srvgg import SRVGGSpec


@pytest.mark.parametrize(
    ("spec", "entry", "outputs", "side"),
    [
        (EDSRSpec(4, 3, 6), "head.0", ["body.0", "body.1", "body.2"], 3),
        (EDSRSpec(2, 1, 6), "head.0", ["body.0"], 3),
        (SRResNetSpec(4, 2, 4, unit_range=True), "head.1", ["body.0.add", "body.1.add"], 4),
        (RRDBSpec(4, 2, 8, 4), "stem", ["blocks.0", "blocks.1"], 3),
        (RRDBSpec(4, 1, 8, 4), "stem", ["blocks.0"], 3),
        (AttentiveSpec(2, 2, 4), "stem", ["blocks.0.out", "blocks.1.out"], 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, NetworkSpec) else None,
)
def test_blocks_of_known_networks(spec: NetworkSpec, entry: str, outputs: list[str], side: int) -> None:
    assert spec.trunk is not None and spec.trunk.entry == entry and list(spec.trunk.outputs) == outputs
    assert (spec.skips_blocks, spec.why_full_depth, spec.block_count, spec.least_tile) == (True, "", len(outputs), side)


def test_networks_that_need_all_blocks_say_why() -> None:
    rdn, srvgg = RDNSpec(2, 2, 2, 4, 8), SRVGGSpec(2, 2, 8)
    assert (rdn.why_full_depth, rdn.block_count) == ("it uses what every block makes at the end", 2)
    assert (srvgg.why_full_depth, srvgg.block_count, srvgg.least_tile) == ("it has no residual blocks", 0, 0)


def test_a_traced_module_has_them_too() -> None:
    graph = trace(traced_modules.RRDBNet().eval(), torch.rand(1, 3, 16, 16)).graph
    found, why = trunk(graph)
    assert found is not None and not why
    # What closes the body adds to what the blocks give: one more block.
    assert len(found.blocks) == 3 and least_tile(graph, found) == 1


def test_what_is_read_around_tiles() -> None:
    spec = RRDBSpec(4, 1, 8, 4)
    assert spec.trunk is not None
    need = reaches(spec.graph(), spec.trunk)
    # Of the upsampler one pixel of each resolution, rounded up to whole pixels where a coarser one is read.
    expected = {
        "last": 0,
        "fine.act": Fraction(1, 4),
        "up.1.act": Fraction(1, 2),
        "up.0.act": 1,
        "blocks": 2,
        "blocks.0": 3,
        "stem": 3,
    }
    assert {name: need[name] for name in expected} == expected
    inner = {need[name] for name in spec.trunk.inner}
    assert inner == {0, 1} and need["blocks.0.dense.2"] == 0 and "x" not in need


def test_what_is_nothing_without_blocks() -> None:
    spec = AttentiveSpec(2, 1, 4)
    assert spec.trunk is not None
    found = stopped(spec.graph(), spec.trunk, [conv.name for conv in spec.convs()])
    # An activation that kernels do not compute is one of nothing; what is added to a convolution stays.
    assert found == {f"blocks.0.{name}" for name in ("wide", "relu", "second", "last", "gate", "gated")}


def test_blocks_side_by_side_are_none() -> None:
    """As CARN cascades them."""
    b = Builder()
    y = gathered = b.conv("head", "x", (3, 4))
    for i in range(3):
        inner = b.conv(f"{i}.c2", b.relu(f"{i}.r", b.conv(f"{i}.c1", y, (4, 4))), (4, 4))
        block = b.relu(f"{i}.act", b.sum(f"{i}.sum", inner, y))
        gathered = b.add(Concat(f"{i}.all", (gathered, block)))
        y = b.conv(f"{i}.joined", gathered, (4 * (i + 2), 4), 1)
    graph = b.graph(b.conv("last", b.shuffle("shuffle", b.conv("up", y, (4, 16)), 2), (4, 3)))
    assert trunk(graph) == (None, "its residual blocks do not follow one another")


def _block(part: str) -> Graph:
    """A network of one block with something in it, before it or behind it."""
    b = Builder()
    if part == "coarse":
        y = entry = b.conv("head", b.add(PixelUnshuffle("apart", ("x",))), (12, 4))
    else:
        y = entry = b.conv("head", "x", (3, 4))
    y = b.conv("c1", y, (4, 4))
    if part == "pool":
        y = b.add(Pool("pool", (y,), "avg_pool2d", (("kernel_size", 3), ("stride", 1), ("padding", 1))))
    if part == "grouped":
        y = b.add(Conv("grouped", (y,), "grouped", 4, 4, groups=4))
    if part == "outside":
        y = b.add(Concat("both", (y, b.conv("aside", "x", (3, 4)))))
    z = y
    y = b.sum("block", b.conv("c2", y, (8 if part == "outside" else 4, 4)), entry)
    if part == "tapped":
        y = b.add(Concat("tapped", (y, z)))
    if part == "global":
        y = b.add(Pool("global", (y,), "adaptive_avg_pool2d", (("output_size", 1),)))
    if part == "coarse":
        y = b.add(Resize("finer", (y,), 2))
    return b.graph(b.conv("last", b.add(Activation("act", (y,), "relu")), (8 if part == "tapped" else 4, 3)))


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ("none", ""),
        ("pool", "'pool' in a block is neither a convolution that can be quantised nor computed pixel by pixel"),
        ("grouped", "'grouped' in a block is neither a convolution that can be quantised nor computed pixel by pixel"),
        ("outside", "'both' in a block reads what was made outside of it"),
        ("tapped", "'c1' in a block is read outside of it"),
        ("global", "'global' is not computed at a multiple of the picture's resolution"),
        ("coarse", "its blocks compute at another resolution than the picture's"),
    ],
)
def test_what_blocks_may_not_be(part: str, why: str) -> None:
    found, reason = trunk(_block(part))
    assert reason == why and (found is None) == bool(why)
