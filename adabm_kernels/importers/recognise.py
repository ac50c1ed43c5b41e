"""Finds which known network a graph is, and gives its weights under the names that a state dict of that network has."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ..graph.fold import leaky_slope
from ..graph.nodes import Activation, Add, Affine, BatchNorm, Conv, Float, Graph, Node, PixelShuffle, PixelUnshuffle, Resize
from ..graph.passes import fold_batch_norm
from ..graph.properties import extents, readers
from ..networks.convention import fold
from ..networks.detect import detect
from ..networks.known import IN_UNIT_RANGE, NETWORKS
from ..networks.spec import UNIT_RANGE, NetworkSpec
from .making import Imported
from .matching import Numbering, normal, without_batch_norms

MOST_NODES = 200_000  # the most nodes of all the graphs of known networks with which one file is compared
MOST_WIDTHS = 8  # the most numbers of channels that are tried for a field
MOST_LAYERS = 64  # the most layers of a dense block
_SHIFTS = ("sub_mean", "add_mean")


@dataclass(frozen=True)
class Known:
    """A known network in a file: its weights as a state dict, which `networks.detect` reads like any other, and its residual scale.

    resized: the factor by which the file resizes the result at its end; the resizing is not a part of the network.
    """

    state: dict[str, torch.Tensor]
    res_scale: float
    resized: float = 1.0


def recognised(imported: Imported) -> Known | None:
    """The known network that a graph is, or whose result it only resizes; None where it is another network."""
    if imported.channels != 3:
        return None
    found, last = _recognised(imported), imported.graph[imported.graph.outputs[0]]
    if found is None and (factor := _resizes_by(last)) is not None and last.x not in imported.graph.inputs:
        nodes = tuple(node for node in imported.graph.nodes if node is not last)
        inner = replace(imported, graph=replace(imported.graph, nodes=nodes, outputs=(last.x,)))
        found = _recognised(inner)
        found = None if found is None else replace(found, resized=factor)
    return found


def _resizes_by(node: Node) -> float | None:
    """The factor by which a node resizes pictures; None for other nodes."""
    if isinstance(node, Float) and node.target == "torch.nn.functional.interpolate":
        return float(dict(node.settings)["scale_factor"])
    return float(node.factor) if isinstance(node, Resize) else None


def _recognised(imported: Imported) -> Known | None:
    whole = _Colours.none(imported.graph)
    for colours in (whole, _Colours.around(imported)):
        if colours is None or (graph := normal(colours.graph, 3)) is None:
            continue
        folded, state = fold_batch_norm(graph, imported.state)
        numbering, left, layers = Numbering(), MOST_NODES, _layers(graph)
        for kind in NETWORKS:
            for spec in _candidates(kind, graph, folded):
                left -= len(spec.graph().nodes)
                if left < 0:
                    return None
                if _layers(spec.graph()) != layers:
                    continue
                for given, values in ((graph, imported.state), (folded, state)):
                    matched = _matched(spec, given, values, numbering, folded=given is folded)
                    known = None if matched is None else _named(spec, matched, colours, imported)
                    if known is not None:
                        return known
    return None


# ---- which networks it may be


def _candidates(kind: type[NetworkSpec], graph: Graph, folded: Graph) -> Iterator[NetworkSpec]:
    """Specifications of one kind of network that may fit a graph, by its convolutions and the size of its output.

    Fields that several networks have, and fields that are true or false, are tried with their possible values. Fields that are
    whole numbers are tried with the numbers of channels or groups in the graph's convolutions.
    """
    convs = [node for node in folded.nodes if isinstance(node, Conv)]
    extent = extents(graph).get(graph.outputs[0])
    if extent is None or not convs or extent.channels != 3 or extent.scale not in kind.scales:
        return
    widths = [width for width, _ in Counter(conv.channels_out for conv in convs).most_common(MOST_WIDTHS)]
    slopes = [node.slopes for node in graph.nodes if isinstance(node, Activation) and node.slopes]
    factors = {factor for node in graph.nodes if isinstance(node, Add) for factor in node.factors}
    known: dict[str, list[Any]] = {
        "scale": [int(extent.scale)],
        "channels": [convs[0].channels_out],
        "mean_shift": [False],
        "tail": ["staged", "single"],
        "slopes": list(dict.fromkeys([*slopes[:1], 1, convs[0].channels_out])),
        "res_scale": [1.0, *sorted({float(f"{factor:.6g}") for factor in factors} - {1.0})[:4]],
    }
    counted = [field.name for field in fields(kind) if field.name in ("blocks", "layers")]  # type: ignore[arg-type]
    names, values = [], []
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in counted:
            continue
        if field.name in known:
            may_be = known[field.name]
        elif isinstance(field.default, bool):
            may_be = [field.default, not field.default]
        elif field.type in ("int", int):
            others = {
                "groups": {conv.groups for conv in convs},
                "unshuffle": {node.factor for node in graph.nodes if isinstance(node, PixelUnshuffle)},
            }
            may_be = next(([1, *sorted(found - {1})] for name, found in others.items() if name in field.name), widths)
        else:
            continue
        names.append(field.name)
        values.append(may_be)
    for combination in itertools.product(*values):
        settings = dict(zip(names, combination, strict=True))
        try:
            if _outlines_agree(kind(**settings, **dict.fromkeys(counted, 1)).graph(), graph):
                yield from _counted(kind, settings, counted, len(convs))
        except (ValueError, TypeError):  # no network has such settings
            continue


def _outlines_agree(known: Graph, graph: Graph) -> bool:
    """Returns whether two graphs may be the same except for their number of blocks: they shuffle and resize alike, and have the
    same activations."""

    def ends(of: Graph) -> list[str]:
        return sorted(f"{type(node).__name__} {node.factor}" for node in of.nodes if isinstance(node, (PixelShuffle, Resize)))

    functions, own = ({node.function for node in of.nodes if isinstance(node, Activation)} for of in (known, graph))
    return ends(known) == ends(graph) and ("prelu" in functions or own <= functions | {"prelu"})


def _counted(kind: type[NetworkSpec], settings: dict[str, Any], counted: list[str], convs: int) -> Iterator[NetworkSpec]:
    """The specifications with such numbers of blocks and layers that they have `convs` convolutions."""
    if not counted:
        yield kind(**settings)
        return
    *others, last = reversed(counted)  # blocks are found for each number of layers
    for number in range(1, min(MOST_LAYERS, convs) + 1) if others else (0,):
        given = settings | dict.fromkeys(others, number)
        one, two = (_convs(kind(**given, **{last: count})) for count in (1, 2))
        if one > convs:
            return
        if two > one and (convs - one) % (two - one) == 0:
            yield kind(**given, **{last: 1 + (convs - one) // (two - one)})


def _layers(graph: Graph) -> Counter[tuple[Any, ...]]:
    """The number of convolutions and of shuffles of each size, which is enough to tell most networks apart."""
    convs = ((node.channels_in, node.channels_out, node.kernel, node.groups) for node in graph.nodes if isinstance(node, Conv))
    return Counter([*convs, *((node.factor,) for node in graph.nodes if isinstance(node, PixelShuffle))])


def _convs(spec: NetworkSpec) -> int:
    return sum(isinstance(node, Conv) for node in spec.graph().nodes)


# ---- the names of its weights


@dataclass(frozen=True)
class _Matched:
    """A graph that was matched with a known one. weights: its weights under the keys of the known graph. convs: for the key of each
    known convolution, the key in the file."""

    weights: dict[str, torch.Tensor]
    convs: dict[str, str]


def _matched(
    spec: NetworkSpec, graph: Graph, state: dict[str, torch.Tensor], numbering: Numbering, folded: bool
) -> _Matched | None:
    """The weights of a graph under the keys of the graph of `spec`; None where these are two networks.

    folded: true where BatchNorms have been folded into the weights before them; they are restored as BatchNorms that only add a
    bias.
    """
    whole = normal(spec.graph(), 3)
    assert whole is not None, "which is so of no known network"
    known, norms = without_batch_norms(whole) if folded else (whole, {})
    if folded and not norms:
        return None
    pairs = numbering.pairs(known, graph)
    if pairs is None:
        return None
    found: dict[str, torch.Tensor] = {key: torch.ones(shape) for key, shape in spec.graph().buffers.items()}
    by_name, convs = {node.name: node for node in graph.nodes}, {}
    for node in known.nodes:
        given = by_name[pairs[node.name]]
        values = _values(node, given, state)
        if values is None:
            return None
        if isinstance(node, Conv) and isinstance(given, Conv):
            convs[node.key] = given.key
            if node.name in norms:
                norm, original = whole[norms[node.name]], whole[node.name]
                assert isinstance(norm, BatchNorm) and isinstance(original, Conv)
                found |= _plain_norm(norm, values.pop(f"{node.key}.bias"))
                values |= {f"{node.key}.bias": torch.zeros(node.channels_out)} if original.bias else {}
        found |= values
    return _Matched(found, convs)


def _values(known: Node, given: Node, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """The values that a known node learns, taken from the node that it is paired with; None where the two do not fit after all."""
    match known, given:
        case Conv(), Conv():
            zeros = torch.zeros(known.channels_out)
            bias = state[f"{given.key}.bias"] if given.bias else zeros
            if not known.bias:
                return None if bias.any() else {f"{known.key}.weight": state[f"{given.key}.weight"]}
            return {f"{known.key}.weight": state[f"{given.key}.weight"], f"{known.key}.bias": bias}
        case BatchNorm(), BatchNorm():
            return {key: state[f"{given.key}.{key.rpartition('.')[2]}"] for key in known.parameters()}
        case Activation(), Activation():
            return _slopes(known, given, state)
    return {}


def _slopes(known: Activation, given: Activation, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    if known.function not in ("relu", "leaky_relu", "prelu"):
        return {}
    if given.function == "prelu":
        slopes = state[f"{given.key}.weight"]
    else:
        slopes = torch.tensor([leaky_slope(given) if given.function == "leaky_relu" else 0.0])
    if known.function == "prelu":
        if len(slopes) > known.slopes:
            return {f"{known.key}.weight": slopes[:1]} if bool((slopes == slopes[0]).all()) else None
        return {f"{known.key}.weight": slopes.expand(known.slopes).clone()}
    wanted = leaky_slope(known) if known.function == "leaky_relu" else 0.0
    return {} if all(math.isclose(slope, wanted, rel_tol=1e-5) for slope in slopes.tolist()) else None


def _plain_norm(norm: BatchNorm, bias: torch.Tensor) -> dict[str, torch.Tensor]:
    """A BatchNorm that only adds a bias."""
    one, zero = torch.ones(norm.channels), torch.zeros(norm.channels)
    gain = torch.full((norm.channels,), math.sqrt(1 + norm.eps))
    parts = {"weight": gain, "bias": bias, "running_mean": zero, "running_var": one, "num_batches_tracked": torch.tensor(0)}
    return {f"{norm.key}.{part}": value for part, value in parts.items()}


def _named(spec: NetworkSpec, matched: _Matched, colours: _Colours, imported: Imported) -> Known | None:
    """The weights under the names of the file, where these are those of a known layout, or else under AdaBM's."""
    whole = colours.completed(spec, matched.weights)
    if whole is None:
        return None
    spec, weights = whole
    if colours.as_read and imported.names:
        own = {f"{imported.names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value for key, value in imported.state.items()}
        with suppress(ValueError):
            if len(own) == len(imported.state) and detect(own, spec.res_scale).spec == spec:
                return Known(own, spec.res_scale)
    named_so = all(imported.names.get(given, "").endswith(known) for known, given in matched.convs.items())
    if _computes_in_unit_range(spec) and not (colours.scaled or named_so):
        if spec.takes_any_range:
            weights = weights | {IN_UNIT_RANGE: torch.ones(1)}
        elif UNIT_RANGE not in weights and "unit_range" in (field.name for field in fields(spec)):  # type: ignore[arg-type]
            spec, weights = replace(spec, unit_range=True), weights | {UNIT_RANGE: torch.ones(1)}  # type: ignore[type-var]
    return Known(weights, spec.res_scale) if detect(weights, spec.res_scale).spec == spec else None


def _computes_in_unit_range(spec: NetworkSpec) -> bool:
    """Returns whether all public weights of a network are for pixels in 0..1. Weights under the names of its graph, where there are
    some, are for 0..255."""
    public = spec.anchor in spec.known_by
    return not public and {layout.rgb_range for layout in spec.layouts} == {1}


# ---- what a graph does to colours before and after the network


@dataclass(frozen=True)
class _Colours:
    """What a graph does to the colours of the picture at its beginning, and to those of the result at its end.

    graph: the nodes between. before, after: two values each for y = matrix @ x + shift, float64 [3, 3] and [3]; None for nothing.
    as_read: true where they are convolutions, whose weights a state dict holds.
    """

    graph: Graph
    before: tuple[torch.Tensor, torch.Tensor] | None = None
    after: tuple[torch.Tensor, torch.Tensor] | None = None
    as_read: bool = True

    @classmethod
    def none(cls, graph: Graph) -> _Colours:
        return cls(graph)

    @classmethod
    def around(cls, imported: Imported) -> _Colours | None:
        """The colours of a graph whose first and last nodes do nothing else; None for other graphs."""
        graph = imported.graph
        reading, by_name = readers(graph), {node.name: node for node in graph.nodes}
        (picture,), (output,) = graph.inputs, graph.outputs
        last = by_name[output]
        if len(reading[picture]) != 1 or len(last.inputs) != 1 or reading[last.x] != (output,) or last.x not in by_name:
            return None
        first = by_name[reading[picture][0]]
        before, after = (_linear(node, imported.state) for node in (first, last))
        if before is None or after is None or first.name in (output, last.x):
            return None
        nodes = []
        for node in graph.nodes:
            if node.name not in (first.name, output):
                inputs = tuple(picture if name == first.name else name for name in node.inputs)
                nodes.append(replace(node, inputs=inputs))
        inner = replace(graph, nodes=tuple(nodes), outputs=(last.x,))
        return cls(inner, before, after, isinstance(first, Conv) and isinstance(last, Conv))

    @property
    def factor(self) -> float | None:
        """The number by which colours are multiplied at the beginning and divided at the end; 1 where nothing is done to them, None
        where something else is."""
        if self.before is None or self.after is None:
            return 1.0
        (before, minus), (after, plus) = self.before, self.after
        gain, one = float(before[0, 0]), torch.eye(3, dtype=torch.float64)
        plain = not minus.any() and not plus.any() and torch.equal(before, one * gain)
        return gain if plain and gain and torch.allclose(after, one / gain, rtol=1e-5, atol=0) else None

    @property
    def scaled(self) -> bool:
        """Returns whether the colours tell the range of pixels that the network has inside."""
        return self.before is not None and self.factor is not None

    def completed(self, spec: NetworkSpec, weights: dict[str, torch.Tensor]) -> tuple[NetworkSpec, dict[str, torch.Tensor]] | None:
        """The network together with what is done to its colours; None where no state dict can express that."""
        if self.before is None or self.after is None:
            return spec, weights
        if (factor := self.factor) is not None:
            if math.isclose(factor, 255, rel_tol=1e-5):
                return spec, weights
            if not math.isclose(factor, 1 / 255, rel_tol=1e-5) or not spec.takes_any_range:
                return None
            return spec, fold(weights, spec, 1, None, "rgb")
        if not spec.takes_mean_shift:
            return None
        (before, minus), (after, plus) = self.before, self.after
        values = {"sub_mean": (before, minus), "add_mean": (after, plus)}
        shift: dict[str, torch.Tensor] = {}
        for name, (matrix, vector) in values.items():
            shift |= {f"{name}.weight": matrix.float().view(3, 3, 1, 1), f"{name}.bias": vector.float()}
        whole = weights | shift
        try:
            return detect(whole, spec.res_scale).spec, whole
        except ValueError:
            return None


def _linear(node: Node, state: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The matrix and the shift that a node applies to three colours; None where it does something else."""
    one = torch.eye(3, dtype=torch.float64)
    if isinstance(node, Conv):
        plain = (node.channels_in, node.channels_out, node.kernel, node.groups) == (3, 3, (1, 1), 1)
        if not plain or node.stride != (1, 1) or node.padding != (0, 0):
            return None
        bias = state[f"{node.key}.bias"].double() if node.bias else torch.zeros(3, dtype=torch.float64)
        return state[f"{node.key}.weight"].double().view(3, 3), bias
    if not isinstance(node, Affine):
        return None
    gain = torch.tensor(node.gain or (1.0,), dtype=torch.float64).expand(3) / (node.divisor or 1.0)
    shift = torch.tensor(node.shift or (0.0,), dtype=torch.float64).expand(3)
    return one * gain, shift * gain if node.first == "shift" else shift
