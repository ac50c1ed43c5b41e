"""What the converted networks have in common: settings, bits, plan, buffers, and the way in and out."""

from __future__ import annotations

import math
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .. import native, ops
from ..config import ConvertConfig
from ..exits import ExitParameters
from ..image_bits import bits_by_rule, image_offsets
from ..networks.collapse import SMALLEST, collapse
from ..networks.detect import float_network
from ..networks.spec import NetworkSpec
from ..planning.tiles import tile_products
from ..quantize import MAX_BITS, MIN_BITS, check_fraction, padded_channels, to_pixels
from ..regions import MAX_DEPTH, Depths, as_tiles, flat_length, pixels_of_tiles
from ..registry import GPU_BACKENDS, Choice, Problem, check_device, choose
from . import contexts
from .bits import RunningThresholds
from .conv import AdaptiveConv2d, ConvParameters, IntegerConv2d
from .depth import EVERYWHERE, LinearExit, Places, radius, tail_specs
from .graph import Graphs, recorded_by_default, records_by_default
from .lanes import in_order, lanes
from .memory import bytes_per_pixel
from .tail import CollapsedConv2d
from .timing import conv_seconds
from .workspace import Workspace


class ConvertedNetwork(contexts.WithoutParameters, ABC):
    """A network with integer convolutions: float32 [N, 3, H, W] in 0..255 -> float32 [N, 3, scale*H, scale*W], not clamped.

    parameters: the quantised convolutions by name. floats: by name, what is left in float: weight and bias of the other
    convolutions, BatchNorms, slopes. thresholds: (lower, upper) of the image measure, None when the network is not adaptive.
    float_state: the float weights it was made from, for `float_model`, or None. exit: the filter of easy tiles, which have no
    blocks computed, and what an easy tile is; None where every tile has all blocks. fraction: of the features that pass the blocks
    by, where those are held as int16 (quantize.to_fixed), None where they are float32.
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
        self.parameters_by_name, self.floats = dict(parameters), dict(floats)
        self.float_state = None if float_state is None else dict(float_state)
        self.full = config.quantize == "full"
        self.thresholds = thresholds
        self.report: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {}  # how the model was made, in plain values: kept in its file
        if thresholds is not None:
            self.register_buffer("measure_lower", torch.tensor(thresholds[0], dtype=torch.float32))
            self.register_buffer("measure_upper", torch.tensor(thresholds[1], dtype=torch.float32))
            self._running = RunningThresholds(thresholds, config.image_percentile)
        for key, value in self.floats.items():
            self.register_buffer(key.replace(".", "_"), value)
        self._adaptive = nn.ModuleDict()
        self._tail_specs = tail_specs(spec)
        self._counted = {conv.name for conv in spec.convs() if conv.role != "end"}
        self._build()
        self.collapsed = self._collapsed_tail()
        self.exit = exit
        self.easy = None if exit is None else self._linear_exit(exit)
        self._workspace = Workspace()
        self._graphs = Graphs()
        self._graph: bool | None = None  # what was asked for
        self._bits: str | int = "auto"
        self._depth: str | int = "auto"
        self._threads = 0
        self._requested = "auto"
        self.choice = Choice("reference")  # as the convolutions begin
        self.register_buffer("bit_rules", self._rules(), persistent=False)
        self.set_backend("auto")

    # ---- what a network adds

    @abstractmethod
    def _build(self) -> None:
        """Make every integer convolution with `_add`, in the order they run."""

    @abstractmethod
    def _forward(
        self, x: torch.Tensor, bits: Mapping[str, torch.Tensor], as_pixels: bool = False, origin: tuple[int, int] = (0, 0)
    ) -> torch.Tensor:
        """[N, 3, scale*H, scale*W] from x and, by name, the bits of each convolution's input codes, int32 [N].

        as_pixels: as uint8 where the last convolution is one on integers, which can write them; floats all the same elsewhere.
        origin: rows and columns that the first tiles of x lack."""

    def _linear_exit(self, parameters: ExitParameters) -> LinearExit:
        """The filter of easy tiles, where the network knows them."""
        raise ValueError(f"{type(self).__name__}: exit must be None: only residual blocks can be left out tile by tile")

    # ---- convolutions

    def _add(self, name: str, **settings: Any) -> None:
        """The integer convolution of that name; settings: see AdaptiveConv2d."""
        self._adaptive[name.replace(".", "_")] = AdaptiveConv2d(self.parameters_by_name[name], **settings)

    def conv(self, name: str) -> AdaptiveConv2d:
        """An integer convolution by its AdaBM name."""
        return self._adaptive[name.replace(".", "_")]

    def convs(self) -> list[IntegerConv2d]:
        """The integer convolutions in the order they run."""
        found = list(self._adaptive.values())
        found += [conv for conv in (self.collapsed, self.easy) if conv is not None]
        return [digit for conv in found for digit in (conv, conv.rest) if digit is not None]

    def _collapsible(self) -> tuple[tuple[str, ...], tuple[int, ...], torch.Tensor] | None:
        """(names, shuffles, float64 [3] shift) of an upsampler without activations, None where there is none."""
        return None

    def _collapsed_tail(self) -> CollapsedConv2d | None:
        """The upsampler as one convolution, where the settings and the network allow it."""
        found = self._collapsible() if self.full and self.float_state is not None else None
        if self.config.tail == "staged" or found is None:
            if self.config.tail == "collapsed":
                raise ValueError(
                    f"{type(self).__name__}: tail='collapsed' needs a fully quantised network with a staged tail without "
                    "activations, and its float weights"
                )
            return None
        names, shuffles, shift = found
        stages = [(self.float_state[f"{name}.weight"], self.float_state[f"{name}.bias"]) for name in names]
        first = self.parameters_by_name[names[0]]
        return CollapsedConv2d(collapse(stages, shuffles), first.lower, first.upper, shift, first.digits)

    def _upsample(self, names: tuple[str, ...], like: torch.Tensor) -> list[IntegerConv2d]:
        """The convolutions of the upsampler for images of the size of the codes `like`."""
        if self.collapsed is not None and all(side >= SMALLEST for side in like.shape[1:3]):
            return [self.collapsed]
        return [self.conv(name) for name in names]

    def _run_into_tail(
        self,
        last: AdaptiveConv2d,
        codes: torch.Tensor,
        last_bits: torch.Tensor,
        skip: torch.Tensor,
        tail: list[IntegerConv2d],
        bits: torch.Tensor,
        buffer: str,
        as_pixels: bool,
        places: Places = EVERYWHERE,
        pixels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[N, 3, scale*H, scale*W] from the codes of the last convolution before the upsampler, whose result adds to `skip`.

        buffer: name of the codes of the upsampler's input. as_pixels: as uint8. places: where layers compute. pixels: the codes of
        the picture, for its easy tiles."""
        wide = self._codes(buffer, codes, self.spec.channels)
        first = tail[0]
        feature = None if first.rest is None else self._features("feature", codes, self.spec.channels)
        closing, outputs = places.closing(), {"y": feature, "y_q": wide, "fraction": self.fraction}
        last.into(codes, last_bits, residual=skip, out_grid=first.grid, out_bits=bits, **outputs, **closing)
        stages = [places.collapsed()] if len(tail) == 1 and first is self.collapsed else self._stages(places)
        left = None
        if feature is not None:
            left = self._codes("left", codes, self.spec.channels)
            self._quantize_into(first.leave(feature, wide, self.fraction), first.rest.grid, bits, left, **closing)
        y = self._run_tail(tail, stages, wide, left, bits, as_pixels, places)
        if places.depths is not None:
            if y.dtype == torch.uint8:
                self.easy.pixels_into(pixels, bits, y, **places.easy())
            else:
                self.easy.into(pixels, bits, y=y, **places.easy())
        return y.permute(0, 3, 1, 2)

    def _stages(self, places: Places) -> list[dict[str, Any]]:
        """Where each convolution of the upsampler computes."""
        return [places.stage(self._tail_specs, i) for i in range(len(self._tail_specs))]

    def _run_tail(
        self,
        tail: list[IntegerConv2d],
        stages: list[dict[str, Any]],
        codes: torch.Tensor,
        left: torch.Tensor | None,
        bits: torch.Tensor,
        as_pixels: bool,
        places: Places,
    ) -> torch.Tensor:
        """[N, scale*H, scale*W, 3] from the codes of the upsampler's input. stages: where each convolution computes, of the places.
        left: codes of what the first ones leave, or None. as_pixels: as uint8."""
        for i, (conv, following, place) in enumerate(zip(tail, tail[1:], stages, strict=False)):
            narrow, codes = codes, self._codes(f"tail{i}", codes, conv.out_channels, conv.shuffle)
            if left is None:
                conv.into(narrow, bits, y_q=codes, out_grid=following.grid, out_bits=bits, **place)
            else:
                y = conv.two_digits(narrow, left, bits, self._output(conv, narrow), **place)
                self._quantize_into(y, following.grid, bits, codes, **places.read(self._tail_specs, i))
                left = None
        conv, place = tail[-1], stages[-1]
        image = self._image(conv, codes) if as_pixels else None
        if image is not None and left is None:
            conv.pixels_into(codes, bits, image, **place)
            return image
        y = self._output(conv, codes)
        if left is not None:
            return conv.two_digits(codes, left, bits, y, image, **place)
        conv.into(codes, bits, y=y, **place)
        return y

    def _image(self, conv: IntegerConv2d, codes: torch.Tensor) -> torch.Tensor:
        """Where the last convolution of the upsampler writes pixels: uint8 [N, r*H, r*W, C], for the caller."""
        n, h, w, _ = codes.shape
        return codes.new_empty(n, h * conv.shuffle, w * conv.shuffle, conv.out_channels)

    def _output(self, conv: IntegerConv2d, codes: torch.Tensor) -> torch.Tensor:
        """Where a convolution of the upsampler writes: float32 [N, r*H, r*W, C], for the caller unless `lending_output`."""
        n, h, w, _ = codes.shape
        shape = (n, h * conv.shuffle, w * conv.shuffle, conv.out_channels)
        if not torch.compiler.is_compiling() and self._workspace.holds_output:
            return self._buffer("output", shape, torch.float32, codes.device)
        return torch.empty(shape, dtype=torch.float32, device=codes.device)

    # ---- settings

    def set_backend(self, backend: str = "auto", *, graph: bool | None = None) -> Choice:
        """Compute with a backend of registry.BACKENDS, or the fastest that can run. Returns the choice with its reasons; on a GPU
        that two backends can use, "auto" then decides for each convolution, by its shape: `choices`, by name.

        graph: see `set_graph`; None leaves it as it is.

        Raises ValueError for an unknown name, RuntimeError with the reason when an explicit one cannot run.
        """
        device = str(self._device())  # with the number of a card: cards may differ
        choice = choose(Problem(device), backend)  # every time: the device and the environment may be others than they were
        on_gpu = choice.backend in GPU_BACKENDS
        packed_codes = on_gpu and choice.backend in ops.PACKED_CODES and self._packable()
        # Codes lie alike for both GPU backends, so each convolution can run on the one that is faster for it.
        convs = self.convs()
        choices = [choose(Problem(device, conv.shape), backend) if on_gpu else choice for conv in convs]
        asked = self._graph if graph is None else graph
        wanted = choice.backend, asked, [(each.backend, packed_codes) for each in choices]
        if wanted != (self.choice.backend, self._graph, [(conv.backend, conv.packed_codes) for conv in convs]):
            self._forget_graphs()  # before the weights that they read are packed anew
        self.choice, self._requested, self.packed_codes, self._graph = choice, backend, packed_codes, asked
        self.choices: dict[str, Choice] = {conv.name: each for conv, each in zip(convs, choices, strict=True)}
        for conv, each in zip(convs, choices, strict=True):
            conv.set_backend(each.backend, self._threads)
            conv.packed_codes = packed_codes
        return choice

    def set_graph(self, graph: bool | None = None) -> None:
        """Whether, on a CUDA device, a forward pass is recorded for every shape of x and replayed as a CUDA graph.

        True: from the first pass on; where that cannot be, a forward pass raises. False: never. None, which is how a model begins:
        `forward` and `pixels` launch kernel by kernel; `forward_many`, `upscale` and the commands record a shape when it comes the
        third time and, where that fails, warn once and launch. Inside torch.compile there is nothing to record, and it has no
        effect. What is set already changes nothing. Raises TypeError for anything else.
        """
        if graph is not None and not isinstance(graph, bool):
            raise TypeError(f"set_graph: graph must be True, False or None, got {graph!r}")
        if graph is not self._graph:
            self._graph = graph
            self._forget_graphs()

    def _packable(self) -> bool:
        """Whether the code buffers can hold several codes a byte: slices of them must begin at multiples of 4 channels."""
        return True

    def _forget_graphs(self) -> None:
        self._graphs.clear()

    @property
    def threads(self) -> int:
        """How many threads compute on a CPU."""
        return self._threads or min(torch.get_num_threads(), native.MAX_THREADS)

    def set_threads(self, threads: int) -> None:
        """Threads of the CPU kernels: 1..256, or 0 for as many as torch uses. Raises ValueError otherwise."""
        most = native.MAX_THREADS
        if isinstance(threads, bool) or not isinstance(threads, int) or not 0 <= threads <= most:
            raise ValueError(f"set_threads: threads must be 1..{most}, or 0 for as many as torch uses, got {threads!r}")
        self._threads = threads
        for conv in self.convs():
            conv.threads = threads

    def set_bits(self, bits: str | int = "auto") -> None:
        """ "auto": every image and layer decides; 2..8: that many in all layers but the 8-bit ends. Raises ValueError otherwise."""
        if bits != "auto" and (isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS):
            raise ValueError(f"set_bits: bits must be 'auto' or {MIN_BITS}..{MAX_BITS}, got {bits!r}")
        if bits != self._bits:
            self._bits = bits
            self.bit_rules.copy_(self._rules())
            self._forget_graphs()

    @property
    def deep(self) -> int:
        """The depth of tiles with all blocks: their number, or the most that a depth can be."""
        return min(getattr(self.spec, "blocks", 1), MAX_DEPTH)

    def set_depth(self, depth: str | int = "auto") -> None:
        """ "auto": easy tiles have no blocks computed, as calibration found; "full", or the number of the network's blocks: all
        tiles have all blocks; 0: no tile has any. Images with fewer pixels a side than the exit's filter have all blocks computed
        at any depth. Raises ValueError for another depth, and for 0 where the network has no exit."""
        blocks = getattr(self.spec, "blocks", 0)
        known = depth in ("auto", "full") or (type(depth) is int and depth in (0, blocks))
        if not known:
            raise ValueError(f"set_depth: depth must be 'auto', 'full', 0 or {blocks}, the blocks of this network, got {depth!r}")
        if depth == 0 and self.exit is None:
            raise ValueError("set_depth: depth must be 'auto' or 'full' for a model without an exit for easy tiles, got 0")
        depth = "full" if depth == blocks else depth
        if depth != self._depth:
            self._depth = depth
            self._forget_graphs()

    @property
    def varies_depth(self) -> bool:
        """Whether some tiles may have no blocks computed."""
        return self.easy is not None and self._depth != "full"

    def tile_depths(self, x: torch.Tensor, *, origin: tuple[int, int] = (0, 0)) -> Depths | None:
        """The depth of each tile of images, as the next forward pass would have them; None where all tiles have all blocks.

        origin: rows and columns of pixels that the first tiles of x lack. Raises as `forward`.
        """
        self._check(x, None, origin)
        if not self._exits(x):
            return None
        with torch.no_grad():
            depths = self._depths(self._pixel_codes(x), origin)
        n, _, *size = x.shape
        return replace(depths, values=as_tiles(depths.values, n, *size, depths.tile, *origin))

    def computed_share(self, x: torch.Tensor, *, origin: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """The share of each image's pixels that have blocks computed, float32 [N] in 0..1. Raises as `forward`."""
        depths = self.tile_depths(x, origin=origin)
        if depths is None:
            return x.new_ones(x.shape[0])
        sizes = [pixels_of_tiles(size, depths.tile, at) for size, at in zip(x.shape[2:], origin, strict=True)]
        rows, columns = (torch.tensor(size, dtype=torch.float64, device=x.device) for size in sizes)
        return ((depths.values > 0).double() @ columns @ rows / (x.shape[2] * x.shape[3])).float()

    def _exits(self, x: torch.Tensor) -> bool:
        """Whether tiles of images of this size may have no blocks: the filter needs room for all its border classes."""
        return self.varies_depth and all(side >= self.exit.kernel for side in x.shape[2:])

    def _depths(self, pixels: torch.Tensor, origin: tuple[int, int]) -> Depths:
        """From the codes of the pixels: flat."""
        tile, (top, left) = self.exit.tile, origin
        if self._depth == 0:
            values = pixels.new_zeros(flat_length(*pixels.shape[:3], tile, top, left))
        else:
            place = {"top": top, "left": left, "flat": True, "backend": self.choice.backend, "threads": self._threads}
            values = ops.tile_depths(pixels, tile, self.exit.threshold, self.deep, **place)
        return Depths(values, tile, top, left)

    def _places(self, x: torch.Tensor, pixels: torch.Tensor, origin: tuple[int, int]) -> Places:
        """Where the layers compute. pixels: the codes of x."""
        if not self._exits(x):
            return EVERYWHERE
        return Places(self._depths(pixels, origin), math.ceil(radius(self._tail_specs)))

    def _pixel_codes(self, x: torch.Tensor) -> torch.Tensor:
        """The codes of the pixels that the first convolution reads, uint8 [N, H, W, 4]; of networks with an exit."""
        raise NotImplementedError

    def set_running_thresholds(self, momentum: float = 0.0, start: tuple[float, float] | None = None) -> None:
        """Let the image thresholds follow the images of inference; 0 (the default) goes back to the calibrated ones.

        Calibration sets the thresholds to the quantiles q = p and 1 - p of the measure over its images, p being
        `config.image_percentile` / 100 (AdaBM, section 3.2). With a momentum above 0 every image that a forward pass sees, in
        the order of its batch, is judged by the thresholds as they stand, and then moves each threshold t, calibrated as t0, by

            t  <-  clip(t + momentum * |t0| * (q - [measure < t]), 2/3 * t0, 3/2 * t0)

        which is at rest where a share q of the measures lies below t: the running estimate of that quantile (stochastic
        approximation, Robbins and Monro, Ann. Math. Stat. 1951). Where the two would cross, both become their mean. No image moves
        a threshold by more than momentum * |t0|: a smaller momentum follows more slowly and trembles less.

        The decision of an image then depends on those before it, no longer on it alone. `layer_bits`, `mean_bits` and
        `image_offsets` say what the next forward pass would do and move nothing; nor do images while `set_bits` is not "auto".
        Momentum and thresholds are saved with the model. start: thresholds to begin at, within those bounds; None for the present
        ones, which are the calibrated ones unless it is on already. Threads may share the model: each image moves the thresholds
        once, in the order of arrival; under torch.compile, which knows no locks, one thread at a time.

        Raises ValueError unless momentum is a number in 0..1, 0 for a network that is not adaptive, and start is in bounds.
        """
        number = isinstance(momentum, (int, float)) and not isinstance(momentum, bool)
        if not number or not 0 <= momentum <= 1:
            raise ValueError(f"set_running_thresholds: momentum must be a number in 0..1, got {momentum!r}")
        if self.thresholds is None:
            if momentum or start is not None:
                raise ValueError("set_running_thresholds: momentum must be 0: this network is not adaptive and has no thresholds")
            return
        self._running.set(float(momentum), start)
        self._forget_graphs()

    @property
    def running_thresholds(self) -> tuple[float, float] | None:
        """(lower, upper) of the image measure as they stand, None where they do not run."""
        running = self.thresholds is not None and self._running.momentum > 0
        return tuple(self._running.current.tolist()) if running else None

    @property
    def running_momentum(self) -> float:
        """The momentum of `set_running_thresholds`, 0 where the thresholds do not run."""
        return 0.0 if self.thresholds is None else self._running.momentum

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

    @torch.inference_mode(False)  # what is moved must be ordinary tensors
    def _apply(self, fn, recurse=True):
        try:
            probe = fn(self.bit_rules.new_zeros(0, dtype=torch.float32))
        except NotImplementedError as error:
            if self._device().type != "meta":
                raise
            name = type(self).__name__
            raise RuntimeError(f"{name} is on the device 'meta', where tensors hold nothing: none can leave it") from error
        if probe.dtype != torch.float32:  # before anything is converted: what float16 has cut off does not come back
            raise TypeError(f"{type(self).__name__} computes in integers and float32: it cannot become {probe.dtype}")
        check_device(str(probe.device))  # before anything is moved
        super()._apply(fn, recurse)
        if self._requested != "cpu" or self._device().type == "cpu":  # else the next call says that "cpu" cannot compute there
            self.set_backend(self._requested)
        self._forget_graphs()
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        raise TypeError(
            "load_state_dict: a converted model is more than its tensors (plan, packed weights, bits): "
            "read one with adabm_kernels.load"
        )

    def to_empty(self, *, device: torch.device | str | int | None, recurse: bool = True) -> ConvertedNetwork:
        """Raises TypeError: nothing could fill the tensors again."""
        raise TypeError(
            f"{type(self).__name__}: to_empty({device!r}) would lose the tensors, which nothing could fill again: "
            f"use .to({device!r})"
        )

    def __prepare_scriptable__(self) -> Any:
        raise RuntimeError(f"{type(self).__name__}: torch.jit.script {contexts.NO_SCRIPT}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        contexts.make_ordinary(self)  # copied or read in inference mode

    def plan(self, measure: int = 0) -> str:
        """The plan of the CPU kernels as a table: for every integer convolution and each bit-width of its codes the tile, the
        parts a transformed weight is split into, the 8-bit products an output and channel, the predicted nanoseconds of an output
        pixel on one thread, and why it is direct.

        measure: a side in pixels; adds the time measured on one thread over an image of that size, on the chosen backend. Raises
        ValueError unless it is 0 or at least 5, the smallest image of a collapsed tail.
        """
        return format_plan(self.plan_rows(measure))

    def plan_rows(self, measure: int = 0) -> list[dict[str, str]]:
        """The rows of `plan`: column name -> cell. Raises as `plan`."""
        if isinstance(measure, bool) or not isinstance(measure, int) or (measure != 0 and measure < SMALLEST):
            raise ValueError(f"plan: measure must be 0 or a side of at least {SMALLEST} pixels, got {measure!r}")
        rows, known = [], {}
        for conv in self.convs():
            plan, shape = conv.plan, tuple(conv.weight.shape)
            for bits in range(conv.bit_range[0], conv.bit_range[1] + 1):
                i = bits - MIN_BITS
                split = plan.products_for_bits[i] / tile_products(plan.tile[i], *shape[-3:-1])
                rows.append(
                    {
                        "layer": conv.name,
                        "bits": f"{bits}",
                        "tile": plan.tile[i],
                        "parts": f"{split:.2f}",
                        "products": f"{plan.products_for_bits[i]:.2f}",
                        f"predicted ns ({plan.isa})": f"{plan.picoseconds[i] / 1e3:.1f}",
                    }
                )
                if measure:
                    key = (shape, plan.tile[i], plan.products_for_bits[i], conv.box_filter, bits)
                    if key not in known:
                        known[key] = self._measured(conv, bits, measure)
                    rows[-1]["measured ns"] = f"{known[key] / measure**2 * 1e9:.1f}"
                rows[-1]["why direct"] = plan.why_direct[i]
        return rows

    def _measured(self, conv: IntegerConv2d, bits: int, side: int) -> float:
        threads, conv.threads = conv.threads, 1
        try:
            return conv_seconds(conv, bits, side)
        finally:
            conv.threads = threads

    # ---- bits

    def image_offsets(self, x: torch.Tensor, *, learn: bool = False) -> torch.Tensor:
        """Bits that each image gets more or less, int32 [N] of -1..1. learn: running thresholds follow, as in a forward pass.

        Raises as `forward`.
        """
        self._check(x, None)
        return self._offsets(x, learn)

    def _offsets(self, x: torch.Tensor, learn: bool) -> torch.Tensor:
        if self.thresholds is None or self._bits != "auto":
            return torch.zeros(x.shape[0], dtype=torch.int32, device=x.device)
        measures = ops.image_measure(x, backend=self.choice.backend)
        if self._running.momentum > 0:
            return self._running.offsets(measures, learn)
        return image_offsets(measures, self.measure_lower, self.measure_upper)

    def _rules(self) -> torch.Tensor:
        """int32 [L, 2] of measure.bits_by_rule for the layers in the order they run."""
        fixed = self._bits if self._bits != "auto" else None
        rules = [
            (fixed, 0) if fixed is not None and conv.name in self._counted else conv.bit_rule for conv in self._adaptive.values()
        ]
        return torch.tensor(rules, dtype=torch.int32, device="cpu")

    def _bit_table(self, x: torch.Tensor | None, learn: bool, offset: torch.Tensor | None = None) -> torch.Tensor:
        """Bits of the input codes of every integer convolution, int32 [L, N]: device data that nothing on the host waits for.

        offset: of the images, where it is known, on any device.
        """
        if offset is not None:
            return bits_by_rule(self.bit_rules, offset.to(self.bit_rules.device))
        if self.thresholds is not None and self._bits == "auto" and self._running.momentum == 0:
            return ops.layer_bits(x, self.measure_lower, self.measure_upper, self.bit_rules, backend=self.choice.backend)
        return bits_by_rule(self.bit_rules, self._offsets(x, learn))

    def _by_name(self, table: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip((conv.name for conv in self._adaptive.values()), table.unbind(), strict=True))

    def layer_bits(self, x: torch.Tensor | None, *, offset: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Bits of the input codes of every integer convolution, by name in the order they run: int32 [N] each.

        offset: int32 [N], what `image_offsets` gives for x, where that is known; x is then not looked at. Raises as `forward`.
        """
        self._check(x if offset is None else None, offset)
        return self._by_name(self._bit_table(x, learn=False, offset=offset))

    def mean_bits(self, x: torch.Tensor | None, *, offset: torch.Tensor | None = None) -> torch.Tensor:
        """Mean activation bits over the convolutions of the body, float32 [N] (first, last and upsampler are not counted).

        offset: see `layer_bits`.
        """
        counted = [bits for name, bits in self.layer_bits(x, offset=offset).items() if name in self._counted]
        return torch.stack(counted).sum(0).to(torch.float32) / len(counted)

    # ---- forward

    def forward(self, x: torch.Tensor, offset: torch.Tensor | None = None, origin: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """Raises ValueError unless x is float32 [N, 3, H, W] with at least one image and pixel, and offset int32 [N].

        Integers have no gradient: what asks for one through this call raises RuntimeError (backward, torch.func, forward mode).
        Autocast, inference_mode and train() change nothing.
        offset: bits that each image gets more or less, -1..1; decided by the images themselves where it is left out.
        origin: where x is cut from a larger picture, the place of its first pixel in that picture's grid of tiles, rows and columns
        in 0..tile - 1: tiles are then those of the picture.
        """
        return self._run(x, offset, as_pixels=False, origin=origin)

    def pixels(self, x: torch.Tensor, offset: torch.Tensor | None = None, *, origin: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """The forward pass as pixels of 8 bits, uint8 [N, 3, scale*H, scale*W]: clamped to 0..255, rounded half to even.

        The same on every backend, and equal to `quantize.to_pixels` of what the forward pass gives. Where the last convolution is
        one on integers, the CPU and the CUDA kernels write the pixels themselves: a fourth of the bytes, and a pass over them less.
        Raises as `forward`.
        """
        return self._run(x, offset, as_pixels=True, origin=origin)

    def forward_many(self, images: Iterable[torch.Tensor], in_flight: int = 2, *, pixels: bool = False) -> Iterator[torch.Tensor]:
        """The forward pass of each of `images`, float32 [N, 3, H, W] of any shapes, in their order; with `pixels` that of `pixels`.

        in_flight: how many are under way at once on a CUDA device, at least 1, each on a stream with buffers of its own and, unless
        graph=False was asked for (`set_graph`), recorded graphs of its own, for shapes that come three times in it: memory of that
        many forward passes, for images too small to fill the card. On other devices one runs after the other. Nothing waits on the
        host, but for the device when a shape is recorded: results are ordered on the stream of the caller, as those of `forward`
        are. Running thresholds follow the images in their order.
        Raises ValueError unless in_flight is an integer of at least 1, and as `forward` does when an image's turn comes.
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
        return contexts.run(self._compute, x, offset, as_pixels, origin)

    def _compute(self, x: torch.Tensor, offset: torch.Tensor | None, as_pixels: bool, origin: tuple[int, int]) -> torch.Tensor:
        if not torch.compiler.is_compiling() and (self._graph or self._records_by_default(x)):
            return self._replay(x, offset, as_pixels, origin)
        return self._finished(x, self._bit_table(x, learn=True, offset=offset), as_pixels, origin)

    def _records_by_default(self, x: torch.Tensor) -> bool:
        """Whether a pass is recorded though nobody asked: not inside a recording of the caller's, which it would be part of.

        One that another thread has under way on another stream is not seen, and may break (docs/gpu_tuning.md).
        """
        wanted = self._graph is None and records_by_default() and x.device.type == "cuda"
        return wanted and self.choice.backend in GPU_BACKENDS and not torch.cuda.is_current_stream_capturing()

    def _check(self, x: torch.Tensor | None, offset: torch.Tensor | None, origin: tuple[int, int] = (0, 0)) -> None:
        """x may be None where an offset is given."""
        name = type(self).__name__
        contexts.refuse_recorders(name, x)
        tile = 1 if self.exit is None else self.exit.tile
        pair = isinstance(origin, tuple) and len(origin) == 2
        if origin != (0, 0) and not (pair and all(type(at) is int and 0 <= at < tile for at in origin)):
            raise ValueError(f"{name}: origin must be two whole numbers in 0..{tile - 1}, less than a tile, got {origin!r}")
        if x is not None or offset is None:
            images = isinstance(x, torch.Tensor) and x.dtype == torch.float32 and x.dim() == 4 and x.layout == torch.strided
            images = images and not x.is_nested
            if not images or x.shape[1] != 3 or x.numel() == 0:
                raise ValueError(f"{name}: x must be float32 [N, 3, H, W] and not empty, got {_seen(x)}")
        if offset is not None:
            bits = isinstance(offset, torch.Tensor) and offset.dtype == torch.int32 and offset.dim() == 1
            if not bits or (x is not None and len(offset) != len(x)):
                raise ValueError(f"{name}: offset must be int32 [{'N' if x is None else len(x)}], got {_seen(offset)}")

    def _finished(self, x: torch.Tensor, table: torch.Tensor, as_pixels: bool, origin: tuple[int, int]) -> torch.Tensor:
        y = self._forward(x, self._by_name(table), as_pixels, origin)
        return to_pixels(y) if as_pixels and y.dtype != torch.uint8 else y

    def bytes_per_pixel(self) -> int:
        """About what a forward pass holds for each low-resolution pixel of its input."""
        return bytes_per_pixel(self)

    @contextmanager
    def lending_output(self) -> Iterator[None]:
        """In the block, what a forward pass of the calling thread returns may be overwritten by its next one in such a block: fresh
        memory for large outputs costs about a twentieth of the pass."""
        before, self._workspace.holds_output = self._workspace.holds_output, True
        try:
            yield
        finally:
            self._workspace.holds_output = before

    def _replay(self, x: torch.Tensor, offset: torch.Tensor | None, as_pixels: bool, origin: tuple[int, int]) -> torch.Tensor:
        if self._graph and x.device.type != "cuda":
            raise RuntimeError(f"{type(self).__name__}: graph=True needs images on a CUDA device, x is on {x.device}")
        # Bits that are given come from outside; so do those of thresholds that learn: they are state, and a recorded pass must find
        # nothing changed.
        outside = offset is not None or (self.thresholds is not None and self._running.momentum > 0)
        given = (x, self._bit_table(x, learn=True, offset=offset)) if outside else (x,)

        def forward(x: torch.Tensor, table: torch.Tensor | None = None) -> torch.Tensor:
            # Only run to be recorded: the graph has memory of its own, and what launched passes of the thread left would be held
            # beside it. Work that has yet to use that is on the stream that it was made on, whose allocator gives it out in order.
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

    def _codes(self, name: str, like: torch.Tensor, channels: int, factor: int = 1) -> torch.Tensor:
        """A code buffer for `channels` on the pixels of the codes `like`, `factor` times as many a side."""
        n, h, w, _ = like.shape
        shape = (n, h * factor, w * factor, padded_channels(channels))
        return self._buffer(name, shape, torch.uint8, like.device)

    def _floats(self, name: str, like: torch.Tensor, channels: int) -> torch.Tensor:
        """A float buffer for `channels` features on the pixels of the codes (or features) `like`."""
        return self._buffer(name, (*like.shape[:3], channels), torch.float32, like.device)

    def _features(self, name: str, like: torch.Tensor, channels: int) -> torch.Tensor:
        """A buffer as `_floats` gives, of what the features that pass the blocks by are held in: float32, or int16."""
        dtype = torch.float32 if self.fraction is None else torch.int16
        return self._buffer(name, (*like.shape[:3], channels), dtype, like.device)

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if torch.compiler.is_compiling():  # the compiler plans memory itself
            return torch.empty(shape, dtype=dtype, device=device)
        return self._workspace.get(name, shape, dtype, device)

    def _quantize(self, x: torch.Tensor, grid: torch.Tensor, bits: torch.Tensor, **settings: Any) -> torch.Tensor:
        """Codes [N, H, W, C4] of floats [N, C, H, W] of any strides."""
        return ops.quantize(x, grid, bits, **self._running_on(), **settings)

    def _quantize_into(
        self,
        x: torch.Tensor,
        grid: torch.Tensor,
        bits: torch.Tensor,
        y_q: torch.Tensor,
        start: int = 0,
        end: int | None = None,
        **place: Any,
    ) -> None:
        """Codes of features [N, H, W, C], which may be a slice of wider ones, into channels start..end of a code buffer.

        place: depth and region, where not everywhere."""
        target = {"y_q": y_q, "start": start} if self.packed_codes else {"y_q": y_q[..., start:end]}
        ops.quantize_out(x.permute(0, 3, 1, 2), grid, bits, **target, **place, **self._running_on())

    def _running_on(self) -> dict[str, Any]:
        return {"packed_codes": self.packed_codes, "backend": self.choice.backend, "threads": self._threads}

    def _plain(self, key: str) -> torch.Tensor | None:
        """What is left in float, by its AdaBM key; None where the network has no such thing."""
        return getattr(self, key.replace(".", "_"), None)

    def _float_conv(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight = self._plain(f"{name}.weight")
        return F.conv2d(x, weight, self._plain(f"{name}.bias"), padding=weight.shape[2] // 2)

    def float_model(self) -> nn.Module:
        """The float network this one was made from. Raises ValueError when its weights were not kept."""
        if self.float_state is None:
            raise ValueError("float_model: this model carries no float weights (save with include_float=True)")
        model = float_network(self.spec)
        model.load_state_dict(self.float_state)
        return model


class ConvertedResidualNetwork(ConvertedNetwork):
    """A network whose body is residual blocks `body.N` of two convolutions `conv1` and `conv2` (EDSR, SRResNet)."""

    def _blocks(self) -> list[tuple[AdaptiveConv2d, AdaptiveConv2d]]:
        convs = self._adaptive._modules  # at every forward pass: `conv` costs four times as much
        return [(convs[f"body_{i}_conv1"], convs[f"body_{i}_conv2"]) for i in range(self.spec.blocks)]

    def set_backend(self, backend: str = "auto", *, graph: bool | None = None) -> Choice:
        choice = super().set_backend(backend, graph=graph)
        reasons = (conv1.why_not_with(conv2) for conv1, conv2 in self._blocks())
        self.why_not_fused = next((reason for reason in reasons if reason), "")  # why blocks are not computed in one piece
        return choice

    set_backend.__doc__ = ConvertedNetwork.set_backend.__doc__

    def _run_blocks(self, skip, codes, blocks, bits, last_grid, last_bits, places=EVERYWHERE):
        """The residual blocks, from the features `skip` and their codes: returns the features (a buffer) and, if `last_grid`
        is given, their codes on it. places: where they compute."""
        channels = self.spec.channels
        feature = self._features("feature", codes, channels)
        ends, between = places.block(end=True), places.block(end=False)
        inner = after = None
        if self.why_not_fused:
            inner, inside = self._codes("inner", codes, channels), places.inside()
            after = self._codes("codes", codes, channels)
        for i, (conv1, conv2) in enumerate(blocks):
            bits1, bits2 = bits[conv1.name], bits[conv2.name]
            if i + 1 < len(blocks):
                following = blocks[i + 1][0]
                grid, next_bits = following.grid, bits[following.name]
            else:
                grid, next_bits = last_grid, last_bits
            outputs = {"y": feature, "out_grid": grid, "out_bits": next_bits, "fraction": self.fraction}
            outputs |= {"residual": skip} if i == 0 else {"accumulate": True}
            outputs |= ends if i in (0, len(blocks) - 1) else between
            if self.why_not_fused:
                conv1.into(codes, bits1, y_q=inner, out_grid=conv2.grid, out_bits=bits2, **inside)
                codes = None if grid is None else after
                conv2.into(inner, bits2, y_q=codes, **outputs)
            else:
                # Codes go from buffer to buffer: tiles read what their neighbours would overwrite.
                given, codes = codes, None if grid is None else self._codes(("fused", "codes")[i % 2], codes, channels)
                conv1.into_with(conv2, given, bits1, bits2, y_q=codes, **outputs)
        return feature, codes

    def _forward(
        self, x: torch.Tensor, bits: Mapping[str, torch.Tensor], as_pixels: bool = False, origin: tuple[int, int] = (0, 0)
    ) -> torch.Tensor:
        if not self.full:
            return self._forward_body(x, self._blocks(), bits)
        return self._forward_full(x, self._blocks(), bits, as_pixels, origin)

    def _linear_exit(self, parameters: ExitParameters) -> LinearExit:
        if not self.full or self.config.chosen("input_range") != "pixels":
            raise ValueError(f"{type(self).__name__}: exit must be None unless pixels are codes of 8 bits")
        if parameters.scale != self.scale:
            raise ValueError(f"{type(self).__name__}: exit must be of scale {self.scale}, got one of scale {parameters.scale}")
        return LinearExit(parameters)

    @abstractmethod
    def _forward_full(self, x, blocks, bits, as_pixels, origin) -> torch.Tensor: ...

    @abstractmethod
    def _forward_body(self, x, blocks, bits) -> torch.Tensor: ...


def _seen(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return reprlib.repr(value)
    if value.is_nested:
        return f"a nested tensor of {value.dtype}"
    layout = "" if value.layout == torch.strided else f" of layout {value.layout}"
    return f"{value.dtype} {tuple(value.shape)}{layout}"


def format_plan(rows: list[dict[str, str]]) -> str:
    """The rows of a plan as a table: a heading first, cells padded to the width of their columns."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
