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

# a float32 [1] in state dicts: the fraction of features that are held in 16 bits (quantize.to_fixed)
RESIDUAL_FRACTION = "residual_fraction"
_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "bool": (bool,), "str": (str,), "float": (int, float)}
UNIT_RANGE = "unit_range"  # a buffer of one element in the state dicts of networks which compute in 0..1


def stages(scale: int) -> tuple[int, ...]:
    """PixelShuffle factors, in order, of an upsampler in stages by 2, 3 or 4."""
    return (2, 2) if scale == 4 else (scale,)


class NetworkSpec:
    """Base of the specifications of the networks: dataclasses with a `scale`, a `res_scale` and the graph of the network.

    What else is asked of a specification is read off the graph. Class attributes and methods say how the network is recognised.
    network, title: as files and messages call it. called, known_by: in messages, what is supported, and by which keys.
    anchor: key of the first convolution's weight under AdaBM's names. layouts: names of public implementations.
    takes_mean_shift: it can subtract a mean colour, its fields `mean_shift` and `mean`. scales: that there are networks for.
    inputs: channels that the first convolution may have. says_range: its graph has nodes for pixels in 0..1, as its field
    `unit_range` says, since biases cannot take them up. module_layers, module_forms: layers of torch, and kernels, strides,
    paddings, dilations and groups of convolutions, in modules of its kind that its graph has not. article: before the title.
    sharpens: its networks are trained to sharpen, against a discriminator. They amplify what rounding leaves, and their channels
    reach differently far: `calibrate` with recipe "best" then takes more care (ConvertConfig.equalize).
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
        """Whether weights under AdaBM's names look like this network's."""
        raise NotImplementedError

    @classmethod
    def read(cls, state: State, res_scale: float) -> NetworkSpec:
        """The hyper-parameters of weights that look like this network's. Raises ValueError where they cannot be told."""
        raise NotImplementedError

    @classmethod
    def of_scale_8(cls, state: State) -> str:
        """The key of a weight that only a network of this kind for x8 has; empty where there is none."""
        return ""

    @classmethod
    def completed(cls, state: State, mean_shift: bool) -> dict[str, torch.Tensor]:
        """Weights that look like this network's, with those that a state dict may leave out. mean_shift: one is asked for."""
        return dict(state)

    def build(self) -> Graph:
        """The network under AdaBM's names."""
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
        """The output of the network, from the outputs of its graph."""
        return outputs

    def check_size(self, rows: int, columns: int, what: str) -> None:
        """Raises ValueError for pictures of a size that the network does not take. what: begins the message."""

    def graph(self) -> Graph:
        """The network under AdaBM's names, built once."""
        return self._graph

    def convs(self) -> tuple[ConvSpec, ...]:
        """Every convolution that can be quantised, in the order they run."""
        return self._convs

    @property
    def any_order(self) -> bool:
        """Whether it may have been trained on pictures with red and blue exchanged."""
        return True

    @property
    def attention(self) -> tuple[str, ...]:
        """Names of the nodes that weigh features by all of the picture: what they read is not of the receptive field."""
        return ()

    @cached_property
    def _graph(self) -> Graph:
        return self.build()

    @cached_property
    def _convs(self) -> tuple[ConvSpec, ...]:
        return properties.convs(self._graph)

    @cached_property
    def radius(self) -> int:
        """Low-resolution pixels on each side that an output pixel depends on: the receptive field's radius."""
        return properties.radius(self._graph, self.attention)

    @cached_property
    def grid(self) -> int:
        """Low-resolution pixels a side that it takes together: windows begin at multiples of them."""
        return properties.grid(self._graph)

    @cached_property
    def takes_any_range(self) -> bool:
        """Whether weights for pixels of one range are those for another range, except for a factor on biases (convention.fold)."""
        return properties.takes_any_range(self._graph)

    @cached_property
    def block_count(self) -> int:
        """How many residual blocks the network has: those that tiles can go without, where there are such; 0 where there is
        none."""
        return len(properties.residual_blocks(self._graph) if self.trunk is None else self.trunk.blocks)

    @cached_property
    def _trunk(self) -> tuple[Trunk | None, str]:
        return trunk(self._graph)

    @property
    def trunk(self) -> Trunk | None:
        """The blocks that tiles of an image can go without (exits.py); None where they need all of the network."""
        return self._trunk[0]

    @property
    def skips_blocks(self) -> bool:
        """Whether tiles of an image can go without its blocks."""
        return self.trunk is not None

    @property
    def why_full_depth(self) -> str:
        """Why tiles of an image cannot go without its blocks, in a sentence that begins with "it" or with a part; empty where they
        can."""
        return self._trunk[1]

    @cached_property
    def least_tile(self) -> int:
        """Pixels a side of the smallest tiles that can go without blocks; 0 where none can."""
        return 0 if self.trunk is None else least_tile(self._graph, self.trunk)

    def why_larger_tiles(self, side: int) -> str:
        """Why tiles of `side` pixels cannot go without blocks, in a sentence; empty where they can."""
        if side >= self.least_tile:
            return ""
        return f"tiles must have at least {self.least_tile} pixels a side, which this network reads around tiles, got {side}"

    @cached_property
    def residual_stream(self) -> bool:
        """Whether its blocks add to features of one width, which can be held in 16 bits."""
        return bool(properties.stream(self._graph))

    @cached_property
    def linear_upsampler(self) -> bool:
        """Whether the upsampler is several convolutions without activations between them, so that it can be computed as one."""
        return properties.linear_upsampler(self._graph) is not None

    @cached_property
    def shuffles(self) -> tuple[int, ...]:
        """PixelShuffle factors of the upsampler, in order."""
        return tuple(node.factor for node in self._graph.nodes if isinstance(node, PixelShuffle))

    @cached_property
    def tail_names(self) -> tuple[str, ...]:
        """Names of the upsampler's convolutions in the order they run."""
        tail = properties.needed(self._graph, self._graph.outputs, (properties.upsampler_input(self._graph),))
        names = {node.name for node in tail}
        return tuple(conv.name for conv in self._convs if conv.name in names)

    @property
    def repeated(self) -> int:
        """Blocks, and layers of each: a network has at least as many weights. Nothing is built to tell it."""
        return math.prod(getattr(self, field.name) for field in fields(cast(Any, self)) if field.name in ("blocks", "layers"))

    def check_sizes(self, *names: str) -> None:
        """ValueError for fields of another type, for a scale that no network has, for numbers of blocks, layers or channels that
        are none or too large, and for a residual scale that is negative, NaN or too large."""
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
        """Why the features beside the codes cannot be held in 16 bits, with `ConvertConfig.quantize`; empty where they can."""
        if not properties.residual_blocks(self._graph):
            return f"{self.article} {self.title} has no residual blocks that features could pass by"
        if not self.residual_stream:
            sliced = any(isinstance(node, Concat) for node in self._graph.nodes)
            what = "are slices of wider ones" if sliced else "do not all pass its blocks by"
            return f"the features of {self.article} {self.network.upper()} {what}"
        return "" if quantize == "full" else "with quantize='body' convolutions in float read and write them"

    def check_int16_residual(self, quantize: str) -> None:
        """ValueError unless the features beside the codes can be held in 16 bits, with `ConvertConfig.quantize`."""
        if why := self.why_float_residual(quantize):
            raise ValueError(f"residual must be 'auto' or 'float32' here, got 'int16': {why}")

    def quantized(self, quantize: str) -> dict[str, ConvSpec]:
        """The convolutions that `ConvertConfig.quantize` ("full" or "body") quantises, by name in the order they run."""
        convs = (conv for conv in self.convs() if conv.name not in self.kept_float)
        return {conv.name: conv for conv in convs if quantize == "full" or conv.body}
