"""Graphs compiled to steps: what is fused, where tensors lie, and networks that are none of the known ones, against their nodes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from small import one_thread, poison_empty  # noqa: F401

from adabm_kernels import native, ops
from adabm_kernels.config import ConvertConfig
from adabm_kernels.graph.fuse import FusedConv, fuse, residual_pairs
from adabm_kernels.graph.nodes import Activation, Add, Affine, BatchNorm, Concat, Conv, Graph, Multiply, Node, PixelShuffle
from adabm_kernels.networks.edsr import EDSRSpec
from adabm_kernels.networks.rdn import RDNSpec
from adabm_kernels.networks.rrdb import RRDBSpec
from adabm_kernels.networks.spec import NetworkSpec
from adabm_kernels.networks.srresnet import SRResNetSpec
from adabm_kernels.networks.srvgg import SRVGGSpec
from adabm_kernels.nn import ConvertedNetwork
from adabm_kernels.nn.conv import AdaptiveConv2d, ConvParameters
from adabm_kernels.nn.float_nodes import evaluate, why_in_floats
from adabm_kernels.nn.steps import ConvStep, Program, QuantizeStep
from adabm_kernels.quantize import to_pixels

BACKENDS = ["reference"] if native.why_missing("cpu") else ["cpu", "reference"]


def conv(name: str, x: str, channels_in: int, channels_out: int, kernel: int = 3, role: str = "adaptive") -> Conv:
    size = (kernel, kernel)
    padding = (kernel // 2, kernel // 2)
    return Conv(name, (x,), name, channels_in, channels_out, size, padding=padding, role=role, body=role == "adaptive")


def made_up(odd: int = 4) -> Graph:
    """Two readers of one tensor, a skip over two blocks, a ReLU between convolutions, concatenations of three and four, a product.

    odd: channels of one part of the concatenations.
    """
    nodes: list[Node] = [
        conv("head", "x", 3, 8, role="end"),
        conv("a1", "head", 8, 8),
        Activation("a1.act", ("a1",), "relu"),
        conv("a2", "a1.act", 8, 8),
        Add("a", ("a2", "head"), (0.5, 1.0)),
        conv("side", "a", 8, odd),  # beside the block, on a grid of its own
        conv("b1", "a", 8, 12),
        Activation("b1.act", ("b1",), "prelu", key="b1.act", slopes=12),
        conv("b2", "b1.act", 12, 8),
        Add("b", ("b2", "a")),
        Add("skip", ("b", "head")),  # a sum of no convolution
        Concat("three", ("side", "skip", "a")),
        conv("fused", "three", 16 + odd, 4, kernel=1),
        Activation("fused.act", ("fused",), "relu"),
        Concat("four", ("three", "fused.act")),
        conv("wide", "four", 20 + odd, 8),
        conv("gate", "four", 20 + odd, 8, kernel=1),
        Activation("gate.act", ("gate",), "sigmoid"),
        Multiply("gated", ("wide", "gate.act")),
        conv("last", "gated", 8, 12, role="end"),
        PixelShuffle("up", ("last",), 2),
        Affine("out", ("up",), gain=(2.0,)),
    ]
    return Graph(tuple(nodes), outputs=("out",))


@dataclass(frozen=True)
class MadeUp(NetworkSpec):
    """A network that is none of the known ones."""

    network = "made up"
    scale: int = 2
    odd: int = 4

    def build(self) -> Graph:
        return made_up(self.odd)


def parameters(spec: NetworkSpec, quantize: str, digits: int) -> dict[str, ConvParameters]:
    g, made = torch.Generator().manual_seed(1), {}
    for i, one in enumerate(spec.quantized(quantize).values()):
        codes = torch.randint(-8, 8, (one.channels_out, one.channels_in, one.kernel, one.kernel), generator=g).to(torch.int8)
        upper, bias = torch.rand(one.channels_out, generator=g) / one.channels_in, torch.randn(one.channels_out, generator=g)
        bits = 8 if one.role == "end" else 3 + i % 4
        span = 255.0 if one.channels_in == 3 else 2.0 + i % 3
        own = digits if one.name == "last" else 1
        made[one.name] = ConvParameters(one.name, codes, 4, upper + 0.01, bias, -span / 4, span, bits, 0, False, digits=own)
    return made


def network(spec: NetworkSpec, backend: str = "reference", quantize: str = "full", digits: int = 1) -> ConvertedNetwork:
    held, g = parameters(spec, quantize, digits), torch.Generator().manual_seed(2)
    floats = {key: torch.rand(shape, generator=g) - 0.3 for key, shape in spec.graph().parameters().items()}
    floats = {key: value.abs() + 0.1 if key.endswith("running_var") else value for key, value in floats.items()}
    floats = {key: value for key, value in floats.items() if key.rpartition(".")[0] not in held}
    config = ConvertConfig(adaptive=False, tail="staged", quantize=quantize)
    model = ConvertedNetwork(spec, config, held, floats, None)
    model.set_backend(backend)
    return model


def node_by_node(model: ConvertedNetwork, x: torch.Tensor) -> torch.Tensor:
    """What the graph says: each convolution quantises its input by itself, and nothing is fused."""
    graph = model.spec.graph()
    tensors = {graph.inputs[0]: x}
    for node in graph.nodes:
        if isinstance(node, Conv) and node.key in model.parameters_by_name:
            layer = AdaptiveConv2d(model.parameters_by_name[node.key])
            bits = torch.full((len(x),), layer.parameters_.act_bits, dtype=torch.int32)
            codes = ops.quantize(tensors[node.x], layer.grid, bits, backend="reference")
            if layer.rest is None:
                y, _ = layer(codes, bits)
            else:
                left = layer.leave(tensors[node.x].permute(0, 2, 3, 1).clone(), codes).permute(0, 3, 1, 2)
                y = layer.two_digits(codes, ops.quantize(left, layer.rest.grid, bits, backend="reference"), bits)
            tensors[node.name] = y.permute(0, 3, 1, 2)
        else:
            tensors[node.name] = evaluate(node, [tensors[name] for name in node.inputs], model.plain_tensor)
    return tensors[graph.outputs[0]]


def pictures(height: int = 7, width: int = 9) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(3)) * 255


@pytest.mark.parametrize("quantize, digits", [("full", 1), ("full", 2), ("body", 1)])
@pytest.mark.parametrize("odd", [4, 5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_made_up_network_computes_what_its_nodes_say(
    backend: str, odd: int, quantize: str, digits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = network(MadeUp(odd=odd), backend, quantize, digits), pictures()
    want = node_by_node(model, x)
    assert len(want.unique()) > 100
    poison_empty(monkeypatch)
    for early in (False, True):
        monkeypatch.setattr(ConvertedNetwork, "quantizes_early", early)
        model.set_backend(backend)
        for size in (slice(None), slice(1)):
            assert torch.equal(model(x[size]), want[size])
        assert torch.equal(model.pixels(x), to_pixels(want))


def test_a_made_up_network_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    model, x = network(MadeUp(), BACKENDS[0]), pictures()
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))


# ---- what is fused


def names(graph: Graph) -> list[str]:
    return [node.key for node in graph.nodes if isinstance(node, Conv)]


def fused(graph: Graph) -> dict[str, FusedConv]:
    return {item.conv.name: item for item in fuse(graph, names(graph)) if isinstance(item, FusedConv)}


def test_convolutions_take_what_follows_them_as_far_as_nothing_else_reads_it() -> None:
    found = fused(made_up())
    assert {name: (item.name, item.inputs) for name, item in found.items()} == {
        "head": ("head", ("x",)),
        "a1": ("a1.act", ("head",)),
        "a2": ("a", ("a1.act", "head")),
        "side": ("side", ("a",)),
        "b1": ("b1.act", ("a",)),
        "b2": ("b", ("b1.act", "a")),
        "fused": ("fused.act", ("three",)),
        "wide": ("wide", ("four",)),
        "gate": ("gate", ("four",)),
        "last": ("out", ("gated",)),
    }
    assert found["a2"].factor == 0.5 and found["last"].shuffle == 2 and [node.name for node in found["last"].affine] == ["out"]
    others = [item.name for item in fuse(made_up(), names(made_up())) if not isinstance(item, FusedConv)]
    assert others == ["skip", "three", "four", "gate.act", "gated"]


@pytest.mark.parametrize(
    "nodes, wanted",
    [
        ([PixelShuffle("s", ("c",), 2), Activation("r", ("s",), "relu")], "r"),
        ([Activation("r", ("c",), "relu"), PixelShuffle("s", ("r",), 2)], "s"),
        ([Activation("r", ("c",), "relu"), BatchNorm("n", ("r",), "n", 8)], "r"),  # an activation comes last
        ([Activation("r", ("c",), "silu"), PixelShuffle("s", ("r",), 2)], "c"),
        ([Add("s", ("c", "y"), (1.0, 0.5))], "c"),  # kernels add a residual as it is
        ([Activation("r", ("c",), "relu"), Add("s", ("r", "y"), (0.5, 1.0))], "r"),
        ([Add("s", ("c", "y", "y"))], "c"),
        ([Add("s", ("c", "y")), Activation("r", ("s",), "relu")], "s"),  # what is added comes after the activation
        ([Add("s", ("c", "c"))], "c"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(type(node).__name__ for node in value),
)
def test_what_kernels_cannot_compute_together_stays_apart(nodes: list[Node], wanted: str) -> None:
    graph = Graph((conv("y", "x", 3, 8), conv("c", "y", 8, 8), *nodes), outputs=(nodes[-1].name,))
    assert fused(graph)["c"].name == wanted


@pytest.mark.parametrize(
    "nodes, bounds",
    [
        ([Add("s", ("c", "y")), Activation("r", ("s",), "relu")], (0, float("inf"))),
        ([Activation("r", ("c",), "relu6")], (0, 6)),
        ([Activation("r", ("c",), "hardtanh", (("min_val", -2.0), ("max_val", 0.5)))], (-2, 0.5)),
        ([Activation("r", ("c",), "relu")], None),  # which the epilogue computes
        ([Activation("r", ("c",), "silu")], None),
    ],
    ids=["residual", "relu6", "hardtanh", "relu", "silu"],
)
def test_bounds_join_the_convolution_before_them(nodes: list[Node], bounds: tuple[float, float] | None) -> None:
    graph = Graph((conv("y", "x", 3, 8), conv("c", "y", 8, 8), *nodes), outputs=("r",))
    items = fuse(graph, names(graph), clamps=True)
    joined = next(item for item in items if isinstance(item, FusedConv) and item.conv.name == "c")
    assert joined.clamp == bounds and (joined.name == "r" or nodes[0].function == "silu")
    plain = next(item for item in fuse(graph, names(graph)) if isinstance(item, FusedConv) and item.conv.name == "c")
    assert plain.clamp is None


def test_only_convolutions_of_the_kernels_are_quantised() -> None:
    graph = Graph((Conv("c", ("x",), "c", 4000, 8),), outputs=("c",))
    with pytest.raises(ValueError, match="got 'c': sums of 36000 products of 8 bits could overflow 32 bits"):
        fuse(graph, ["c"])


def test_residual_blocks_of_two_convolutions_are_found() -> None:
    pairs = {spec: residual_pairs(fuse(spec.graph(), names(spec.graph()))) for spec in (EDSRSpec(2, 3, 8), SRResNetSpec(2, 2, 8))}
    assert [[(a.conv.name, b.conv.name) for a, b in found] for found in pairs.values()] == [
        [(f"body.{i}.conv1", f"body.{i}.conv2") for i in range(spec.blocks)] for spec in pairs
    ]
    assert residual_pairs(fuse(RDNSpec(2, 2, 2, 4, 8).graph(), names(RDNSpec(2, 2, 2, 4, 8).graph()))) == []


# ---- where tensors lie

EVERY = [
    EDSRSpec(4, 3, 8),
    EDSRSpec(2, 2, 8, tail="single"),
    RDNSpec(3, 3, 2, 4, 8),
    SRResNetSpec(4, 2, 8),
    RRDBSpec(4, 1, 8, 4),
    SRVGGSpec(3, 2, 8),
    MadeUp(),
    MadeUp(odd=5),
]


def check_lives(program: Program) -> None:
    """Every step finds in its buffers what was written for it: the last writer of each channel is the one that it reads."""
    memory: dict[tuple[str, int], tuple[int, object]] = {}  # by buffer and channel: the layout, and the store written last
    for step in program.steps:
        residual = step.residual if isinstance(step, ConvStep) and step.accumulate else None
        for ref in step.reads():
            for channel in range(ref.start, ref.stop):
                held = memory.get((ref.store.buffer, channel))
                assert ref.store.fresh or held == (ref.store.width, id(ref.store))
        for ref in step.writes():
            inputs = [other for other in step.reads() if other is not residual and not isinstance(step, ConvStep)]
            assert all(ref.store.fresh or other.store.buffer != ref.store.buffer for other in inputs)
            for key in [key for key, (width, _) in memory.items() if key[0] == ref.store.buffer and width != ref.store.width]:
                del memory[key]
            memory |= {(ref.store.buffer, channel): (ref.store.width, id(ref.store)) for channel in range(ref.start, ref.stop)}


@pytest.mark.parametrize("quantize", ["full", "body"])
@pytest.mark.parametrize("spec", EVERY, ids=lambda spec: f"{spec.network}-{spec.scale}")
def test_a_buffer_is_used_again_only_when_nothing_reads_it_any_more(
    spec: NetworkSpec, quantize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quantize == "body" and not spec.quantized("body"):
        pytest.skip("it has no body")
    model = network(spec, quantize=quantize)
    for early in (False, True):
        monkeypatch.setattr(ConvertedNetwork, "quantizes_early", early)
        model.set_backend("reference")
        check_lives(model._programs[0])


def bytes_held(model: ConvertedNetwork, x: torch.Tensor) -> int:
    """What torch holds at most for a first forward pass, the input among it."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.no_grad(), torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        model(x)
    changes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return x.nbytes + max(itertools.accumulate(changes))


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the reference holds more on the way")
@pytest.mark.parametrize("quantize", ["full", "body"])
@pytest.mark.parametrize("spec", EVERY, ids=lambda spec: f"{spec.network}-{spec.scale}")
def test_what_a_forward_pass_holds_is_known(spec: NetworkSpec, quantize: str) -> None:
    """Also in the first one, whose buffers are made at once as large as they will have to be."""
    if quantize == "body" and not spec.quantized("body"):
        pytest.skip("it has no body")
    model, x = network(spec, "cpu", quantize), torch.rand(1, 3, 64, 64) * 255
    estimate = model.bytes_per_pixel()
    small = 16384  # bytes of tensors that do not grow with the picture, weights as torch's convolutions want them among these
    assert 0.7 * estimate <= (bytes_held(model, x) - small) / 64**2 <= estimate


def test_sums_are_made_in_place_where_what_is_added_to_is_read_no_more() -> None:
    steps = [step for step in network(EDSRSpec(2, 3, 8))._programs[0].steps if isinstance(step, ConvStep) and step.residual]
    assert [step.accumulate for step in steps] == [False, True, False, False]  # the head's features are read at the end
    assert [step.y and step.y.store.buffer for step in steps] == ["stream1", "stream1", None, None]  # of the last two only codes
    dense = [step for step in network(RDNSpec(2, 3, 2, 4, 8))._programs[0].steps if isinstance(step, ConvStep) and step.residual]
    assert [step.accumulate for step in dense] == [True, True, True, False]


def test_concatenations_are_slices_and_their_codes_are_made_once() -> None:
    model = network(RDNSpec(2, 2, 2, 4, 8))
    quantized = [step for step in model._programs[0].steps if isinstance(step, QuantizeStep)]
    reads = [(step.x.store.buffer, step.x.start, step.x.stop, step.readers[0].start) for step in quantized]
    # The picture; of each block the codes of its second layer and of its fusion; a part of the codes of all blocks.
    block = [("features1", 0, 12, 0), ("features1", 0, 16, 0)]
    assert [read[1:] for read in reads[1:]] == [(0, 12, 0), (0, 16, 0), (0, 8, 0), (0, 12, 0), (0, 16, 0), (0, 8, 8)]
    assert reads[1:3] == block and len({read[0] for read in reads[1:]}) <= 2


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (conv("c", "x", 3, 4), "the settings leave this convolution in floats (quantize='body')"),
        (Activation("a", ("x",), "relu"), "no convolution in integers stands right before it"),
        (Activation("a", ("x",), "silu"), "integer kernels have no silu"),
        (Add("s", ("x", "y")), "a sum that no convolution takes in as its residual"),
        (Concat("t", ("x", "y")), "its parts are put side by side for what reads them in floats"),
        (PixelShuffle("p", ("x",), 2), "no convolution in integers stands right before it"),
        (Multiply("m", ("x", "y")), "integer kernels have no Multiply"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_stays_in_floats_has_a_reason(node: Node, why: str) -> None:
    assert why_in_floats(node) == why
