"""A network's convolutions and float nodes as a list of steps over the operators: which step makes which codes and features, and
when.

A quantised convolution reads codes on a grid of its own. The convolution before it writes these codes in its epilogue where it can;
else they are made of features that lie in a buffer. Features are written only where something reads them. Where features are
enlarged by repeating pixels, their codes are repeated instead, which gives the same result with a quarter of the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..graph.nodes import Add, Concat, Conv, Node, Pool, Resize
from ..graph.nodes import Slice as Channels
from ..graph.properties import POINTWISE
from ..quantize import CODE_CHANNELS
from .buffers import bind
from .conv import IntegerConv2d
from .steps import (
    BlockSumStep,
    ClampStep,
    ConvStep,
    CopyStep,
    DepthStep,
    ExitStep,
    FloatStep,
    FreshStep,
    LeaveStep,
    Place,
    Program,
    QuantizeStep,
    Reader,
    RepeatStep,
    Slice,
    Step,
    Store,
    code_store,
)

Extent = tuple[str, int]  # the tensor that a tensor's rows and columns derive from, and by which factor


@dataclass(frozen=True)
class Layer:
    """An integer convolution in a network.

    name: the name of the tensor that it computes. inputs: the tensor that it reads and, where it has one, the residual. bits: the
    row of its input's bits in the table of bits. place: where it computes. pairs: whether it runs in one piece with the layer
    before it, as the second convolution of a residual block. clamp: the bounds to which its features are clamped. grid: the range
    of its input, where that is asked for.
    """

    name: str
    inputs: tuple[str, ...]
    conv: IntegerConv2d
    bits: int
    place: Place | None = None
    pairs: bool = False
    clamp: tuple[float, float] | None = None
    grid: tuple[float, float] | None = None

    @property
    def residual(self) -> str | None:
        return self.inputs[1] if len(self.inputs) > 1 else None


@dataclass(frozen=True)
class Source:
    """The network that is compiled: layers and float nodes in an order in which they can be computed.

    x, outputs: the names of the input and of the tensors that the network gives. channels: the number of channels C of the tensors
    [N, C, H, W] that nodes and the input give, by name, as far as it is known. stream: the tensors that pass the residual blocks
    by. early: whether codes are made as soon as features are there, for all layers that read them. easy: where the filter of easy
    tiles computes; None for a network without one. read: the place where a tensor is read, by name; a tensor that is missing here
    is read everywhere. sums: for each sum that is a node, the tensor that it equals in easy tiles.
    """

    items: Sequence[Layer | Node]
    x: str
    outputs: tuple[str, ...]
    channels: Mapping[str, int]
    stream: frozenset[str] = frozenset()
    early: bool = False
    easy: Place | None = None
    read: Mapping[str, Place] = field(default_factory=dict)
    sums: Mapping[str, str] = field(default_factory=dict)

    def in_pairs(self, fused: bool) -> Source:
        """The same network, whose residual blocks run in one piece where `fused` is set."""
        items = [item if fused or not isinstance(item, Layer) else replace(item, pairs=False) for item in self.items]
        return replace(self, items=items)


Changes = tuple[tuple[int, int], ...]  # for rows and for columns, the (a, b) by which a size becomes (size - 1 + a) // b + 1


def _changes(item: Layer | Node) -> Changes | None:
    """How the size of the tensor that a layer, a convolution in floats or a pool computes differs from the size of its input. None
    for any other node, and where the settings of the node do not say it."""
    if isinstance(item, Layer):
        axes = item.conv.geometry.axes(*item.conv.weight.shape[-3:-1])
        return tuple((axis.before + axis.after - axis.extent + 1, axis.stride) for axis in axes)
    if isinstance(item, Conv):
        sizes = zip(item.kernel, item.stride, item.dilation, item.padding, strict=True)
    elif isinstance(item, Pool) and "kernel_size" in (settings := dict(item.settings)) and not settings.get("ceil_mode"):
        kernel = _both(settings["kernel_size"])
        found = [kernel, _both(settings.get("stride") or kernel)]
        found += [_both(settings.get(name, usual)) for name, usual in (("dilation", 1), ("padding", 0))]
        sizes = zip(*found, strict=True)
    else:
        return None
    return tuple((2 * padding - dilation * (kernel - 1), stride) for kernel, stride, dilation, padding in sizes)


def _both(sizes: int | tuple[int, ...]) -> tuple[int, ...]:
    """Rows and columns of a setting that is either one number for both or two numbers."""
    return (sizes, sizes) if isinstance(sizes, int) else (sizes[0], sizes[-1])


class _Compiler:
    def __init__(self, source: Source):
        self.source = source
        self.steps: list[Step] = []
        self.places: list[Place | None] = [None]
        self.layers = {item.name: item for item in source.items if isinstance(item, Layer)}
        # The parts of every concatenation, where nested concatenations are replaced by their parts.
        self.parts: dict[str, tuple[str, ...]] = {}
        self.repeated = {item.name: item for item in source.items if isinstance(item, Resize) and self._repeats_codes(item)}
        self.extents: dict[str, Extent] = {source.x: (source.x, 1)}
        self.smaller: dict[tuple[Extent, Changes], Extent] = {}  # the extent of all tensors that arise by the same change of size
        for item in source.items:
            if isinstance(item, Concat):
                parts = tuple(part for name in item.inputs for part in self.parts_of(name))
                if all(part in self.layers or part in source.channels for part in parts):
                    self.parts[item.name] = parts
            self.extents[item.name] = self._extent(item)
        self.codes: dict[str, Reader] = {}  # the codes that each layer reads, by the layer
        self.enlarged: dict[str, Slice] = {}  # where the repeated codes lie that a layer reads, by the layer
        self.direct: dict[str, Layer] = {}  # by a layer, the layer whose codes it writes
        self.features: dict[str, Slice] = {}
        self.homes = {} if source.early else self._homes()
        # Layers whose codes are made of a tensor as soon as it is there, and which channels of their input it is.
        self.waiting: dict[str, list[tuple[Layer, int, int | None]]] = {}
        for layer in self.layers.values():
            self._plan_codes(layer)
        self.wanted = self._wanted()

    # ---- who reads what

    def parts_of(self, name: str) -> tuple[str, ...]:
        return self.parts.get(name, (name,))

    def _repeats_codes(self, node: Resize) -> bool:
        """Whether the pixels of features, not those of the input, are repeated for convolutions of one digit alone."""
        if node.mode != "nearest" or node.factor != int(node.factor):
            return False
        if node.x == self.source.x:
            return False
        reading = [item for item in self.source.items if node.name in item.inputs]
        layers = [item for item in reading if isinstance(item, Layer) and item.conv.rest is None and item.residual != node.name]
        return node.name not in self.source.outputs and len(layers) == len(reading)

    def coded(self, layer: Layer) -> str:
        """The tensor from whose features the codes of a layer's input are made."""
        name = layer.inputs[0]
        return self.repeated[name].x if name in self.repeated else name

    def channels(self, name: str) -> int:
        if name in self.parts:
            return sum(self.channels(part) for part in self.parts[name])
        return self.layers[name].conv.out_channels if name in self.layers else self.source.channels.get(name, 0)

    def _extent(self, item: Layer | Node) -> Extent:
        of, factor = self.extents[item.inputs[0]]
        changes = _changes(item)
        if changes is not None:
            same = all(stride == 1 and change == 0 for change, stride in changes)
            at = (of, factor) if same else self.smaller.setdefault(((of, factor), changes), (item.name, 1))
            return at[0], at[1] * (item.conv.shuffle if isinstance(item, Layer) else 1)
        if item.name in self.repeated:
            return of, factor * int(self.repeated[item.name].factor)
        alike = isinstance(item, Add) and len({self.extents[name] for name in item.inputs}) == 1
        return (of, factor) if alike or isinstance(item, (Concat, *POINTWISE)) else (item.name, 1)

    def _homes(self) -> dict[str, Slice]:
        """Places side by side for the parts of concatenations that layers read. Of concatenations that begin with the same parts,
        the widest counts."""
        homes: dict[str, Slice] = {}
        read = [self.parts[layer.inputs[0]] for layer in self.layers.values() if layer.inputs[0] in self.parts]
        for name, parts in self.parts.items():
            longer = any(len(other) > len(parts) and other[: len(parts)] == parts for other in self.parts.values())
            helped = [one for one in read if parts[: len(one)] == one]
            # The result of a float node would have to be copied there. For a single layer that reads it, codes are made of it where
            # it is.
            helps = len(helped) > 1 or (len(helped) == 1 and self.layers.keys() >= set(parts))
            taken = homes.keys() | self.source.stream | {self.source.x, *self.source.outputs}
            taken |= {layer.name for layer in self.layers.values() if layer.conv.shuffle > 1}  # kernels do not shuffle into slices
            free = len(set(parts)) == len(parts) > 1 and taken.isdisjoint(parts)
            if longer or not helps or not free:
                continue
            store, start = Store("features", self.channels(name), self.extents[name]), 0
            for part in parts:
                homes[part] = Slice(store, start, start := start + self.channels(part))
        return homes

    def _side_by_side(self, parts: tuple[str, ...]) -> Slice | None:
        """The place where these parts lie next to one another in their order; None where they do not."""
        slices = [self.homes.get(part) for part in parts]
        first = slices[0]
        if first is None:
            return None
        at = first.start
        for held in slices:
            if held is None or held.store is not first.store or held.start != at:
                return None
            at = held.stop
        return Slice(first.store, first.start, at)

    def _plan_codes(self, layer: Layer) -> None:
        """Decides which step makes the codes of a layer's input."""
        name = self.coded(layer)
        parts = self.parts_of(name)
        channels = layer.conv.weight.shape[-1] * layer.conv.geometry.groups
        codes = code_store(channels, self.extents[name], parts == (self.source.x,))
        self.codes[layer.name] = Reader(layer.conv, layer.bits, codes)
        if name != layer.inputs[0]:
            self.enlarged[layer.name] = code_store(channels, self.extents[layer.inputs[0]])
        if len(parts) == 1:
            if not self._is_fresh(parts[0]) and parts[0] not in self.direct and self._within(parts[0], layer):
                self.direct[parts[0]] = layer
            elif self.source.early and parts[0] != self.source.x:
                self.waiting.setdefault(parts[0], []).append((layer, 0, None))
            return
        if self._side_by_side(parts) is None:
            start = 0
            for part in parts:
                stop = start + self.channels(part)
                last = stop == self.channels(name)
                self.waiting.setdefault(part, []).append((layer, start, None if last else stop))
                start = stop

    def _within(self, name: str, reader: Layer) -> bool:
        """Whether the grid of a reader lies within the bounds of features. The codes are then the same before and after the
        features are clamped to their bounds."""
        bounds, grid = self.layers[name].clamp, reader.grid
        return bounds is None or (grid is not None and bounds[0] <= grid[0] and grid[1] <= bounds[1])

    def _is_fresh(self, name: str) -> bool:
        """Whether features are made in fresh memory: by torch, or by a convolution that gives the output or has two digits."""
        layer = self.layers.get(name)
        return layer is None or name in self.source.outputs or layer.conv.rest is not None

    def _wanted(self) -> set[str]:
        """The tensors whose features are read."""
        wanted = {part for name in self.source.outputs for part in self.parts_of(name)} | self.waiting.keys()
        for item in self.source.items:
            if isinstance(item, Layer):
                wanted |= set() if item.residual is None else set(self.parts_of(item.residual))
                parts = self.parts_of(self.coded(item))
                direct = self.direct.get(parts[0]) is item
                wanted |= set() if direct and item.conv.rest is None else set(parts)
            elif item.name not in self.parts and item.name not in self.repeated:
                wanted |= {part for name in item.inputs for part in self.parts_of(name)}
        return wanted

    # ---- steps

    def compile(self) -> Program:
        source = self.source
        self.features[source.x] = Slice(Store("pixels", self.channels(source.x), (source.x, 1), True), 0, self.channels(source.x))
        self._after(source.x)
        first: Layer | None = None
        for item, following in zip(source.items, [*source.items[1:], None], strict=True):
            if isinstance(item, Layer):
                if isinstance(following, Layer) and following.pairs:
                    first = item
                    self._make_codes(item)
                else:
                    self._layer(item, first if item.pairs else None)
            elif item.name not in self.parts and item.name not in self.repeated:
                self._node(item)
        ys = [self._features_of(name) for name in source.outputs]
        if source.easy is not None:
            pixels = self._pixels()
            self._add(ExitStep(pixels.codes, pixels.bits, ys[0]), source.easy)
        return bind(self.steps, self.places, self.features[source.x], ys)

    def _add(self, step: Step, place: Place | None = None) -> None:
        if place not in self.places:
            self.places.append(place)
        step.place = self.places.index(place)
        self.steps.append(step)

    def _pixels(self) -> Reader:
        """The codes of the picture."""
        layer = next(layer for layer in self.layers.values() if layer.inputs[0] == self.source.x)
        return self.codes[layer.name]

    def _make_codes(self, layer: Layer) -> None:
        """Adds the step that makes the codes a layer reads, unless they are made already."""
        reader, parts = self.codes[layer.name], self.parts_of(self.coded(layer))
        made = self.direct.get(parts[0]) is layer or any(one is layer for part in parts for one, *_ in self.waiting.get(part, ()))
        if not made:
            x = self.features[parts[0]] if len(parts) == 1 else self._side_by_side(parts)
            assert x is not None
            self._add(QuantizeStep(x, [reader]), self._read_at(parts[0]))
            if self.source.easy is not None and parts == (self.source.x,):
                self._add(DepthStep(reader.codes))
        if layer.name in self.enlarged:
            factor = int(self.repeated[layer.inputs[0]].factor)
            self._add(RepeatStep(reader.codes, self.enlarged[layer.name], factor))

    def _read_by(self, layer: Layer) -> Slice:
        """The codes that a layer reads."""
        return self.enlarged.get(layer.name, self.codes[layer.name].codes)

    def _read_at(self, name: str) -> Place | None:
        """Where a tensor is read, in a network that computes at places."""
        return self.source.read.get(name)

    def _layer(self, layer: Layer, first: Layer | None) -> None:
        opening = layer if first is None else first
        if first is None:
            self._make_codes(opening)
        x_q = self._read_by(opening)
        residual = None if layer.residual is None else self._features_of(layer.residual)
        stream = not self.source.stream.isdisjoint((layer.name, layer.residual))
        left = self._left(layer, x_q)
        if self._is_fresh(layer.name):
            y = self._fresh(layer.name)
            output = layer.name in self.source.outputs and layer.name not in self._read_again()
            self._add(FreshStep(layer.conv, layer.bits, x_q, y, left, residual, output), layer.place)
            if layer.clamp is not None:
                self._add(ClampStep(y, layer.clamp))
            self._keep(layer.name, y)
        else:
            following = self.direct.get(layer.name)
            y_q = None if following is None else self.codes[following.name]
            features = self._target(layer, residual) if layer.name in self.wanted else None
            second = None if first is None else (layer.conv, layer.bits)
            step = ConvStep(opening.conv, opening.bits, x_q, features, y_q, residual, stream=stream, second=second)
            if features is not None and residual is not None and features.store.width != residual.store.width:
                self._add(CopyStep(residual, features))  # kernels want both laid out alike in memory
                step.residual, step.accumulate = features, True
            self._add(step, layer.place)
            if layer.clamp is not None and features is not None:
                self._add(ClampStep(features, layer.clamp))
        self._after(layer.name)

    def _read_again(self) -> set[str]:
        return {name for item in self.source.items for name in item.inputs}

    def _left(self, layer: Layer, x_q: Slice) -> Slice | None:
        """The codes of the second digit of a layer's input."""
        if layer.conv.rest is None:
            return None
        name = layer.inputs[0]
        left = code_store(self.channels(name), self.extents[name])
        rest = self.source.items[self.source.items.index(layer) + 1 :]
        later = [*self.source.outputs, *(one for item in rest for one in item.inputs)]
        keep = any(name in self.parts_of(one) for one in later)
        self._add(LeaveStep(self._features_of(name), layer.conv, layer.bits, x_q, left, keep), self._read_at(name))
        return left

    def _target(self, layer: Layer, residual: Slice | None) -> Slice:
        """Where a layer writes its features."""
        home = self.homes.get(layer.name)
        if home is None:
            kind = "stream" if layer.name in self.source.stream else "features"
            channels, start, width = layer.conv.out_channels, 0, layer.conv.out_channels
            # Kernels want a sum and the tensor that they add laid out alike in memory, and do not shuffle into slices.
            if residual is not None and not residual.store.fresh and layer.conv.shuffle == 1:
                start, width = residual.start, residual.store.width
            home = Slice(Store(kind, width, self.extents[layer.name]), start, start + channels)
        self.features[layer.name] = home
        return home

    def _features_of(self, name: str) -> Slice:
        """The features of a tensor. Those of a concatenation are put together in fresh memory."""
        if name not in self.parts:
            return self.features[name]
        y = self._fresh(name)
        self._add(FloatStep(Concat(name, self.parts[name]), [self.features[part] for part in self.parts[name]], y))
        return y

    def _fresh(self, name: str) -> Slice:
        return Slice(Store("features", self.channels(name), self.extents[name], True), 0, self.channels(name))

    def _node(self, node: Node) -> None:
        if isinstance(node, Channels) and node.name not in self.source.outputs and node.x not in self.parts:
            whole = self.features[node.x]
            if whole.store.kind != "stream":
                self._keep(node.name, Slice(whole.store, whole.start + node.start, whole.start + node.stop))
                self._after(node.name)
                return
        inputs, y = [self._features_of(name) for name in node.inputs], self._fresh(node.name)
        if node.name in self.source.sums:
            self._add(BlockSumStep(node, inputs, y, self._features_of(self.source.sums[node.name])))
        else:
            self._add(FloatStep(node, inputs, y))
        self._keep(node.name, y)
        self._after(node.name)

    def _keep(self, name: str, y: Slice) -> None:
        """Records that features lie where they were made, or copies them beside others where layers read them together."""
        self.features[name] = self.homes.get(name, y)
        if name in self.homes:
            self._add(CopyStep(y, self.features[name]))

    def _after(self, name: str) -> None:
        """Adds the steps that make codes of a tensor as soon as it is there."""
        readers = []
        for layer, start, end in self.waiting.get(name, ()):
            known = self.codes[layer.name]
            readers.append(Reader(known.conv, known.bits, known.codes, start, end))
        for group in [readers] if self.source.early and readers else [[reader] for reader in readers]:
            self._add(QuantizeStep(self.features[name], group), self._read_at(name))


def compile_steps(source: Source) -> Program:
    """The steps of a network, and the buffers that they work in."""
    return _Compiler(source).compile()


def slices_aligned(source: Source, early: bool) -> bool:
    """Whether slices of codes begin at whole groups of codes. All slices count where all codes are made as soon as features are
    there, and otherwise only those of parts that do not lie side by side."""
    waiting = _Compiler(replace(source, early=early)).waiting.values()
    return all(start % CODE_CHANNELS == 0 for readers in waiting for _, start, _ in readers)
