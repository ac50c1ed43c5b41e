"""Networks that are not among the known ones. Their specification is the graph itself, which `graph.trace` makes of any module."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch

from ..graph import properties
from ..graph.fuse import why_not_integer
from ..graph.nodes import Conv, Float, Graph, Linear, Node, Pool, called
from ..graph.outputs import ONE_TENSOR, Layout, arranged, checked_layout
from ..graph.passes import linears_as_convs, own_keys, simplify, transposed_as_convs, with_roles
from ..graph.stored import from_plain, to_plain
from .float_network import FloatNetwork
from .spec import NetworkSpec

Sizes = tuple[int, int]
# Calls that read nothing far away, which include calls that compute sizes.
_LOCAL_CALLS = frozenset(
    "pad constant_pad_nd reflection_pad2d replication_pad2d conv_transpose2d upsample_bilinear2d upsample_bicubic2d "
    "upsample_nearest2d add sub mul div neg abs sigmoid tanh relu softplus exp clamp where gt lt ge le maximum minimum sqrt pow "
    "square getitem slice cat sym_size size floordiv mod chunk split to contiguous clone".split()
)
DTYPES = ("int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True)
class GraphSpec(NetworkSpec):
    """A network as a graph. It takes pictures or features [N, input_channels, H, W] of any range, and has any tensors as outputs.

    definition: its graph, which has one input, and in which every convolution has its key as name (`of_graph` sees to that).
    multiple: the number of which H and W must be multiples. size: (H, W) where the network takes no other size; None where it takes
    any. layout: how the outputs of the graph are handed out. dtypes: the dtypes ("int64", "bool") of values that are not floats, by
    key. kept_float: the convolutions that stay in floats, each with the reason. smallest: the least side that the network takes.
    """

    network = "graph"
    title = "TracedNetwork"
    called = "any module with convolutions"
    known_by = "its graph"
    takes_pixels = False

    definition: Graph
    input_channels: int = 3
    multiple: int = 1
    size: Sizes | None = None
    layout: Layout = ONE_TENSOR
    dtypes: Mapping[str, str] = field(default_factory=dict)
    kept_float: Mapping[str, str] = field(default_factory=dict)
    smallest: int = 1

    def __post_init__(self) -> None:
        if len(self.definition.inputs) != 1:
            raise ValueError(f"GraphSpec: definition must have one input, got {self.definition.inputs}")
        if type(self.input_channels) is not int or self.input_channels < 1:
            raise ValueError(f"GraphSpec: input_channels must be a whole number of at least 1, got {self.input_channels!r}")
        if type(self.multiple) is not int or self.multiple < 1:
            raise ValueError(f"GraphSpec: multiple must be a whole number of at least 1, got {self.multiple!r}")
        if type(self.smallest) is not int or self.smallest < 1:
            raise ValueError(f"GraphSpec: smallest must be a whole number of at least 1, got {self.smallest!r}")
        size = self.size
        if size is not None and not (isinstance(size, tuple) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
            raise ValueError(f"GraphSpec: size must be rows and columns of at least 1, or None, got {size!r}")
        checked_layout(self.layout, len(self.definition.outputs))

    @classmethod
    def of_graph(
        cls,
        graph: Graph,
        state: Mapping[str, torch.Tensor],
        *,
        channels: int = 3,
        finer: Collection[str] | None = None,
        **settings: Any,
    ) -> tuple[GraphSpec, dict[str, torch.Tensor]]:
        """Makes a specification of any graph with one input. Returns it, and the values under the keys of its graph.

        state: the values by key, as `graph.trace` gives them. channels: the number of channels of the input. finer: the names of
        tensors with more rows than the input, by which the convolutions with the role "end" are found; with None the graph tells
        them. settings: further fields of the specification. The graph is simplified, and linear layers and transposed convolutions
        become convolutions. Convolutions that share weights get a copy each, because their inputs have ranges of their own.
        """
        given = {graph.inputs[0]: channels}
        if finer is None:
            finer = [name for name, extent in properties.extents(graph, given).items() if extent.scale > 1]
        graph, state = transposed_as_convs(*linears_as_convs(simplify(graph, given), state))
        graph = with_roles(graph, finer, {})
        graph, state = own_keys(graph, state)
        kept = {key: value.detach().cpu() for key, value in state.items() if key in graph.parameters()}
        kept = {key: value.float() if value.is_floating_point() else value for key, value in kept.items()}
        dtypes = {key: str(value.dtype).removeprefix("torch.") for key, value in kept.items() if not value.is_floating_point()}
        return cls(graph, channels, dtypes=dtypes, **settings), kept

    def stored(self) -> dict[str, Any]:
        """Every field as plain values that JSON holds. Raises ValueError for a graph with calls that a file cannot hold."""
        try:
            definition = to_plain(self.definition)
        except ValueError as error:
            raise ValueError(f"save: the graph of a traced module cannot be written: {error}") from error
        return {
            "definition": definition,
            "input_channels": self.input_channels,
            "multiple": self.multiple,
            "size": self.size,
            "layout": self.layout,
            "dtypes": dict(self.dtypes),
            "kept_float": dict(self.kept_float),
            "smallest": self.smallest,
        }

    @classmethod
    def of_stored(cls, values: Any) -> GraphSpec:
        """The specification of which `stored` made `values`. Raises ValueError, TypeError or KeyError for anything else."""
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise ValueError(f"spec must have the fields {sorted(names)}")
        definition, size = from_plain(values["definition"]), values["size"]
        texts = {}
        for name in ("dtypes", "kept_float"):
            texts[name] = values[name]
            if not isinstance(values[name], dict) or not all(isinstance(one, str) for one in values[name].values()):
                raise ValueError(f"{name} must be an object of texts, got {values[name]!r}")
        if unknown := set(texts["dtypes"].values()) - set(DTYPES):
            raise ValueError(f"dtypes must be of {', '.join(DTYPES)}, got {sorted(unknown)}")
        return cls(
            definition,
            values["input_channels"],
            values["multiple"],
            tuple(size) if isinstance(size, list) else size,
            checked_layout(values["layout"], len(definition.outputs)),
            **texts,
            smallest=values["smallest"],
        )

    def build(self) -> Graph:
        return self.definition

    def graph(self) -> Graph:
        return self.definition

    @cached_property
    def _convs(self) -> tuple[properties.ConvSpec, ...]:
        return properties.convs(self.definition, {self.definition.inputs[0]: self.input_channels})

    @cached_property
    def scale(self) -> int:  # type: ignore[override]  # a property of the graph, not a field
        """The rows of the output for each row of the input, where there is one output and this is a whole number; otherwise 1."""
        sizes = properties.extents(self.definition, {self.definition.inputs[0]: self.input_channels})
        last = sizes.get(self.definition.outputs[0]) if len(self.definition.outputs) == 1 else None
        return int(last.scale) if last is not None and last.scale.denominator == 1 and last.scale >= 1 else 1

    @property
    def local(self) -> bool:
        """Returns whether every output value depends on a part of the input alone, so that a crop of a picture can stand for the
        picture."""
        return self.size is None and all(map(_is_local, self.definition.nodes))

    @property
    def linear_upsampler(self) -> bool:  # type: ignore[override]
        """Returns False: an upsampler of a traced network is computed stage by stage."""
        return False

    @property
    def skips_blocks(self) -> bool:  # type: ignore[override]
        """Returns False: tiles can go without blocks only in networks of pictures in 0..255."""
        return False

    @property
    def why_full_depth(self) -> str:
        return "it is a traced network, and easy tiles are for super-resolution networks of pictures in 0..255"

    def layers_in_floats(self, quantize: str) -> dict[str, str]:
        """The layers with weights that stay in floats although the settings quantise them: the place of each, and the reason."""
        quantized, found = self.quantized(quantize), {}
        for node in self.definition.nodes:
            if isinstance(node, Conv) and node.key not in quantized and (quantize == "full" or node.body):
                found[node.key] = self.kept_float.get(node.key) or why_not_integer(node)
            elif isinstance(node, Linear):
                found[node.key] = f"a linear layer of a tensor of {node.dims or 'an unknown number of'} dimensions"
            elif isinstance(node, Float) and node.shapes:
                found[node.name] = f"integer kernels have no {node.target}"
        return found

    def own_name(self, key: str) -> str:
        """The key itself, because the graph has the module's own keys."""
        return key

    def simulated_name(self, key: str) -> str:
        """The key after "network.", because the parts of a module may have any names, also those of the other parts of a
        simulation."""
        return f"network.{key}"

    def why_float_residual(self, quantize: str) -> str:
        return "a traced network holds the features beside the codes in float32"

    def arranged(self, outputs: Any) -> Any:
        """The output as the module arranges it. outputs: what the graph gives, one tensor or a tuple of several."""
        return arranged(self.layout, outputs if isinstance(outputs, tuple) else (outputs,))

    def check_size(self, rows: int, columns: int, what: str) -> None:
        """Raises ValueError for a size of pictures that the network does not take. what: the words with which the message
        begins."""
        if self.size is not None and (rows, columns) != self.size:
            raise ValueError(
                f"{what} must have {self.size[0]}x{self.size[1]} rows and columns, the size that the module was traced with and "
                f"depends on, got {rows}x{columns}"
            )
        if min(rows, columns) < self.smallest:
            raise ValueError(f"{what} must have sides of at least {self.smallest}, got {rows}x{columns}")
        if rows % self.multiple or columns % self.multiple:
            raise ValueError(f"{what} must have sides that are multiples of {self.multiple}, got {rows}x{columns}")


def _is_local(node: Node) -> bool:
    """Returns whether a node computes each value from values near it."""
    if isinstance(node, Float):
        return called(node) in _LOCAL_CALLS
    return not isinstance(node, Linear) and not (isinstance(node, Pool) and node.function.startswith("adaptive"))


class TracedNetwork(FloatNetwork):
    """The float network of a `GraphSpec`. It computes what the module computes, and hands the outputs out as the module does."""

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.spec.arranged(super().forward(*inputs))
