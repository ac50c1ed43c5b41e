"""Passes over graphs keep what is computed, and the names of the outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import traced_modules
from graph_values import evaluate
from hypothesis import given, settings
from hypothesis import strategies as st
from published_networks import EDSR, RDN
from small import one_thread  # noqa: F401

from adabm_kernels.graph import passes
from adabm_kernels.graph.describe import describe
from adabm_kernels.graph.nodes import (
    Activation,
    Add,
    Affine,
    BatchNorm,
    BorderConv,
    ColourShift,
    Concat,
    Conv,
    Graph,
    Linear,
    Multiply,
    Node,
    PixelShuffle,
    Resize,
    Slice,
)
from adabm_kernels.graph.trace import trace
from adabm_kernels.networks.collapse import collapse_linear_upsampler
from adabm_kernels.networks.edsr import EDSRSpec
from adabm_kernels.networks.rdn import RDNSpec

State = dict[str, torch.Tensor]
SIMPLE = [passes.remove_dead, passes.remove_identities, passes.merge_factors, passes.merge_affines, passes.split_concats]
SIMPLE += [passes.common_reads, passes.simplify]
FOLDS = [passes.fold_batch_norm, passes.fold_affine]


def integers(graph: Graph, seed: int = 0) -> State:
    """Small integers for all that a graph learns, and powers of 4 for variances: folding these is exact in float64."""
    made = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in graph.parameters().items():
        low, high = (1, 3) if key.endswith("running_var") else (-2, 3)
        state[key] = torch.randint(low, high, shape, generator=made).double()
        if key.endswith("running_var"):
            state[key] = 4 ** state[key]
    for node in graph.nodes:
        if isinstance(node, ColourShift):
            state[f"{node.key}.weight"] = torch.eye(3, dtype=torch.float64)[..., None, None]
            state[f"{node.key}.bias"] = node.sign * torch.tensor(node.mean, dtype=torch.float64)
    return state


def picture(*size: int) -> torch.Tensor:
    return torch.randint(-3, 4, size or (2, 3, 7, 6), generator=torch.Generator().manual_seed(1)).double()


def assert_equal(before: Graph, after: Graph, state: State, folded: State | None = None, x: torch.Tensor | None = None) -> None:
    """Both graphs compute the same to the last bit, under the same names."""
    assert before.outputs == after.outputs and before.inputs == after.inputs
    x = picture() if x is None else x
    for want, got in zip(evaluate(before, state, x), evaluate(after, folded or state, x), strict=True):
        assert torch.equal(want, got)


def conv(name: str, x: str, c: int = 3, k: int = 4, size: int = 3, key: str = "", **fields: object) -> Conv:
    padding = fields.pop("padding", size // 2)
    return Conv(name, (x,), key or name, c, k, (size, size), padding=(padding, padding), **fields)  # type: ignore[arg-type]


def norm(name: str, x: str, channels: int = 4) -> BatchNorm:
    return BatchNorm(name, (x,), name, channels, eps=0.0)


def network(*nodes: Node, outputs: tuple[str, ...] = ()) -> Graph:
    return Graph(nodes, outputs=outputs or (nodes[-1].name,))


def names(graph: Graph) -> list[str]:
    return [node.name for node in graph.nodes]


def test_dead_nodes_go() -> None:
    graph = network(conv("a", "x"), conv("b", "a", 4), conv("c", "a", 4), outputs=("c",))
    assert names(passes.remove_dead(graph)) == ["a", "c"]


def test_identities_go_and_outputs_keep_their_names() -> None:
    nodes = [Affine("one", ("x",), (1.0,), (0.0,)), conv("a", "one"), Add("same", ("a",)), Concat("alone", ("same",))]
    graph = network(*nodes, PixelShuffle("last", ("alone",), 1), Resize("r", ("one",), 1), outputs=("last", "a", "r"))
    after = passes.remove_identities(graph)
    assert_equal(graph, after, integers(graph))
    assert names(after) == ["a", "last", "r"]  # what would be another output, or the input, stays
    assert names(passes.remove_identities(network(*nodes, outputs=("alone",)))) == ["alone"]


def test_products_become_factors() -> None:
    nodes = [conv("a", "x"), Affine("half", ("a",), (0.5,)), Affine("minus", ("a",), (-1.0,)), Affine("wide", ("a",), (1.0,) * 4)]
    graph = network(*nodes, Add("sum", ("half", "minus", "wide"), (1.0, 0.25, 1.0)), Add("twice", ("half", "a"), (3.0, 1.0)))
    graph = replace(graph, outputs=("sum", "twice"))
    after = passes.merge_factors(graph)
    assert after["sum"] == Add("sum", ("a", "a", "wide"), (0.5, -0.25, 1.0)) and after["twice"] == graph["twice"]
    assert_equal(graph, after, integers(graph))


def test_a_scale_and_a_shift_are_one_affine() -> None:
    nodes = [
        Affine("a", ("x",), divisor=3.0),
        Affine("b", ("a",), shift=(0.1,)),
        Affine("c", ("x",), shift=(0.3,)),
        Affine("d", ("c",), (0.7,)),
    ]
    graph = network(*nodes, Affine("e", ("x",), (0.3,)), Affine("f", ("e",), (0.7,)), Add("sum", ("b", "d", "f")))
    after = passes.merge_affines(graph)
    assert after["b"] == Affine("b", ("x",), shift=(0.1,), divisor=3.0)
    assert after["d"] == Affine("d", ("x",), (0.7,), (0.3,), first="shift") and names(after) == ["b", "d", "e", "f", "sum"]
    assert_equal(graph, after, {}, x=torch.rand(1, 3, 4, 4, dtype=torch.float64))


def test_concatenations_of_concatenations_are_one_and_cuts_are_parts() -> None:
    nodes = [
        conv("a", "x"),
        conv("b", "x", k=2),
        Concat("ab", ("a", "b")),
        Concat("abx", ("ab", "x")),
        Slice("first", ("abx",), 0, 4),
    ]
    nodes += [Slice("inner", ("abx",), 4, 9), Slice("part", ("abx",), 1, 3), Slice("across", ("abx",), 3, 5)]
    graph = network(*nodes, outputs=("abx", "first", "inner", "part", "across"))
    after = passes.split_concats(graph)
    assert after["abx"].inputs == ("first", "b", "x") and after["inner"] == Concat("inner", ("b", "x"))
    assert after["part"] == Slice("part", ("first",), 1, 3) and after["across"] == graph["across"]
    assert names(after) == ["first", "b", "abx", "inner", "part", "across"]  # "first" is what "a" was
    assert_equal(graph, after, integers(graph))


def test_what_is_computed_twice_is_computed_once() -> None:
    nodes = [
        conv("a", "x"),
        Activation("r", ("a",), "relu"),
        Activation("s", ("a",), "relu"),
        conv("b", "r", 4),
        conv("c", "s", 4, key="b"),
    ]
    graph = network(*nodes, conv("other", "x", key="a", role="end"), Add("sum", ("b", "c", "other")), outputs=("sum", "s"))
    after = passes.common_reads(graph)
    assert names(after) == ["a", "s", "b", "other", "sum"] and after["sum"].inputs == ("b", "b", "other")
    assert_equal(graph, after, integers(graph))


def test_batch_norms_fold_into_what_only_they_read() -> None:
    nodes = [
        conv("a", "x", groups=1, bias=False),
        norm("na", "a"),
        conv("b", "na", 4, groups=2),
        norm("nb", "b"),
        conv("c", "nb", 4, key="b", groups=2),
    ]
    graph = network(*nodes, norm("nc", "c"), conv("d", "nc", 4), norm("nd", "d"), Add("sum", ("d", "nd")), outputs=("sum", "nc"))
    state = integers(graph)
    kept = {key: value.clone() for key, value in state.items()}
    after, folded = passes.fold_batch_norm(graph, state)
    assert names(after) == ["a", "b", "nc", "d", "nd", "sum"]
    assert [after[name].key for name in ("a", "b", "nc")] == ["a", "b_folded", "b"]  # type: ignore[attr-defined]
    assert after.parameters().keys() == folded.keys() and all(torch.equal(state[key], kept[key]) for key in kept)
    assert_equal(graph, after, state, folded)


def test_a_linear_layer_takes_its_batch_norm() -> None:
    graph = network(Linear("fc", ("x",), "fc", 3, 5), BatchNorm("n", ("fc",), "n", 5, 0.0))
    state = integers(graph)
    after, folded = passes.fold_batch_norm(graph, state)
    assert names(after) == ["n"]
    assert_equal(graph, after, state, folded, picture(4, 3))


@pytest.mark.parametrize("padding", [0, 1])
def test_scales_and_shifts_fold_where_padding_allows(padding: int) -> None:
    mean = ColourShift("mean", ("x",), "mean", -1, (1.0, 2.0, 3.0))
    unit = Affine("unit", ("mean",), (2.0, 4.0, 0.5), (1.0, 0.0, 2.0), first="shift")
    nodes = [
        mean,
        unit,
        conv("a", "unit", k=12, padding=padding, groups=3),
        PixelShuffle("s", ("a",), 2),
        Affine("scale", ("s",), (2.0,)),
    ]
    graph = network(*nodes, ColourShift("end", ("scale",), "end", 1, (4.0, 5.0, 6.0)))
    state = integers(graph)
    after, folded = passes.fold_affine(graph, state)
    assert names(after) == (["a", "end"] if padding == 0 else ["mean", "unit", "a", "end"])
    if padding:
        assert after["unit"] == Affine("unit", ("mean",), shift=(1.0, 0.0, 2.0))
    assert after.parameters().keys() == folded.keys()
    assert_equal(graph, after, state, folded)


def test_what_others_read_does_not_fold() -> None:
    nodes = [Affine("g", ("x",), (2.0,)), conv("a", "g"), Affine("h", ("a",), (2.0,)), Add("sum", ("a", "h"))]
    graph = network(*nodes, outputs=("sum", "g"))
    assert passes.fold_affine(graph, integers(graph))[0] == graph


def test_folds_round_once() -> None:
    """Folding real weights: each of n products of a convolution has at most four roundings more, of 2**-53 of it each, and so has
    each sum; what follows multiplies by at most `growth`."""
    module = traced_modules.DnCNN().eval()
    traced = trace(module)
    state = {key: value.double() for key, value in traced.state.items()}
    after, folded = passes.fold_batch_norm(*passes.fold_affine(traced.graph, state))
    x = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    assert not any(isinstance(node, BatchNorm) for node in after.nodes)
    want, got = evaluate(traced.graph, state, x)[0], evaluate(after, folded, x)[0]
    # A bound on every tensor: what absolute weights make of the largest values, and the roundings that each layer adds to that.
    size, error, unit = 1.0, 0.0, 2.0**-53
    for node in after.nodes:
        if isinstance(node, Conv):
            rows = folded[f"{node.key}.weight"].abs().sum((1, 2, 3)).max().item()
            bias = folded[f"{node.key}.bias"].abs().max().item()
            terms = node.channels_in * 9 + 1
            size, error = rows * size + bias, rows * error + 2 * (terms + 8) * unit * (rows * size + bias)
    assert (want - got).abs().max() <= error + 2 * unit * (size + 1) and error < 1e-9


@pytest.mark.parametrize(
    "module",
    [EDSR(EDSRSpec(scale=4, blocks=1, channels=4)), RDN(RDNSpec(scale=3, blocks=1, layers=1, growth=3, channels=4))],
    ids=["edsr_x4", "rdn_x3"],
)
def test_linear_upsamplers_collapse(module: EDSR | RDN) -> None:
    graph = module.spec.graph()
    state = integers(graph)
    after, collapsed = collapse_linear_upsampler(graph, state)
    assert after.parameters().keys() == collapsed.keys() and after.outputs == graph.outputs
    assert sum(isinstance(node, BorderConv) for node in after.nodes) == 1
    assert not any(isinstance(node, PixelShuffle) for node in after.nodes)
    for size in ((5, 6), (9, 8)):
        assert_equal(graph, after, state, collapsed, picture(2, 3, *size))  # integers: sums are exact in any order
    assert collapse_linear_upsampler(after, collapsed)[0] == after


def test_a_graph_reads_as_a_table() -> None:
    nodes = [Affine("unit", ("x",), shift=(0.5, 1.0, 2.0), divisor=255.0), conv("a", "unit", k=8, role="end", groups=1)]
    nodes += [conv("b", "a", 8, 8, stride=(2, 2), groups=4), Activation("act", ("b",), "silu"), Slice("cut", ("act",), 0, 4)]
    graph = network(*nodes, PixelShuffle("up", ("cut",), 2), Add("sum", ("up", "up"), (0.2, 1.0)))
    assert describe(graph).splitlines() == [
        "name  kind                          reads   size           role      products a pixel",
        "unit  / 255 + 3 numbers             x       3 x H x W",
        "a     conv 3x3                      unit    8 x H x W      end       216",
        "b     conv 3x3 stride 2x2 groups 4  a       8 x H/2 x W/2  adaptive  36",
        "act   silu                          b       8 x H/2 x W/2",
        "cut   channels 0..4                 act     4 x H/2 x W/2",
        "up    PixelShuffle 2                cut     1 x H x W",
        "sum   add 0.2, 1                    up, up  1 x H x W",
    ]


def grown(draw: Callable, name: str, x: str, y: str, nodes: list[Node]) -> list[Node]:
    """Random nodes that make a tensor `name` of the tensors x and y."""
    numbers = st.sampled_from([-2.0, -1.0, 0.5, 1.0, 2.0])
    per_channel = st.one_of(st.none(), st.tuples(numbers), st.tuples(*[numbers] * 4))
    alike = [node for node in nodes[1:] if isinstance(node, Conv) and node.kernel == (3, 3)]
    made: dict[str, Callable[[], list[Node]]] = {
        "conv": lambda: [conv(name, x, 4, groups=2)],
        "shared": lambda: [replace(draw(st.sampled_from(alike)), name=name, inputs=(x,))] if alike else [norm(name, x)],
        "conv1x1": lambda: [conv(name, x, 4, size=1)],
        "norm": lambda: [norm(name, x)],
        "affine": lambda: [
            Affine(name, (x,), draw(per_channel), draw(per_channel), None, draw(st.sampled_from(["gain", "shift"])))
        ],
        "relu": lambda: [Activation(name, (x,), "relu")],
        "add": lambda: [Add(name, (x, y), draw(st.sampled_from([(), (0.5, 1.0), (1.0, -1.0)])))],
        "alone": lambda: [PixelShuffle(f"{name}_s", (x,), 1), Concat(f"{name}_c", (f"{name}_s",)), Add(name, (f"{name}_c",))],
        "multiply": lambda: [Multiply(f"{name}_m", (x, y)), Activation(name, (f"{name}_m",), "hardtanh")],
        "concat": lambda: [Concat(f"{name}_c", (x, y)), Concat(f"{name}_d", (f"{name}_c", x)), Slice(name, (f"{name}_d",), 4, 8)],
    }
    return made[draw(st.sampled_from(sorted(made)))]()


@st.composite
def graphs(draw: Callable) -> Graph:
    """A random graph of a few nodes, whose named tensors have four channels and the size of the picture."""
    nodes: list[Node] = [conv("n0", "x", bias=draw(st.booleans()))]
    tensors = ["n0"]
    for i in range(1, draw(st.integers(3, 9))):
        nodes += grown(draw, f"n{i}", draw(st.sampled_from(tensors[-3:])), draw(st.sampled_from(tensors)), nodes)
        tensors.append(f"n{i}")
    outputs = draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=3))
    return Graph(tuple(nodes), outputs=tuple(outputs))


@settings(max_examples=150)
@given(graphs(), st.integers(0, 2**16))
def test_passes_keep_the_outputs_of_random_graphs(graph: Graph, seed: int) -> None:
    """Integers and powers of two: nothing is rounded, as long as values stay below 2**53; larger ones prove nothing."""
    state, x = integers(graph, seed), picture(1, 3, 5, 4)
    wanted = evaluate(graph, state, x)
    changed = [(one(graph), state) for one in SIMPLE] + [one(graph, state) for one in FOLDS]
    folded = passes.fold_affine(*passes.fold_batch_norm(passes.simplify(graph), state))
    for after, values in [*changed, folded, (passes.simplify(folded[0]), folded[1])]:
        assert after.outputs == graph.outputs
        for want, got in zip(wanted, evaluate(after, values, x), strict=True):
            assert torch.equal(want, got) or want.abs().max() > 2**40
    assert passes.simplify(passes.simplify(graph)) == passes.simplify(graph)


# Kernel, stride, padding and output padding, of rows and columns.
TRANSPOSED = [(2, 2, 0, 0), (4, 2, 1, 0), (3, 2, 1, 1), (3, 1, 1, 0), (5, 3, 1, 0), ((2, 4), 2, (0, 1), 0), (1, 2, 0, 1)]


@pytest.mark.parametrize("sizes", TRANSPOSED, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_transposed_convolutions_become_convolutions(sizes: tuple, bias: bool) -> None:
    torch.manual_seed(0)
    kernel, stride, padding, more = sizes
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ConvTranspose2d(4, 6, kernel, stride, padding, more, bias=bias)
    )
    traced = trace(module.eval())
    graph, state = passes.transposed_as_convs(traced.graph, traced.state)
    kinds = [type(node) for node in graph.nodes]
    assert kinds == [Conv, Conv] + [PixelShuffle] * (stride > 1) and graph.outputs == traced.graph.outputs
    assert state.keys() >= graph.parameters().keys() and [node.key for node in graph.nodes[:2]] == ["0", "1"]
    x = torch.rand(2, 3, 7, 5, dtype=torch.float64)
    (got,) = evaluate(graph, {key: value.double() for key, value in state.items()}, x)
    want = module.double()(x)
    assert torch.allclose(got, want, rtol=0, atol=1e-12) and got.shape == want.shape


class Shared(torch.nn.Module):
    """Layers that no convolution takes the place of, and one of which two others share the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(3, 3, 2, 2))
        self.grouped, self.dilated = torch.nn.ConvTranspose2d(3, 3, 2, 2, groups=3), torch.nn.ConvTranspose2d(3, 3, 2, dilation=2)
        self.cropped = torch.nn.ConvTranspose2d(3, 3, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.conv_transpose2d(x, self.weight, stride=2)
        x = self.cropped(self.dilated(self.grouped(x)))
        return torch.nn.functional.conv2d(torch.nn.functional.conv_transpose2d(x, self.weight, stride=2), self.weight)


def test_transposed_convolutions_that_must_stay_stay_and_shared_weights_are_kept() -> None:
    module = Shared().eval()
    traced = trace(module)
    graph, state = passes.transposed_as_convs(traced.graph, traced.state)
    assert [type(node) for node in graph.nodes].count(PixelShuffle) == 2
    x = torch.rand(1, 3, 6, 5, dtype=torch.float64)
    (got,) = evaluate(graph, {key: value.double() for key, value in state.items()}, x)
    assert torch.allclose(got, module.double()(x), rtol=0, atol=1e-12)
