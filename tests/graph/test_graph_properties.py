"""What the structure of a graph says: for the three networks against what is known of them, and for small graphs of other kinds."""

from __future__ import annotations

from fractions import Fraction

import pytest

from adabm_kernels.graph import properties
from adabm_kernels.graph.builder import Builder
from adabm_kernels.graph.nodes import Activation, Add, Concat, Conv, Float, Graph, Pool, Resize
from adabm_kernels.graph.properties import Extent
from adabm_kernels.networks.edsr import EDSRSpec
from adabm_kernels.networks.rdn import RDNSpec
from adabm_kernels.networks.srresnet import SRResNetSpec

SPECS = {
    "edsr": EDSRSpec(4, 3, 6),
    "edsr-single": EDSRSpec(3, 1, 6, tail="single", mean_shift=False, res_scale=0.1),
    "rdn": RDNSpec(4, 2, 3, 4, 8),
    "srresnet": SRResNetSpec(3, 2, 4, unit_range=True, slopes=4, bias=True),
}


@pytest.mark.parametrize(
    ("name", "radius", "products"),
    [
        ("edsr", 2 + 6 + 1 + 1, 9 * 6 * (3 + 6 * 7 + 24 + 24 * 4 + 3 * 16)),
        ("edsr-single", 2 + 2 + 1, 9 * 6 * (3 + 6 * 3 + 27)),
        (
            "rdn",
            2 + 2 * 3 + 1 + 2,
            9 * (3 + 8) * 8 + 2 * (9 * 4 * (8 + 12 + 16) + 20 * 8) + 8 * 8 * (2 + 9) + 9 * (128 + 256 + 192),
        ),
        ("srresnet", 4 + 2 * 2 + 1 + 1 + 2, 81 * 3 * 4 + 9 * 4 * 4 * 5 + 9 * 4 * 36 + 81 * 4 * 3 * 9),
    ],
)
def test_reach_and_work(name: str, radius: int, products: int) -> None:
    spec = SPECS[name]
    assert spec.radius == properties.radius(spec.graph()) == radius
    assert properties.products(spec.graph()) == products == sum(conv.products for conv in spec.convs())


def test_extents() -> None:
    sizes = properties.extents(SPECS["edsr"].graph())
    assert sizes["x"] == sizes["sub_mean"] == Extent(3) and sizes["body.2"] == sizes["body"] == Extent(6)
    assert sizes["tail.0.0.shuffle"] == Extent(6, Fraction(2)) and sizes["add_mean"] == Extent(3, Fraction(4))
    sizes = properties.extents(SPECS["rdn"].graph())
    assert sizes["RDBs.0.convs.1"] == Extent(16) and sizes["RDBs"] == Extent(16)


def test_what_passes_the_blocks_by() -> None:
    assert properties.stream(SPECS["edsr"].graph()) == {"head.0", "body.0", "body.1", "body.2", "body"}
    assert properties.stream(SPECS["edsr-single"].graph()) == {"head.0", "body.0", "body"}
    assert properties.stream(SPECS["srresnet"].graph()) == {"head.1", "body.0.add", "body.1.add", "body"}
    assert properties.stream(SPECS["rdn"].graph()) == frozenset()
    assert (
        [SPECS[name].residual_stream for name in SPECS] == [SPECS[name].skips_blocks for name in SPECS] == [True, True, False, True]
    )


def test_blocks() -> None:
    first, *_, last = properties.residual_blocks(SPECS["edsr"].graph())
    assert first == properties.ResidualBlock("head.0", ("body.0.conv1", "body.0.act", "body.0.conv2"), "body.0", True)
    assert (last.entry, last.output) == ("body.1", "body.2")
    first, last = properties.residual_blocks(SPECS["srresnet"].graph())
    assert first.inner == tuple(f"body.0.{part}" for part in ("conv1", "bn1", "act", "conv2", "bn2"))
    assert (first.entry, last.entry, last.output, last.chain) == ("head.1", "body.0.add", "body.1.add", True)
    blocks = properties.residual_blocks(SPECS["rdn"].graph())
    assert [(one.entry, one.output, one.chain) for one in blocks] == [("SFENet2", "RDBs.0", False), ("RDBs.0", "RDBs.1", False)]
    assert len(blocks[0].inner) == 3 * 3 + 1


@pytest.mark.parametrize(
    ("name", "entry", "tail", "linear"),
    [
        ("edsr", "body", ("tail.0.0", "tail.0.2", "tail.1"), (2, 2)),
        ("edsr-single", "body", ("tail.0.0",), None),
        ("rdn", "GFF", ("UPNet.0", "UPNet.2", "UPNet.4"), (2, 2)),
        ("srresnet", "body", ("tail.0.0", "tail.1"), None),
    ],
)
def test_upsampler(name: str, entry: str, tail: tuple[str, ...], linear: tuple[int, ...] | None) -> None:
    spec = SPECS[name]
    assert properties.upsampler_input(spec.graph()) == entry and spec.tail_names == tail
    assert properties.linear_upsampler(spec.graph()) == ((tail, linear) if linear else None)
    assert spec.linear_upsampler == bool(linear)


def test_a_network_with_the_enlarged_picture_beside_it() -> None:
    """As MSRResNet: activations in the upsampler, and the picture itself is no feature that passes blocks by."""
    b = Builder()
    first = b.relu("first", b.conv("head", "x", (3, 4)))
    y = b.sum("block", b.conv("c2", b.relu("r", b.conv("c1", first, (4, 4))), (4, 4)), first, 0.5)
    y = b.relu("up", b.shuffle("shuffle", b.conv("tail", y, (4, 16)), 2))
    big = b.add(Resize("big", ("x",), 2, "bilinear", False))
    graph = b.graph(b.add(Add("sum", (b.conv("last", y, (4, 3)), big))))
    assert properties.stream(graph) == {"first", "block"} and properties.skips_blocks(graph)
    assert properties.upsampler_input(graph) == "block" and properties.linear_upsampler(graph) is None
    assert properties.extents(graph)["sum"] == Extent(3, Fraction(2))
    assert properties.radius(graph) == 1 + 2 + 1 + 1


def test_a_network_that_goes_down_and_up_again() -> None:
    b = Builder()
    top = b.conv("top", "x", (1, 4))
    down = b.add(Conv("down", (top,), "down", 4, 8, stride=(2, 2)))
    up = b.add(Resize("up", (b.add(Pool("pool", (down,), settings=(("kernel_size", 2),))),), 4))
    graph = b.graph(b.conv("last", b.add(Concat("both", (up, top))), (12, 1)))
    assert properties.extents(graph, {"x": 1})["pool"] == Extent(8, Fraction(1, 4))
    assert properties.products(graph) == 9 * (4 + 4 * 8 / 4 + 12)
    assert properties.upsampler_input(graph) == "both" and properties.residual_blocks(graph) == ()
    found = {conv.name: conv for conv in properties.convs(graph)}
    assert list(found) == ["top", "down", "last"]
    assert (found["down"].stride, found["down"].padding, found["down"].products) == ((2, 2), (1, 1), 9 * 4 * 8 / 4)
    assert not properties.skips_blocks(graph) and not properties.stream(graph)


def test_what_cannot_be_told_is_refused() -> None:
    mean = Float("mean", ("x",), ".mean", ((2, 3),))
    graph = Graph((mean, Activation("y", ("mean",), "sigmoid")), outputs=("y",))
    assert set(properties.extents(graph)) == {"x"}
    with pytest.raises(ValueError, match="what 'mean' reads of its input cannot be told from the graph"):
        properties.radius(graph)
    graph = Graph((Conv("c", ("x",), "c", 3, 3, stride=(1, 2)),), outputs=("c",))
    assert set(properties.extents(graph)) == {"x"}  # rows and columns that become smaller by different factors
