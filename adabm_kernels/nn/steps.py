"""The steps of a compiled network, and what they work on in a forward pass. Each step runs one kernel or one node in floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch

from ..graph.nodes import Node
from ..quantize import from_fixed, padded_channels
from ..regions import Depths, Region, pixel_depths
from . import float_nodes
from .conv import IntegerConv2d

EVERYWHERE: dict[str, Any] = {}  # the arguments of the operators for a layer that computes every pixel


@dataclass(eq=False)
class Store:
    """The memory of a tensor, or of several tensors side by side along the channels: [N, H, W, width].

    kind: "codes", "features" (float32), or "stream" for features that pass the blocks by. width: the number of channels. extent:
    the size of the rows and columns, given as the name of the tensor that it derives from and a factor. fresh: whether the memory
    is made anew in each forward pass and lies in no buffer. buffer: the buffer in which it lies, which other stores may use before
    and after it. most: the size of the largest store in that buffer, in values for each pixel of the tensor that its extent derives
    from.
    """

    kind: str
    width: int
    extent: tuple[str, int]
    fresh: bool = False
    buffer: str = ""
    most: int = 0

    @property
    def values(self) -> int:
        """The number of values for each pixel of the tensor that its extent derives from."""
        return self.width * self.extent[1] ** 2


@dataclass(eq=False)
class Slice:
    """The channels start..stop of a store. at, whole: the places in `Run.tensors` of these channels and of all channels of the
    buffer."""

    store: Store
    start: int
    stop: int
    at: int = -1
    whole: int = -1


@dataclass(frozen=True)
class Place:
    """Where a layer computes in a picture with tiles of several depths, at `factor` times the resolution of the tiles."""

    region: Region
    factor: int = 1

    def arguments(self, depths: Depths) -> dict[str, Any]:
        """The place as the operators take it."""
        depths = depths.enlarged(self.factor) if self.factor > 1 else depths
        return {"depth": depths.values, "region": self.region.numbers(depths)}


class RunsSteps(Protocol):
    """The methods and values that the steps need of the network that runs them."""

    @property
    def fraction(self) -> int | None:
        """The fraction of the features that pass the blocks by, where these are int16 (quantize.to_fixed). None where they are
        float32."""

    @property
    def easy(self) -> IntegerConv2d | None:
        """The filter of easy tiles, which computes the output from the codes of the pixels. None where all blocks are computed for
        every tile."""

    def work_buffer(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, room: int = 0
    ) -> torch.Tensor:
        """The memory of that name. It holds whatever was left there by the last step that asked for this name."""

    def image_for(self, conv: IntegerConv2d, codes: torch.Tensor) -> torch.Tensor:
        """The tensor into which the convolution that gives the output writes pixels, uint8 [N, r*H, r*W, C], from codes [N, H, W,
        C4]."""

    def output_for(self, conv: IntegerConv2d, codes: torch.Tensor, place: int | None) -> torch.Tensor:
        """The tensor into which a convolution writes features that are in no buffer, float32 [N, r*H, r*W, C], from codes [N, H, W,
        C4]. place: the number of the tensor in the program, None for the only output; tensors of different numbers share no
        memory."""

    def pixel_codes(self, conv: IntegerConv2d, x: torch.Tensor, bits: torch.Tensor | None = None) -> torch.Tensor:
        """The codes of pixels x float32 [N, 3, H, W] that a convolution reads, uint8 [N, H, W, 4]. bits: int32 [N], or None for
        the most that the convolution can have."""

    def quantize_into(
        self,
        x: torch.Tensor,
        grid: torch.Tensor,
        bits: torch.Tensor,
        y_q: torch.Tensor,
        start: int = 0,
        end: int | None = None,
        **settings: Any,
    ) -> None:
        """Makes codes of features [N, H, W, C], with bits int32 [N], in channels start..end of a buffer of codes.

        settings: the fraction of int16 features; depth and region, where not every pixel is computed.
        """

    def quantize_many_into(
        self, x: torch.Tensor, readers: list[Reader], buffers: list[torch.Tensor], bits: list[torch.Tensor]
    ) -> None:
        """Makes codes of the same features [N, H, W, C] for several convolutions, each in its own buffer and with its own bits."""

    def depths_from_codes(self, pixels: torch.Tensor, origin: tuple[int, int]) -> Depths:
        """The depths of tiles, from the codes of the pixels uint8 [N, H, W, 4]. origin: rows and columns that the first tiles of
        the images lack."""

    def plain_tensor(self, key: str) -> torch.Tensor | None:
        """A tensor that stays in float, by its AdaBM key; None where the network has no such tensor."""


class Run:
    """The state of one forward pass: the tensors by their places, the bits of the input codes of every convolution, and whether
    pixels were asked for."""

    def __init__(self, network: RunsSteps, program: Program, bits: Sequence[torch.Tensor], as_pixels: bool):
        self.network, self.fraction, self.bits, self.as_pixels = network, network.fraction, bits, as_pixels
        self.origin, self.exits = (0, 0), False
        self.depths: Depths | None = None
        self._hard: torch.Tensor | None = None
        self.tensors: list[Any] = [None] * program.count  # each entry is a tensor once it has been made
        self.places, self.placed = program.places, [EVERYWHERE] * len(program.places)

    def set_depths(self, depths: Depths) -> None:
        """Makes everything that is computed from here on depend on the depths of tiles, which are in the flat form."""
        self.depths = depths
        self.placed = [EVERYWHERE if place is None else place.arguments(depths) for place in self.places]

    def hard(self, like: torch.Tensor) -> torch.Tensor:
        """For which pixels blocks are computed: bool of the shape of `like`, features [N, H, W, C], with all channels in memory. It
        is made once for all blocks."""
        assert self.depths is not None
        if self._hard is None or self._hard.shape != like.shape:
            pixels = pixel_depths(self.depths, *like.shape[:3])[..., None] > 0
            self._hard = pixels.expand(like.shape).contiguous()
        return self._hard

    def target(self, held: Slice, like: torch.Tensor, factor: int = 1, size: tuple[int, int] | None = None) -> torch.Tensor:
        """The tensor to write to, on the pixels of `like` [N, H, W, ...], with sides `factor` times as long or of another size."""
        tensors = self.tensors
        found = tensors[held.at]
        if found is None:
            whole, store = tensors[held.whole], held.store
            if whole is None:
                n, h, w, _ = like.shape
                rows, columns = (h * factor, w * factor) if size is None else size
                dtype = torch.uint8 if store.kind == "codes" else torch.float32
                dtype = torch.int16 if store.kind == "stream" and self.fraction is not None else dtype
                shape = n, rows, columns, store.width
                room = math.prod(shape) // store.values * store.most
                whole = tensors[held.whole] = self.network.work_buffer(store.buffer, shape, dtype, like.device, room)
            found = tensors[held.at] = whole if held.at == held.whole else whole[..., held.start : held.stop]
        return found

    def floats(self, held: Slice) -> torch.Tensor:
        """Features as float32."""
        x = self.side_by_side(held)
        return x if x.dtype != torch.int16 or self.fraction is None else from_fixed(x, self.fraction)

    def given(self, held: Slice) -> Any:
        """The input of a node in floats: features as float32 [N, C, H, W], and everything else as it was made."""
        x = self.side_by_side(held)
        if held.store.kind == "stream":
            x = self.floats(held)
        return x.permute(0, 3, 1, 2) if _is_features(x) else x

    def side_by_side(self, held: Slice) -> torch.Tensor:
        """A tensor, a part of its channels, or several tensors that were written next to one another."""
        found, whole = self.tensors[held.at], self.tensors[held.whole]
        if found is None:
            found = self.tensors[held.at] = whole[..., held.start : held.stop]
        return found


@dataclass(eq=False)
class Step:
    """One step of a forward pass. place: the number of the place where it computes, 0 for everywhere."""

    place: int = field(default=0, kw_only=True)

    READS: ClassVar[tuple[str, ...]] = ("x",)  # fields that name stores which must still hold their contents
    WRITES: ClassVar[tuple[str, ...]] = ("y",)  # fields that name stores which may share no memory with what is read here or later

    def reads(self) -> list[Slice]:
        return _slices(self, self.READS)

    def writes(self) -> list[Slice]:
        return _slices(self, self.WRITES)

    def run(self, run: Run) -> None:
        raise NotImplementedError


@dataclass(eq=False)
class Reader:
    """The codes that a convolution reads: the convolution, the row of its bits in the table of bits, and the channels start..end of
    its input where the codes lie.

    end: None stands for the end of the input, with the padding channels.
    """

    conv: IntegerConv2d
    bits: int
    codes: Slice
    start: int = 0
    end: int | None = None


def _slices(step: Step, fields: tuple[str, ...]) -> list[Slice]:
    found: list[Any] = []
    for value in (getattr(step, name) for name in fields):
        found += value if isinstance(value, list) else [value]
    return [one.codes if isinstance(one, Reader) else one for one in found if one is not None]


@dataclass(eq=False)
class QuantizeStep(Step):
    """Makes codes of features for one convolution, or for several at once."""

    x: Slice
    readers: list[Reader]

    WRITES = ("readers",)

    def run(self, run: Run) -> None:
        network, x, first = run.network, run.side_by_side(self.x), self.readers[0]
        if first.codes.store.fresh:
            run.tensors[first.codes.at] = network.pixel_codes(first.conv, x.permute(0, 3, 1, 2), run.bits[first.bits])
            return
        buffers = [run.target(reader.codes, x) for reader in self.readers]
        bits = [run.bits[reader.bits] for reader in self.readers]
        if len(buffers) > 1:
            network.quantize_many_into(x, self.readers, buffers, bits)
        else:
            settings = {"fraction": run.fraction} if x.dtype == torch.int16 else {}
            settings |= run.placed[self.place]
            network.quantize_into(x, first.conv.grid, bits[0], buffers[0], first.start, first.end, **settings)


@dataclass(eq=False)
class RepeatStep(Step):
    """Repeats every pixel of codes [N, H, W, C4] `factor` times a side. These are the codes of features that are enlarged by
    repeating pixels."""

    x: Slice
    y: Slice
    factor: int

    def run(self, run: Run) -> None:
        x = run.tensors[self.x.at]
        n, h, w, c = x.shape
        y = run.target(self.y, x, self.factor)
        y.view(n, h, self.factor, w, self.factor, c).copy_(x.view(n, h, 1, w, 1, c))


@dataclass(eq=False)
class LeaveStep(Step):
    """Makes codes of the second digit: of the difference between features and the values of their first digit. This difference
    overwrites the features unless `keep` is set."""

    x: Slice
    conv: IntegerConv2d
    bits: int
    codes: Slice
    left: Slice
    keep: bool

    READS = ("x", "codes")
    WRITES = ("left",)

    def run(self, run: Run) -> None:
        x, codes = run.side_by_side(self.x), run.tensors[self.codes.at]
        left = self.conv.leave(x.clone() if self.keep else x, codes, run.fraction if x.dtype == torch.int16 else None)
        rest = self.conv.rest
        assert rest is not None
        run.network.quantize_into(left, rest.grid, run.bits[self.bits], run.target(self.left, codes), **run.placed[self.place])


@dataclass(eq=False)
class ConvStep(Step):
    """Runs an integer convolution, or a residual block of two in one piece, into buffers.

    y: where the features are written. reader: the convolution that reads the codes, and where these are written. One of the two may
    be None. residual: the features that are added; with `accumulate` they lie in y already. stream: whether the features, or the
    residual, pass the blocks by. second: the convolution that runs in one piece with this one, and the row of its bits.
    """

    conv: IntegerConv2d
    bits: int
    x: Slice
    y: Slice | None
    reader: Reader | None
    residual: Slice | None = None
    accumulate: bool = False
    stream: bool = False
    second: tuple[IntegerConv2d, int] | None = None

    READS = ("x", "residual")
    WRITES = ("y", "reader")

    def run(self, run: Run) -> None:
        conv, reader, tensors = self.conv, self.reader, run.tensors
        x_q, bits = tensors[self.x.at], run.bits[self.bits]
        outputs: dict[str, Any] = dict(run.placed[self.place])
        size = conv.out_size(x_q.shape[1], x_q.shape[2]) if conv.geometry_numbers else None
        if self.y is not None:
            outputs["y"] = run.target(self.y, x_q, conv.shuffle, size)
        if reader is not None:
            outputs["y_q"] = run.target(reader.codes, x_q, conv.shuffle, size)
            outputs["out_grid"], outputs["out_bits"] = reader.conv._buffers["grid"], run.bits[reader.bits]
        if self.accumulate:
            outputs["accumulate"] = True
        elif self.residual is not None:
            residual = run.side_by_side(self.residual)
            outputs["residual"] = residual.contiguous() if self.residual.store.fresh else residual
        if self.stream:
            outputs["fraction"] = run.fraction
        if self.second is None:
            conv.into(x_q, bits, **outputs)
        else:
            second, second_bits = self.second
            conv.into_with(second, x_q, bits, run.bits[second_bits], **outputs)


@dataclass(eq=False)
class FreshStep(Step):
    """Runs an integer convolution into fresh memory. The convolution gives the output, or its input has two digits.

    left: the codes of the second digit. output: whether it gives the output of the network, which may be asked for as pixels.
    """

    conv: IntegerConv2d
    bits: int
    x: Slice
    y: Slice
    left: Slice | None
    residual: Slice | None
    output: bool

    READS = ("x", "left", "residual")

    def run(self, run: Run) -> None:
        conv, tensors, place = self.conv, run.tensors, run.placed[self.place]
        x_q, bits = tensors[self.x.at], run.bits[self.bits]
        image = run.network.image_for(conv, x_q) if self.output and run.as_pixels else None
        added: dict[str, Any] = {} if self.residual is None else {"residual": run.floats(self.residual).contiguous()}
        if image is not None and self.left is None:
            conv.pixels_into(x_q, bits, image, **added, **place)
            tensors[self.y.at] = image
            return
        y = run.network.output_for(conv, x_q, None if self.output else self.y.at)
        if self.left is None:
            conv.into(x_q, bits, y=y, **added, **place)
        else:
            y = conv.two_digits(x_q, tensors[self.left.at], bits, y, image, **place)
        tensors[self.y.at] = y


@dataclass(eq=False)
class DepthStep(Step):
    """Finds the depths of tiles from the codes of the pixels."""

    x: Slice

    WRITES = ()

    def run(self, run: Run) -> None:
        if run.exits:
            run.set_depths(run.network.depths_from_codes(run.tensors[self.x.at], run.origin))


@dataclass(eq=False)
class ExitStep(Step):
    """Runs the filter of easy tiles, from the codes of the pixels into the output."""

    x: Slice
    bits: int
    y: Slice

    READS = ("x", "y")
    WRITES = ()

    def run(self, run: Run) -> None:
        if not run.exits:
            return
        x_q, bits, place = run.tensors[self.x.at], run.bits[self.bits], run.placed[self.place]
        y = run.tensors[self.y.at] = run.tensors[self.y.at].contiguous()  # torch may have made it
        easy = run.network.easy
        assert easy is not None
        if y.dtype == torch.uint8:
            easy.pixels_into(x_q, bits, y, **place)
        else:
            easy.into(x_q, bits, y=y, **place)


@dataclass(eq=False)
class FloatStep(Step):
    """Runs a node in floats with torch, in fresh memory. Where the node gives [N, C, H, W], the step gives features [N, H, W, C] of
    any strides. Anything else is given as the node gives it."""

    node: Node
    inputs: list[Slice]
    y: Slice

    READS = ("inputs",)

    def __post_init__(self) -> None:
        self.shares = float_nodes.may_share_memory(self.node)

    def run(self, run: Run) -> None:
        given = [run.given(held) for held in self.inputs]
        y = float_nodes.evaluate(self.node, given, run.network.plain_tensor)
        if any(y is x for x in given) or (self.shares and any(not held.store.fresh for held in self.inputs)):
            y = _copied(y)  # the buffer that it lies in may soon be another tensor's
        run.tensors[self.y.at] = y.permute(0, 2, 3, 1) if _is_features(y) else y


@dataclass(eq=False)
class ClampStep(Step):
    """Clamps features to their bounds, in place."""

    y: Slice
    bounds: tuple[float, float]

    READS = ("y",)

    def run(self, run: Run) -> None:
        y = run.tensors[self.y.at]
        if y.dtype != torch.uint8:  # pixels are in bounds of their own
            lower, upper = self.bounds
            y.clamp_(lower, None if math.isinf(upper) else upper)


@dataclass(eq=False)
class BlockSumStep(FloatStep):
    """Computes the sum that ends a block, in floats. entry: the input to which the block adds, which is the result in easy
    tiles."""

    entry: Slice

    def run(self, run: Run) -> None:
        super().run(run)
        if run.depths is not None:
            y = run.tensors[self.y.at]
            # The result is written in place, because fresh memory costs as much as the sum.
            torch.where(run.hard(y), y, run.floats(self.entry), out=y)


@dataclass(eq=False)
class CopyStep(Step):
    """Copies features to where they lie beside others."""

    x: Slice
    y: Slice

    def run(self, run: Run) -> None:
        x = run.side_by_side(self.x)
        run.target(self.y, x).copy_(x)


@dataclass(eq=False)
class DropStep(Step):
    """Gives fresh tensors back that nothing reads any more."""

    ats: list[int]

    READS = ()
    WRITES = ()

    def run(self, run: Run) -> None:
        for at in self.ats:
            run.tensors[at] = None


@dataclass(eq=False)
class Program:
    """A compiled network: its steps in order, the places of its input and outputs among the tensors, and the number of tensors.

    places: the places where steps compute, by number; None stands for everywhere.
    """

    steps: list[Step]
    x: int
    ys: list[int]
    count: int
    places: list[Place | None]

    def run(self, run: Run, x: torch.Tensor) -> Any:
        """Runs all steps and returns [N, C, H, W] from x, in floats, or as pixels where the last convolution writes them. Several
        outputs are a tuple, and outputs that are no features are returned as their nodes give them."""
        run.tensors[self.x] = x.permute(0, 2, 3, 1)
        for step in self.steps:
            step.run(run)
        if len(self.ys) == 1:
            return _handed_out(run.tensors[self.ys[0]])
        return tuple(_handed_out(run.tensors[at]) for at in self.ys)


def _is_features(x: Any) -> bool:
    """Whether a value is features, which lie as [N, H, W, C] between the steps."""
    return isinstance(x, torch.Tensor) and x.dim() == 4 and x.is_floating_point()


def _copied(y: Any) -> Any:
    """A copy of a tensor, or of each tensor in a tuple or list. Any other value is returned as it is."""
    if isinstance(y, (tuple, list)):
        return [_copied(one) for one in y]
    return y.clone() if isinstance(y, torch.Tensor) else y


def _handed_out(y: Any) -> Any:
    """A tensor as the network returns it: features and pixels as [N, C, H, W]."""
    pixels = isinstance(y, torch.Tensor) and y.dim() == 4 and y.dtype == torch.uint8
    return y.permute(0, 3, 1, 2) if pixels or _is_features(y) else y


def code_store(channels: int, extent: tuple[str, int], fresh: bool = False) -> Slice:
    """A slice of all channels of a new store of codes."""
    width = padded_channels(channels)
    return Slice(Store("codes", width, extent, fresh), 0, width)
