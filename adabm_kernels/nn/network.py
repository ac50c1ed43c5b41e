"""A network on integer convolutions: its graph, compiled to steps over the operators."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .. import native, ops
from ..config import ConvertConfig
from ..exits import ExitParameters
from ..graph import properties
from ..graph.fold import folded, slopes
from ..graph.fuse import FusedConv, Item, fuse, residual_pairs
from ..graph.nodes import ColourShift, Conv, Node
from ..networks.collapse import SMALLEST, collapse
from ..networks.detect import float_network
from ..networks.spec import NetworkSpec
from ..quantize import check_fraction, to_pixels
from ..regions import MAX_DEPTH
from ..registry import GPU_BACKENDS, Choice, Problem, check_device, choose
from . import contexts
from .bits import DecidesBits, RunningThresholds
from .compile import Layer, Source, compile_steps, slices_aligned
from .conv import AdaptiveConv2d, ConvParameters, IntegerConv2d
from .depth import DecidesDepths, LinearExit, Places, places_of
from .float_nodes import colour_key, computes, why_in_floats
from .graph import Graphs, recorded_by_default, records_by_default
from .lanes import in_order, lanes
from .memory import bytes_per_pixel
from .model import ConvertedModel
from .plan_table import format_plan, plan_rows
from .steps import FloatStep, Program, Reader, Run
from .tail import CollapsedConv2d
from .workspace import Workspace


class ConvertedNetwork(DecidesBits, DecidesDepths, contexts.WithoutParameters, ConvertedModel):
    """A network that computes with integer convolutions. From images float32 [N, 3, H, W] in 0..255 it makes float32 [N, 3,
    scale*H, scale*W], not clamped.

    spec, config: the network's specification, and the settings with which it was converted.
    parameters: the quantised convolutions by name.
    floats: the tensors that stay in float, by name: weights and biases of the other convolutions, BatchNorms and slopes.
    thresholds: the thresholds (lower, upper) of the image measure; None when the network is not adaptive.
    float_state: the float weights that the network was made from, which `float_model` needs, or None.
    exit: the filter that makes the output of easy tiles, for which no blocks are computed, and the rule that tells which tiles are
        easy. None where all blocks are computed for every tile.
    fraction: the fraction of the features that pass the blocks by, where these are held as int16 (quantize.to_fixed). None where
        they are float32.
    """

    KINDS: dict[str, type[ConvertedNetwork]] = {}

    def __init_subclass__(cls, network: str | None = None, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if network is not None:
            ConvertedNetwork.KINDS[network] = cls

    def __init__(
        self,
        spec: NetworkSpec,
        config: ConvertConfig,
        parameters: Mapping[str, ConvParameters],
        floats: Mapping[str, torch.Tensor],
        thresholds: tuple[float, float] | None,
        float_state: Mapping[str, torch.Tensor] | None = None,
        exit: ExitParameters | None = None,
        fraction: int | None = None,
    ):
        super().__init__()
        if fraction is not None:
            spec.check_int16_residual(config.quantize)
            check_fraction(fraction)
        self.fraction = fraction
        self.spec, self.config, self.scale = spec, config, spec.scale
        self.deep = min(spec.block_count, MAX_DEPTH)  # read now: torch 2.6 exports no cached property that nobody has read
        self.parameters_by_name, self.floats = dict(parameters), dict(floats)
        self.float_state = None if float_state is None else dict(float_state)
        self.full = config.quantize == "full"
        self.thresholds = thresholds
        self.report: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {}  # how the model was made, in plain values; it is kept in the model's file
        if thresholds is not None:
            self.register_buffer("measure_lower", torch.tensor(thresholds[0], dtype=torch.float32))
            self.register_buffer("measure_upper", torch.tensor(thresholds[1], dtype=torch.float32))
            self._running = RunningThresholds(thresholds, config.image_percentile)
        self._plain_names = self._names_of(self.floats)  # names of buffers, by key
        for key, value in self.floats.items():
            self.register_buffer(self._plain_names[key], value)
        self._conv_names = self._names_of(self.parameters_by_name)  # names of modules, by key
        self._adaptive = nn.ModuleDict()
        self._counted = {conv.name for conv in spec.convs() if conv.role != "end"}.intersection(self.parameters_by_name)
        self._counted = self._counted or set(self.parameters_by_name)
        two_digits = [name for name, held in self.parameters_by_name.items() if held.digits == 2]
        self._stream = frozenset() if spec.why_float_residual("full") else properties.stream(spec.graph())
        # Features of 16 bits hold a sum before any bounds are applied to it.
        self._items = fuse(spec.graph(), self.parameters_by_name, two_digits, clamps=not self._stream)
        self._build()
        self.collapsed = self._collapsed_tail()
        self.exit = exit
        self.easy = None if exit is None else self._linear_exit(exit)
        self._workspace = Workspace()
        self._graphs = Graphs()
        self._graph: bool | None = None  # what set_graph was asked for
        self._bits: str | int = "auto"
        self._depth: str | int = "auto"
        self._threads = 0
        self._requested = "auto"
        self.choice = Choice("reference")  # the backend that convolutions begin with
        self.register_buffer("bit_rules", self._rules(), persistent=False)
        self._sources = self._layers()
        self._early, self._packable = (slices_aligned(self._sources[0], early) for early in (True, False))
        self._programs: list[Program] = []
        self._compiled_for: tuple[bool, ...] = ()
        self.set_backend("auto")

    @property
    def items(self) -> tuple[Item, ...]:
        """The network in the order in which it is computed: integer convolutions with what one kernel computes together with them,
        and the nodes that stay in floats."""
        return self._items

    @property
    def stream(self) -> frozenset[str]:
        """The names of the features that pass the blocks by, which have 16 bits where `fraction` is not None."""
        return self._stream

    # ---- convolutions

    def _build(self) -> None:
        """Makes every integer convolution, in the order of the graph, and keeps what nodes in floats need."""
        fused = {item.conv.key: item for item in self._items if isinstance(item, FusedConv)}
        for node in self.spec.graph().nodes:
            if isinstance(node, Conv) and node.key in fused:
                self._adaptive[self._conv_names[node.key]] = self._conv(fused[node.key])
        colours = [item for item in self._items if isinstance(item, ColourShift)]
        self._plain_names |= self._names_of([colour_key(item) for item in colours])
        for item in colours:
            colour = item.sign * torch.tensor(item.mean, dtype=torch.float32)
            self.register_buffer(self._plain_names[colour_key(item)], colour, persistent=False)

    def _names_of(self, keys: Iterable[str]) -> dict[str, str]:
        """The names of buffers and modules, by key. A name holds no dots."""
        return {key: key.replace(".", "_") for key in keys}

    def _conv(self, fused: FusedConv) -> AdaptiveConv2d:
        gain, shift = folded(fused, self.plain_tensor)
        conv = AdaptiveConv2d(
            self.parameters_by_name[fused.conv.key],
            activation=fused.function,
            slope=slopes(fused, self.plain_tensor),
            gain=gain,
            shift=shift,
            shuffle=fused.shuffle,
        )
        if fused.inputs[0] in self.spec.graph().inputs:
            conv.take_pixels(fused.before)
        return conv

    def conv(self, name: str) -> AdaptiveConv2d:
        """An integer convolution by its AdaBM name."""
        return self._adaptive[self._conv_names[name]]  # type: ignore[return-value]

    def convs(self) -> list[IntegerConv2d]:
        """The integer convolutions in the order they run."""
        found = [*self._quantized(), *(conv for conv in (self.collapsed, self.easy) if conv is not None)]
        return [digit for conv in found for digit in (conv, conv.rest) if digit is not None]

    def _collapsed_tail(self) -> CollapsedConv2d | None:
        """The upsampler as one convolution, where the settings and the network allow it; else None."""
        found = properties.linear_upsampler(self.spec.graph()) if self.spec.linear_upsampler else None
        state = self.float_state
        if self.config.tail == "staged" or found is None or state is None or not self.full:
            if self.config.tail == "collapsed":
                raise ValueError(
                    f"{type(self).__name__}: tail='collapsed' needs a fully quantised network with a staged tail without "
                    "activations, and its float weights"
                )
            return None
        names, shuffles = found
        stages = [(state[f"{name}.weight"], state[f"{name}.bias"]) for name in names]
        first, last = self.parameters_by_name[names[0]], self._items[-1]
        assert isinstance(last, FusedConv)
        _, shift = folded(last, self.plain_tensor)
        return CollapsedConv2d(collapse(stages, shuffles), first.lower, first.upper, shift, first.digits)

    def _linear_exit(self, parameters: ExitParameters) -> LinearExit:
        """The filter of easy tiles."""
        if self.spec.trunk is None:
            raise ValueError(f"{type(self).__name__}: exit must be None for a network of this kind: {self.spec.why_full_depth}")
        inner = self.spec.trunk.inner
        if digits := [conv.name for conv in self._quantized() if conv.rest is not None and conv.name in inner]:
            raise ValueError(f"{type(self).__name__}: exit must be None where an input in a block has two digits: '{digits[0]}'")
        if why := self.spec.why_larger_tiles(parameters.tile):
            raise ValueError(f"{type(self).__name__}: exit: {why}")
        if not self.full or self.config.chosen("input_range") != "pixels":
            raise ValueError(f"{type(self).__name__}: exit must be None unless pixels are codes of 8 bits")
        if parameters.scale != self.scale:
            raise ValueError(f"{type(self).__name__}: exit must be of scale {self.scale}, got one of scale {parameters.scale}")
        return LinearExit(parameters)

    # ---- steps

    def _layers(self) -> list[Source]:
        """The sources to compile: the network, and after it, where there is one, the network with its collapsed upsampler."""
        graph, items = self.spec.graph(), self._items
        pairs = residual_pairs(items)
        self._pairs = [(self.conv(first.conv.key), self.conv(second.conv.key)) for first, second in pairs]
        numbers = {conv.name: i for i, conv in enumerate(self._quantized())}
        blocks = None if self.easy is None else self.spec.trunk
        places = Places() if blocks is None else places_of(items, graph, blocks)
        seconds = {second.name for first, second in pairs if self.conv(first.conv.key).rest is None}

        def layer(item: FusedConv) -> Layer:
            key = item.conv.key
            place, held = places.computed.get(item.name), self.parameters_by_name[key]
            grid = held.lower, held.upper
            return Layer(item.name, item.inputs, self.conv(key), numbers[key], place, item.name in seconds, item.clamp, grid)

        given = {graph.inputs[0]: self.spec.input_channels}
        channels = {name: extent.channels for name, extent in properties.extents(graph, given).items()}
        for item in items:  # a graph does not describe the channels that floats give
            if isinstance(item, FusedConv):
                channels.setdefault(item.inputs[0], item.conv.channels_in)
                if item.residual is not None:
                    channels.setdefault(item.residual, item.conv.channels_out // item.shuffle**2)
        layers: list[Layer | Node] = [layer(item) if isinstance(item, FusedConv) else item for item in items]
        source = Source(
            layers, graph.inputs[0], graph.outputs, channels, self._stream, easy=places.easy, read=places.read, sums=places.sums
        )
        if self.collapsed is None:
            return [source]
        at, first = next(
            (i, item) for i, item in enumerate(items) if isinstance(item, FusedConv) and item.conv.key == self.spec.tail_names[0]
        )
        whole = Layer(source.outputs[0], first.inputs, self.collapsed, numbers[first.conv.key], places.collapsed)
        return [source, replace(source, items=[*layers[:at], whole])]

    def _compile(self) -> None:
        """Compiles the network anew where the backend needs another program."""
        wanted = self.quantizes_early, not self.why_not_fused
        if wanted == self._compiled_for:
            return
        early, fused = self._compiled_for = wanted
        self._programs = [compile_steps(replace(source.in_pairs(fused), early=early)) for source in self._sources]

    @property
    def quantizes_early(self) -> bool:
        """Whether features become codes for all layers that read them as soon as they are there."""
        return self.choice.backend in ops.QUANTIZE_MANY and self._early

    def image_for(self, conv: IntegerConv2d, codes: torch.Tensor) -> torch.Tensor:
        """The tensor into which the last convolution of the upsampler writes pixels, uint8 [N, r*H, r*W, C]. It is the caller's."""
        n, h, w, _ = codes.shape
        return codes.new_empty(n, *conv.out_size(h, w), conv.out_channels)

    def output_for(self, conv: IntegerConv2d, codes: torch.Tensor, place: int | None) -> torch.Tensor:
        """The tensor into which a convolution writes features, float32 [N, r*H, r*W, C]: an output, or what a later step reads. The
        caller keeps it, except in a block of `lending_output`. place: the number of the tensor in the program, None for the only
        output."""
        n, h, w, _ = codes.shape
        shape = (n, *conv.out_size(h, w), conv.out_channels)
        if not torch.compiler.is_compiling() and self._workspace.holds_output:
            # No output may lie in the memory of another, or of what is read after it was written.
            name = "output" if place is None else f"features {place}"
            return self.work_buffer(name, shape, torch.float32, codes.device)
        return torch.empty(shape, dtype=torch.float32, device=codes.device)

    # ---- settings

    def set_backend(self, backend: str = "auto", *, graph: bool | None = None) -> Choice:
        """Sets the backend that computes from now on, and returns the choice with its reasons.

        backend: a name of registry.BACKENDS, or "auto" for the fastest backend that can run. On a GPU that two backends can use,
        "auto" decides for each convolution by its shape (`choices`, by name). graph: see `set_graph`; None leaves that setting as
        it is.

        Raises ValueError for an unknown name, and RuntimeError with the reason where a backend that was named cannot run.
        """
        device = str(self._device())  # the name includes the number of the card, because cards may differ
        choice = choose(Problem(device), backend)  # chosen every time, because the device and the environment may have changed
        on_gpu = choice.backend in GPU_BACKENDS
        packed_codes = on_gpu and choice.backend in ops.PACKED_CODES and self._packable
        # Codes lie alike for both GPU backends, so each convolution can run on the one that is faster for it.
        convs = self.convs()
        choices = [choose(Problem(device, conv.shape), backend) if on_gpu else choice for conv in convs]
        choices = [
            each if not (why := conv.why_not(each.backend)) else Choice("reference", each.rejected | {each.backend: why})
            for conv, each in zip(convs, choices, strict=True)
        ]
        asked = self._graph if graph is None else graph
        wanted = choice.backend, asked, [(each.backend, packed_codes) for each in choices]
        if wanted != (self.choice.backend, self._graph, [(conv.backend, conv.packed_codes) for conv in convs]):
            self._forget_graphs()  # before the weights that recorded passes read are packed anew
        self.choice, self._requested, self.packed_codes, self._graph = choice, backend, packed_codes, asked
        self.choices: dict[str, Choice] = {conv.name: each for conv, each in zip(convs, choices, strict=True)}
        for conv, each in zip(convs, choices, strict=True):
            conv.set_backend(each.backend, self._threads)
            conv.packed_codes = packed_codes
        reasons = (first.why_not_with(second) for first, second in self._pairs)
        self.why_not_fused = next((reason for reason in reasons if reason), "")  # why blocks are not computed in one piece
        self._compile()
        return choice

    def set_graph(self, graph: bool | None = None) -> None:
        """Sets whether, on a CUDA device, a forward pass is recorded for every shape of x and replayed as a CUDA graph.

        True records from the first pass on, and a forward pass raises where recording fails. False never records. With None, which
        is the setting of a new model, `forward` and `pixels` launch kernel by kernel, while `forward_many`, `upscale` and the
        commands record a shape when it comes the third time and, where that fails, warn once and launch. Inside torch.compile there
        is nothing to record, and the setting has no effect. Setting the present value again changes nothing. Raises TypeError for
        any other value.
        """
        if graph is not None and not isinstance(graph, bool):
            raise TypeError(f"set_graph: graph must be True, False or None, got {graph!r}")
        if graph is not self._graph:
            self._graph = graph
            self._forget_graphs()

    def _forget_graphs(self) -> None:
        self._graphs.clear()

    @property
    def threads(self) -> int:
        """How many threads compute on a CPU."""
        return self._threads or min(torch.get_num_threads(), native.MAX_THREADS)

    def set_threads(self, threads: int) -> None:
        """Sets the threads of the CPU kernels: 1..256, or 0 for as many as torch uses. Raises ValueError otherwise."""
        most = native.MAX_THREADS
        if isinstance(threads, bool) or not isinstance(threads, int) or not 0 <= threads <= most:
            raise ValueError(f"set_threads: threads must be 1..{most}, or 0 for as many as torch uses, got {threads!r}")
        self._threads = threads
        for conv in self.convs():
            conv.threads = threads

    def backend_summary(self) -> str:
        """The backend in words: "cpu (avx512vnni, 2 threads)", "cuda, 2 of 39 convolutions on triton"."""
        if self.choice.backend != "cpu":
            others = [choice.backend for choice in self.choices.values() if choice.backend != self.choice.backend]
            elsewhere = f"{len(others)} of {len(self.choices)} convolutions on {others[0]}" if others else ""
            return ", ".join(filter(None, (self.choice.backend, elsewhere)))
        return f"cpu ({native.isa_chosen()}, {self.threads} thread{'s' if self.threads > 1 else ''})"

    def extra_repr(self) -> str:
        bits = "" if self._bits == "auto" else f" at {self._bits} bits throughout"
        kind = "adaptive" if self.thresholds is not None else "fixed"
        widths = f"W{self.config.weight_bits}A{self.config.act_bits}"
        return f"{self.spec.network} x{self.scale}, {widths} {kind}{bits}, {self.backend_summary()}"

    def _device(self) -> torch.device:
        return next(self._adaptive.buffers()).device

    @torch.inference_mode(False)  # moved tensors must be ordinary ones
    def _apply(self, fn, recurse=True):
        try:
            probe = fn(self.bit_rules.new_zeros(0, dtype=torch.float32))
        except NotImplementedError as error:
            if self._device().type != "meta":
                raise
            name = type(self).__name__
            raise RuntimeError(f"{name} is on the device 'meta', where tensors hold nothing: none can leave it") from error
        # This is checked before anything is converted, because the digits that float16 cuts off do not come back.
        if probe.dtype != torch.float32:
            raise TypeError(f"{type(self).__name__} computes in integers and float32: it cannot become {probe.dtype}")
        check_device(str(probe.device))  # checked before anything is moved
        super()._apply(fn, recurse)
        if self._requested != "cpu" or self._device().type == "cpu":  # otherwise the next call says that "cpu" cannot compute there
            self.set_backend(self._requested)
        self._forget_graphs()
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        raise TypeError(
            "load_state_dict: a converted model is more than its tensors (plan, packed weights, bits): "
            "read one with adabm_kernels.load"
        )

    def to_empty(self, *, device: torch.device | str | int | None, recurse: bool = True) -> ConvertedNetwork:
        """Raises TypeError, because nothing could fill the tensors again."""
        raise TypeError(
            f"{type(self).__name__}: to_empty({device!r}) would lose the tensors, which nothing could fill again: "
            f"use .to({device!r})"
        )

    def __prepare_scriptable__(self) -> Any:
        raise RuntimeError(f"{type(self).__name__}: torch.jit.script {contexts.NO_SCRIPT}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        contexts.make_ordinary(self)  # they may have been copied or read in inference mode

    def plan(self, measure: int = 0) -> str:
        """The plan of the CPU kernels as a table. For every integer convolution and each bit-width of its codes it has the tile,
        the number of parts that a transformed weight is split into, the 8-bit products for each output and channel, the predicted
        nanoseconds of an output pixel on one thread, and the reason where the form is direct.

        measure: the side in pixels of an image, over which the time is measured on one thread and on the chosen backend. The table
        then has this time too. 0 measures nothing. Raises ValueError unless it is 0 or at least 5, the smallest image of a
        collapsed tail.
        """
        return format_plan(self.plan_rows(measure))

    def plan_rows(self, measure: int = 0) -> list[dict[str, str]]:
        """The rows of `plan`, each {column name: cell}. Raises as `plan`."""
        return plan_rows(self.convs(), measure)

    # ---- forward

    def forward(self, x: torch.Tensor, offset: torch.Tensor | None = None, origin: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """Computes the network's output for images x: float32 [N, 3, scale*H, scale*W], not clamped.

        x: float32 [N, 3, H, W] in 0..255, with at least one image and one pixel.
        offset: the bits that each image gets more or less, int32 [N] of -1..1. If it is left out, the images decide.
        origin: for an x that is cut from a larger picture, the place of its first pixel in its depth tile of that picture, as row
            and column in 0..tile - 1. The depth tiles are then those of the picture.

        Raises ValueError for other types and shapes. Integers have no gradient: asking for one through this call (backward,
        torch.func, forward mode) raises RuntimeError. Autocast, inference_mode and train() change nothing.
        """
        return self._run(x, offset, as_pixels=False, origin=origin)

    def pixels(self, x: torch.Tensor, offset: torch.Tensor | None = None, *, origin: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """The forward pass as pixels of 8 bits, uint8 [N, 3, scale*H, scale*W], clamped to 0..255 and rounded half to even.

        The result is the same on every backend, and equals `quantize.to_pixels` of the result of the forward pass. Where the last
        convolution is an integer convolution, the CPU and the CUDA kernels write the pixels themselves, which saves three of four
        bytes and one pass over them. Raises as `forward`.
        """
        return self._run(x, offset, as_pixels=True, origin=origin)

    def forward_many(self, images: Iterable[torch.Tensor], in_flight: int = 2, *, pixels: bool = False) -> Iterator[torch.Tensor]:
        """The forward pass of each of `images`, float32 [N, 3, H, W] of any shapes, in their order. pixels: whether to return what
        the method `pixels` returns.

        in_flight: how many passes are under way at once on a CUDA device, at least 1. Each runs on a stream with buffers of its own
        and, unless graph=False was asked for (`set_graph`), with recorded graphs of its own for shapes that come three times in it.
        This takes the memory of that many forward passes, and is for images too small to fill the card. On other devices one pass
        runs after the other. Nothing waits on the host, except for the device when a shape is recorded: results are ordered on the
        stream of the caller, as those of `forward` are. Running thresholds follow the images in their order. Raises ValueError
        unless in_flight is an integer of at least 1, and as `forward` does when an image's turn comes.
        """

        def function(x: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
            with recorded_by_default():
                return self._run(x, offset, pixels, (0, 0))

        def inputs() -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
            for x in images:
                # State that an image changes for the next one is changed on the caller's stream, in order.
                yield x, self.image_offsets(x, learn=True) if self.running_momentum > 0 else None

        found = lanes(self._device(), in_flight)
        yield from in_order(function, inputs(), found if self._device().type == "cuda" else found[:1])

    def _run(self, x: torch.Tensor, offset: torch.Tensor | None, as_pixels: bool, origin: tuple[int, int]) -> torch.Tensor:
        self._check(x, offset, origin)
        return self.spec.arranged(contexts.run(self, self._compute, x, offset, as_pixels, origin))

    def _compute(self, x: torch.Tensor, offset: torch.Tensor | None, as_pixels: bool, origin: tuple[int, int]) -> torch.Tensor:
        if not torch.compiler.is_compiling() and (self._graph or self._records_by_default(x)):
            return self._replay(x, offset, as_pixels, origin)
        return self._finished(x, self._bit_table(x, learn=True, offset=offset), as_pixels, origin)

    def _records_by_default(self, x: torch.Tensor) -> bool:
        """Whether a pass is recorded that nobody asked to record. Inside a recording of the caller's it is not, because the pass
        becomes a part of that recording.

        A recording that another thread has under way on another stream is not seen, and may break (docs/gpu_tuning.md).
        """
        wanted = self._graph is None and records_by_default() and x.device.type == "cuda"
        return wanted and self.choice.backend in GPU_BACKENDS and not torch.cuda.is_current_stream_capturing()

    def _check(self, x: torch.Tensor | None, offset: torch.Tensor | None, origin: tuple[int, int] = (0, 0)) -> None:
        """Checks the arguments of `forward`. x may be None where an offset is given."""
        name = type(self).__name__
        contexts.refuse_recorders(name, x)
        tile = 1 if self.exit is None else self.exit.tile
        pair = isinstance(origin, tuple) and len(origin) == 2
        if origin != (0, 0) and not (pair and all(type(at) is int and 0 <= at < tile for at in origin)):
            raise ValueError(f"{name}: origin must be two whole numbers in 0..{tile - 1}, less than a tile, got {origin!r}")
        if x is not None or offset is None:
            if not (
                isinstance(x, torch.Tensor)
                and (x.dtype, x.dim(), x.layout) == (torch.float32, 4, torch.strided)
                and not x.is_nested
                and x.shape[1] == self.spec.input_channels
                and x.numel() > 0
            ):
                wanted = f"float32 [N, {self.spec.input_channels}, H, W]"
                raise ValueError(f"{name}: x must be {wanted} and not empty, got {_seen(x)}")
            self.spec.check_size(x.shape[2], x.shape[3], f"{name}: x")
        if offset is not None:
            bits = isinstance(offset, torch.Tensor) and offset.dtype == torch.int32 and offset.dim() == 1
            if not bits or (x is not None and len(offset) != len(x)):
                raise ValueError(f"{name}: offset must be int32 [{'N' if x is None else len(x)}], got {_seen(offset)}")

    def _finished(self, x: torch.Tensor, table: torch.Tensor, as_pixels: bool, origin: tuple[int, int]) -> torch.Tensor:
        y = self._forward(x, table, as_pixels, origin)
        return to_pixels(y) if as_pixels and y.dtype != torch.uint8 else y

    def bytes_per_pixel(self) -> int:
        """About how many bytes a forward pass holds for each low-resolution pixel of an input whose sides are at least SMALLEST."""
        scales = {name: extent.scale for name, extent in properties.extents(self.spec.graph()).items()}
        return bytes_per_pixel(self._programs[-1], scales)

    @contextmanager
    def lending_output(self) -> Iterator[None]:
        """Inside the block, what a forward pass of the calling thread returns may be overwritten by its next pass in such a block.
        Fresh memory for large outputs costs about a twentieth of the pass."""
        before, self._workspace.holds_output = self._workspace.holds_output, True
        try:
            yield
        finally:
            self._workspace.holds_output = before

    def _replay(self, x: torch.Tensor, offset: torch.Tensor | None, as_pixels: bool, origin: tuple[int, int]) -> torch.Tensor:
        if self._graph and x.device.type != "cuda":
            raise RuntimeError(f"{type(self).__name__}: graph=True needs images on a CUDA device, x is on {x.device}")
        # Given bits come from outside. So do the bits by thresholds that learn, since these are state and a recorded pass must find
        # nothing changed.
        outside = offset is not None or (self.thresholds is not None and self._running.momentum > 0)
        given = (x, self._bit_table(x, learn=True, offset=offset)) if outside else (x,)

        def forward(x: torch.Tensor, table: torch.Tensor | None = None) -> torch.Tensor:
            # This pass runs only to be recorded. The graph has memory of its own, and the buffers that launched passes of the
            # thread have left would be held in addition. Work that has yet to use those is on the stream they were made on, whose
            # allocator gives memory out in order.
            self._workspace.clear()
            with self._workspace.fresh():  # a graph keeps the addresses it was recorded with
                return self._finished(x, self._bit_table(x, learn=False) if table is None else table, as_pixels, origin)

        def launched(x: torch.Tensor, table: torch.Tensor | None = None) -> torch.Tensor:
            return self._finished(x, self._bit_table(x, learn=False) if table is None else table, as_pixels, origin)

        start = origin if self._exits(x) else (0, 0)
        kind = f"{'pixels' if as_pixels else 'floats'} from {start}"
        if self._graph:
            return self._graphs.run(forward, *given, kind=kind)
        return self._graphs.launch_then_record(forward, launched, *given, kind=kind)

    def _forward(
        self, x: torch.Tensor, table: torch.Tensor, as_pixels: bool = False, origin: tuple[int, int] = (0, 0)
    ) -> torch.Tensor:
        """Computes the output [N, 3, scale*H, scale*W] from x and the bits of each convolution's input codes, int32 [L, N].

        as_pixels: whether to return uint8, where the last convolution is an integer one and can write it; elsewhere floats are
        returned all the same. origin: rows and columns that the first tiles of x lack.
        """
        collapses = self.collapsed is not None and all(side >= SMALLEST for side in x.shape[2:])
        program = self._programs[1 if collapses else 0]
        run = Run(self, program, table.unbind(), as_pixels)
        run.origin, run.exits = origin, self._exits(x)
        return program.run(run, x)

    def work_buffer(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, room: int = 0
    ) -> torch.Tensor:
        """Memory that the network keeps between calls, with arbitrary contents (see `Workspace.get`)."""
        if torch.compiler.is_compiling():  # the compiler plans memory itself
            return torch.empty(shape, dtype=dtype, device=device)
        return self._workspace.get(name, shape, dtype, device, room)

    def pixel_codes(self, conv: IntegerConv2d, x: torch.Tensor, bits: torch.Tensor | None = None) -> torch.Tensor:
        """The codes uint8 [N, H, W, 4] of pixels x, float32 [N, 3, H, W], that a convolution reads. bits: int32 [N], or None for
        the most bits that it can have."""
        if bits is None:
            bits = torch.full((x.shape[0],), conv.bit_range[1], dtype=torch.int32, device=x.device)
        return self._quantize(x, conv.pixel_grid, bits, shift=conv.pixel_shift)

    def _codes_of_pixels(self, x: torch.Tensor) -> torch.Tensor:
        return self.pixel_codes(self._quantized()[0], x)

    def _quantize(self, x: torch.Tensor, grid: torch.Tensor, bits: torch.Tensor, **settings: Any) -> torch.Tensor:
        """Codes [N, H, W, C4] of floats [N, C, H, W] of any strides."""
        return ops.quantize(x, grid, bits, **self._running_on(), **settings)

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
        """Writes codes of features [N, H, W, C], which may be a slice of wider ones, into channels start..end of a code buffer.

        settings: the fraction of int16 features; depth and region, where not every pixel is computed.
        """
        target = {"y_q": y_q, "start": start} if self.packed_codes else {"y_q": y_q[..., start:end]}
        ops.quantize_out(x.permute(0, 3, 1, 2), grid, bits, **target, **settings, **self._running_on())

    def quantize_many_into(
        self, x: torch.Tensor, readers: list[Reader], buffers: list[torch.Tensor], bits: list[torch.Tensor]
    ) -> None:
        """Writes codes of features [N, H, W, C] for several convolutions, each into its channels of a buffer."""
        starts = [reader.start for reader in readers] if self.packed_codes else None
        if starts is None:
            buffers = [buffer[..., reader.start : reader.end] for buffer, reader in zip(buffers, readers, strict=True)]
        grids = [reader.conv.grid for reader in readers]
        ops.quantize_many_out(x.permute(0, 3, 1, 2), grids, bits, buffers, starts=starts, **self._running_on())

    def _running_on(self) -> dict[str, Any]:
        return {"packed_codes": self.packed_codes, "backend": self.choice.backend, "threads": self._threads}

    def plain_tensor(self, key: str) -> torch.Tensor | None:
        """A tensor that stays in float, by its AdaBM key; None where the network has no such tensor."""
        name = self._plain_names.get(key)
        return None if name is None else self._buffers[name]

    def in_floats(self) -> dict[str, str]:
        """The parts that are computed in floats between the integer convolutions, by name in the order they run, each with the
        reason."""
        nodes = (step.node for step in self._programs[-1].steps if isinstance(step, FloatStep))
        return {node.name: why_in_floats(node, self.spec.kept_float) for node in nodes if computes(node)}

    def float_model(self) -> nn.Module:
        """The float network from which this network was made. Raises ValueError where its weights were not kept."""
        if self.float_state is None:
            raise ValueError("float_model: this model carries no float weights (save with include_float=True)")
        model = float_network(self.spec)
        model.load_state_dict(self.float_state)
        return model


def _seen(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return reprlib.repr(value)
    if value.is_nested:
        return f"a nested tensor of {value.dtype}"
    layout = "" if value.layout == torch.strided else f" of layout {value.layout}"
    return f"{value.dtype} {tuple(value.shape)}{layout}"


class ConvertedGraph(ConvertedNetwork, network="graph"):
    """A traced network with integer convolutions (networks/traced.py).

    It takes float32 [N, C, H, W] of the range that it was calibrated for, and gives what the module gives: a tensor, or tuples,
    lists and dicts of tensors, in float32.
    """

    def _names_of(self, keys: Iterable[str]) -> dict[str, str]:
        """Unique names by key. They have a prefix, because parts of modules may be named like attributes of this class, and they
        are compared, because two keys may differ in their dots alone."""
        found: dict[str, str] = {}
        taken: set[str] = set()
        for key in keys:
            name = "part_" + key.replace(".", "_")
            while name in taken:
                name += "_"
            found[key] = name
            taken.add(name)
        return found

    def pixels(self, x: torch.Tensor, offset: torch.Tensor | None = None, *, origin: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """Raises ValueError, because the output of a traced network need not be pixels."""
        raise ValueError(f"{type(self).__name__}: pixels() is for super-resolution networks in 0..255: call the model itself")

    def bytes_per_pixel(self) -> int:
        """Raises ValueError, because the sizes of the float tensors in between are not known."""
        raise ValueError(f"{type(self).__name__}: bytes_per_pixel() is for super-resolution networks")


class ConvertedEDSR(ConvertedNetwork, network="edsr"):
    """EDSR with integer convolutions."""


class ConvertedRDN(ConvertedNetwork, network="rdn"):
    """RDN with integer convolutions."""


class ConvertedSRResNet(ConvertedNetwork, network="srresnet"):
    """SRResNet with integer convolutions."""
