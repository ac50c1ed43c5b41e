"""What the specifications of the networks have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from types import MappingProxyType
from typing import Any, cast

import torch

from ..graph import properties
from ..graph.nodes import Concat, Graph, PixelShuffle
from ..graph.properties import ConvSpec
from ..graph.trunk import Trunk, least_tile, trunk
from .layouts import MAX_BLOCKS, MAX_CHANNELS, MAX_WEIGHT, Layout, State, adabm_name, is_factor

__all__ = ["RESIDUAL_FRACTION", "UNIT_RANGE", "ConvSpec", "NetworkSpec", "stages"]

# The key of a float32 [1] in state dicts: the fraction of features that are held in 16 bits (quantize.to_fixed).
RESIDUAL_FRACTION = "residual_fraction"
_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "bool": (bool,), "str": (str,), "float": (int, float)}
UNIT_RANGE = "unit_range"  # the key of a buffer of one element, which marks networks that compute in 0..1


def stages(scale: int) -> tuple[int, ...]:
    """The factors of the PixelShuffles, in order, in an upsampler that works in stages by 2, 3 or 4."""
    return (2, 2) if scale == 4 else (scale,)


class NetworkSpec:
    """The base class of the specifications of networks: dataclasses with a `scale`, a `res_scale` and a method that builds the
    graph of the network.

    Everything else about a network is read off its graph. The class attributes and methods say how the network is recognised.

    network, title: its name in files, and in messages. called, known_by: words for messages: which form of the network is
    supported, and the keys by which it is known.
    anchor: the key of the first convolution's weight under AdaBM's names. layouts: the layouts of public implementations.
    takes_mean_shift: true where the network can subtract a mean colour, which its fields `mean_shift` and `mean` give. scales: the
    scales that such networks exist for.
    inputs: the numbers of channels that the first convolution may have. says_range: true where the graph has nodes for pixels in
    0..1, used as the field `unit_range` says, because biases cannot absorb the range of pixels.
    module_layers: the names of layers of torch that modules of this kind may have although the graph lacks them. module_forms:
    likewise, the kernels, strides, paddings, dilations and groups of convolutions. article: the article before the title.
    sharpens: true where such networks are trained to sharpen, against a discriminator. They amplify the errors of rounding, and the
    values of their channels differ much in size: `calibrate` with recipe "best" then takes more care (ConvertConfig.equalize).
    """

    network: str
    title: str
    called: str
    known_by: str
    anchor: str
    layouts: tuple[Layout, ...] = ()
    takes_mean_shift = False
    sharpens = False
    scales: tuple[int, ...] = (2, 3, 4)
    inputs: tuple[int, ...] = (3,)
    says_range = False
    module_layers: tuple[str, ...] = ()
    module_forms: frozenset[tuple] = frozenset()
    article = "an"
    input_channels: int = 3
    takes_pixels = True
    dtypes: Mapping[str, str] = MappingProxyType({})
    kept_float: Mapping[str, str] = MappingProxyType({})

    scale: int
    res_scale: float = 1.0
    mean_shift: bool = False
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def fits(cls, state: State) -> bool:
        """Returns whether weights under AdaBM's names look like this network's."""
        raise NotImplementedError

    @classmethod
    def read(cls, state: State, res_scale: float) -> NetworkSpec:
        """The specification of a network, read off weights that look like this kind's. Raises ValueError where the weights do not
        tell it."""
        raise NotImplementedError

    @classmethod
    def of_scale_8(cls, state: State) -> str:
        """The key of a weight that only a network of this kind for x8 has; empty where the state has no such weight."""
        return ""

    @classmethod
    def completed(cls, state: State, mean_shift: bool) -> dict[str, torch.Tensor]:
        """Weights that look like this network's, completed with those that a state dict may leave out. mean_shift: true where a
        mean shift is asked for."""
        return dict(state)

    def build(self) -> Graph:
        """Builds the graph of the network under AdaBM's names."""
        raise NotImplementedError

    def published(self, name: str) -> str:
        """The name that published state dicts give to the part that the graph calls `name`."""
        return name

    def own_name(self, key: str) -> str:
        """The graph's name for a value that the float network's state dict calls `key`."""
        return adabm_name(key)

    def simulated_name(self, key: str) -> str:
        """The name that a simulation gives to the part that the graph calls `key`."""
        return key

    def arranged(self, outputs: Any) -> Any:
        """The output of the network, arranged from the outputs of its graph."""
        return outputs

    def check_size(self, rows: int, columns: int, what: str) -> None:
        """Raises ValueError for a size of pictures that the network does not take. what: the words with which the message
        begins."""

    def graph(self) -> Graph:
        """The graph of the network under AdaBM's names, which is built once."""
        return self._graph

    def convs(self) -> tuple[ConvSpec, ...]:
        """Every convolution that can be quantised, in the order they run."""
        return self._convs

    @property
    def any_order(self) -> bool:
        """Returns whether the network may have been trained on pictures with red and blue exchanged."""
        return True

    @property
    def attention(self) -> tuple[str, ...]:
        """The names of the nodes that weigh features by the whole picture. The pixels that they read do not count for the receptive
        field."""
        return ()

    @cached_property
    def _graph(self) -> Graph:
        return self.build()

    @cached_property
    def _convs(self) -> tuple[ConvSpec, ...]:
        return properties.convs(self._graph)

    @cached_property
    def radius(self) -> int:
        """The receptive field's radius: the number of low-resolution pixels on each side that an output pixel depends on."""
        return properties.radius(self._graph, self.attention)

    @cached_property
    def grid(self) -> int:
        """The side, in low-resolution pixels, of the groups of pixels that the network handles together. Windows begin at multiples
        of it."""
        return properties.grid(self._graph)

    @cached_property
    def takes_any_range(self) -> bool:
        """Returns whether weights for pixels of one range are also weights for another range, except for a factor on biases
        (convention.fold)."""
        return properties.takes_any_range(self._graph)

    @cached_property
    def block_count(self) -> int:
        """The number of residual blocks of the network: of those that tiles can go without, where there are such blocks; 0 where it
        has no residual blocks."""
        return len(properties.residual_blocks(self._graph) if self.trunk is None else self.trunk.blocks)

    @cached_property
    def _trunk(self) -> tuple[Trunk | None, str]:
        return trunk(self._graph)

    @property
    def trunk(self) -> Trunk | None:
        """The blocks that tiles of an image can go without (exits.py); None where tiles need the whole network."""
        return self._trunk[0]

    @property
    def skips_blocks(self) -> bool:
        """Returns whether tiles of an image can go without the blocks of the network."""
        return self.trunk is not None

    @property
    def why_full_depth(self) -> str:
        """The reason why tiles of an image cannot go without the blocks, as a sentence that begins with "it" or with the name of a
        part; empty where they can."""
        return self._trunk[1]

    @cached_property
    def least_tile(self) -> int:
        """The side, in pixels, of the smallest tiles that can go without blocks; 0 where no tiles can."""
        return 0 if self.trunk is None else least_tile(self._graph, self.trunk)

    def why_larger_tiles(self, side: int) -> str:
        """The reason why tiles of `side` pixels cannot go without blocks, as a sentence; empty where they can."""
        if side >= self.least_tile:
            return ""
        return f"tiles must have at least {self.least_tile} pixels a side, which this network reads around tiles, got {side}"

    @cached_property
    def residual_stream(self) -> bool:
        """Returns whether the blocks of the network add to features of one width, which can be held in 16 bits."""
        return bool(properties.stream(self._graph))

    @cached_property
    def linear_upsampler(self) -> bool:
        """Returns whether the upsampler is several convolutions without activations between them, so that it can be computed as
        one."""
        return properties.linear_upsampler(self._graph) is not None

    @cached_property
    def shuffles(self) -> tuple[int, ...]:
        """The factors of the upsampler's PixelShuffles, in order."""
        return tuple(node.factor for node in self._graph.nodes if isinstance(node, PixelShuffle))

    @cached_property
    def tail_names(self) -> tuple[str, ...]:
        """The names of the upsampler's convolutions, in the order they run."""
        tail = properties.needed(self._graph, self._graph.outputs, (properties.upsampler_input(self._graph),))
        names = {node.name for node in tail}
        return tuple(conv.name for conv in self._convs if conv.name in names)

    @property
    def repeated(self) -> int:
        """The number of blocks times the layers of each block; the network has at least as many weights. Computing it builds
        nothing."""
        return math.prod(getattr(self, field.name) for field in fields(cast(Any, self)) if field.name in ("blocks", "layers"))

    def check_sizes(self, *names: str) -> None:
        """Raises ValueError for a field of another type, for a scale that no network has, for a number of blocks, layers or
        channels that is not a whole number, below 1 or too large, and for a residual scale that is negative, NaN or too large.
        names: the fields that are such numbers."""
        for field in fields(cast(Any, self)):
            value, kinds = getattr(self, field.name), _KINDS.get(str(field.type))
            if kinds is not None and type(value) not in kinds:
                raise ValueError(f"{type(self).__name__}: {field.name} must be {field.type}, got {value!r}")
        if not is_factor(self.res_scale):
            raise ValueError(f"{type(self).__name__}: res_scale must be a number from 0 to {MAX_WEIGHT:g}, got {self.res_scale!r}")
        if self.scale not in self.scales:
            *others, last = map(str, self.scales)
            rule = f"{', '.join(others)} or {last}" if others else last
            raise ValueError(f"{type(self).__name__}: scale must be {rule}, got {self.scale}")
        for name in names:
            value, most = getattr(self, name), MAX_BLOCKS if name in ("blocks", "layers") else MAX_CHANNELS
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"{type(self).__name__}: {name} must be an integer from 1 to {most}, got {value!r}")

    def why_float_residual(self, quantize: str) -> str:
        """The reason why the features beside the codes cannot be held in 16 bits; empty where they can. quantize: as in
        `ConvertConfig`."""
        if not properties.residual_blocks(self._graph):
            return f"{self.article} {self.title} has no residual blocks that features could pass by"
        if not self.residual_stream:
            sliced = any(isinstance(node, Concat) for node in self._graph.nodes)
            what = "are slices of wider ones" if sliced else "do not all pass its blocks by"
            return f"the features of {self.article} {self.network.upper()} {what}"
        return "" if quantize == "full" else "with quantize='body' convolutions in float read and write them"

    def check_int16_residual(self, quantize: str) -> None:
        """Raises ValueError unless the features beside the codes can be held in 16 bits. quantize: as in `ConvertConfig`."""
        if why := self.why_float_residual(quantize):
            raise ValueError(f"residual must be 'auto' or 'float32' here, got 'int16': {why}")

    def quantized(self, quantize: str) -> dict[str, ConvSpec]:
        """The convolutions that `ConvertConfig.quantize` ("full" or "body") quantises, by name in the order they run."""
        convs = (conv for conv in self.convs() if conv.name not in self.kept_float)
        return {conv.name: conv for conv in convs if quantize == "full" or conv.body}
