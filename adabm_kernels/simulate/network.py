"""A network as AdaBM simulates it: its graph, computed with quantised convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..config import ConvertConfig
from ..exits import ExitParameters, exit_output, tile_depths
from ..graph.module import GraphModule, Step, layer_of, steps
from ..graph.nodes import Activation, Affine, BatchNorm, ColourShift, Conv, Graph, Node, Pad, PixelUnshuffle
from ..graph.properties import convs, keeps_size, linear_upsampler, needed, readers, residual_blocks, stream, upsampler_input
from ..graph.trunk import stopped, trunk
from ..image_bits import image_measure, image_offsets, soft_image_offsets
from ..networks.collapse import collapse
from ..networks.detect import Detected, detect, to_float_state, to_simulated_state
from ..networks.spec import RESIDUAL_FRACTION, NetworkSpec
from ..quantize import MOST_FIXED, check_fraction, round_ste
from ..regions import MAX_DEPTH, Depths, Region
from .conv import SimulatedConv2d, moved


class SimulatedNetwork(GraphModule):
    """A simulation of a network of few bits. From images [N, 3, H, W] in 0..255 it makes [N, 3, scale*H, scale*W], not clamped.

    Each image of a batch decides about its own bits. The network works in float32 and, after `.double()`, in float64. Parameters
    are named as in the authors' implementation. A weight is quantised before the BatchNorm that follows it, which computes in
    float. float_weights: the weights of the float network that it was made from, under the names that the float module loads
    strictly. report: the report of `calibrate`. fraction: the fraction of the features that pass the blocks by, where these have 16
    bits (`held`). exit: the filter that makes the output of easy tiles, where no block is computed (exits.py); None where there are
    no such tiles.
    """

    def __init__(self, spec: NetworkSpec, config: ConvertConfig, weight_grid: str = "odd"):
        quantized = spec.quantized(config.quantize)

        def layer(node: Node) -> nn.Module | None:
            conv = quantized.get(node.name)
            return layer_of(node) if conv is None else SimulatedConv2d(conv, config, weight_grid)

        super().__init__(spec.graph(), spec.simulated_name, layer, spec.dtypes)
        self.spec, self.config, self.weight_grid = spec, config, weight_grid
        self.float_weights: dict[str, torch.Tensor] = {}
        self.report: dict[str, Any] = {}
        self._exit: ExitParameters | None = None
        self._full_depth = self._float_residual = False
        self._watch: Callable[[torch.Tensor], None] | None = None
        self.register_buffer(RESIDUAL_FRACTION, None)
        self._collapsed: torch.Tensor | None = None
        self._quantized = quantized
        if config.adaptive:
            self.measure_l, self.measure_u = (nn.Parameter(torch.full((1,), float("nan"))) for _ in range(2))
        self._structure = self._structured()
        self.train(False)

    def train(self, mode: bool = True) -> SimulatedNetwork:
        """Keeps the BatchNorms in evaluation mode: fine-tuning, too, uses their trained statistics."""
        return super().train(False)

    def _structured(self) -> Structure:
        return _structure_of(self.graph)

    @classmethod
    def from_state(
        cls, state_dict: Mapping[str, Any], config: ConvertConfig, res_scale: float = 1.0, found: Detected | None = None
    ) -> SimulatedNetwork:
        """A calibrated network from its state dict, as the authors' implementation or `state_dict()` gives it.

        A state dict does not reveal its bit-widths: `config` must be the one it was calibrated with, except that `adaptive=False`
        may be asked of adaptive weights. Features are of 16 bits where the state dict says so, unless `config.residual` is
        "float32". found: what the state dict has been recognised as, where that is known. Raises ValueError when the state dict is
        not calibrated, when it disagrees with `config`, or when a range is empty.
        """
        found = detect(state_dict, res_scale) if found is None else found
        if not found.calibrated:
            raise ValueError("from_state: the state dict holds float weights without ranges: calibrate it first")
        if found.quantize != config.quantize:
            raise ValueError(
                f"from_state: config.quantize must be {found.quantize!r} as in the state dict, got {config.quantize!r}"
            )
        if config.adaptive and not found.adaptive:
            raise ValueError("from_state: config.adaptive must be False: the state dict has no thresholds and offsets")
        state = to_simulated_state(state_dict, found)
        if not config.adaptive:
            state = {key: value for key, value in state.items() if "measure_" not in key}
        fraction = state.pop(RESIDUAL_FRACTION, None)
        if config.residual == "int16" and fraction is None:
            raise ValueError(
                "from_state: config.residual must be 'auto' or 'float32': the state dict has no 'residual_fraction', which "
                "calibration chooses"
            )
        signed = any(key.endswith(".scale_w") for key in state)
        model = cls(found.spec, config, "signed" if signed else "odd")
        for conv in model.quantized_convs():
            _check_ranges(state, conv)
            shape = torch.empty_like(state[f"{conv.name}.{conv.range_name}"], dtype=torch.float32)
            conv.register_parameter(conv.range_name, nn.Parameter(shape))
            if f"{conv.name}.shift_a" in state:
                conv.shift_a = torch.empty_like(state[f"{conv.name}.shift_a"])
            if f"{conv.name}.digits_a" in state:
                conv.digits_a = torch.empty_like(state[f"{conv.name}.digits_a"])
        model.load_state_dict(state)
        model.float_weights = to_float_state(state_dict, found)
        if fraction is not None and config.residual != "float32":
            model.fraction = fraction.item()
        return model.eval()

    @classmethod
    def from_float(
        cls, state_dict: Mapping[str, Any], config: ConvertConfig, res_scale: float = 1.0, found: Detected | None = None
    ) -> SimulatedNetwork:
        """The network with float weights in place and every range still NaN, for `calibrate` to fill.

        found: what the state dict has been recognised as, where that is known.
        """
        found = detect(state_dict, res_scale) if found is None else found
        model = cls(found.spec, config, config.chosen("weight_grid"))
        model._take_float(to_simulated_state(state_dict, found), to_float_state(state_dict, found))
        if model.config.exact_pixels and model.reads_pixels:
            model.quantized_convs()[0].shift_a = model.pixel_shift()
        if config.quantize == "full" and config.digits == 2:
            model.upsampler_convs()[0].digits_a = torch.full((1,), 2.0)
        return model.eval()

    @property
    def reads_pixels(self) -> bool:
        """Whether the pixels can be the codes of the first convolution. They can where its input is pixels of the picture, moved to
        whatever places, or pixels in another unit and on another zero, which the convolution's own codes make up for."""
        before = self._structure.before
        scaled = [isinstance(node, Affine) and node.shift is None for node in before]
        moved = all(one or isinstance(node, (Pad, PixelUnshuffle)) for node, one in zip(before, scaled, strict=True))
        return moved or len(before) == 1 and isinstance(before[0], (Affine, ColourShift))

    def _take_float(self, state: Mapping[str, torch.Tensor], float_weights: dict[str, torch.Tensor]) -> None:
        """Takes values under the names of this module, and those of the float network."""
        self.load_state_dict({**self.state_dict(), **state})
        self.float_weights = float_weights
        for conv in self.quantized_convs():
            bias = None if conv.bias is None else conv.bias.detach().clone()
            conv.float_weights = (conv.weight.detach().clone(), bias)

    def pixel_shift(self) -> torch.Tensor | None:
        """The value that the network adds to each colour before the first convolution, float32 [3]; None where it adds nothing."""
        before = self._structure.before
        shifts = [self.layer_named(node.name).bias for node in before if isinstance(node, ColourShift)]
        shifts += [torch.tensor(node.shift) for node in before if isinstance(node, Affine) and node.shift is not None]
        return sum(shifts[1:], shifts[0].clone()) if shifts else None

    def pixel_unit(self) -> float:
        """The value, before the first convolution, of one step of a pixel."""
        units = [(node.gain or (1.0,))[0] / (node.divisor or 1) for node in self._structure.before if isinstance(node, Affine)]
        return math.prod(units)

    @property
    def fraction(self) -> int | None:
        """The fraction of the features that pass the blocks by, which are held as int16 in units of 2^-fraction
        (quantize.to_fixed); None where they are floats."""
        buffer = getattr(self, RESIDUAL_FRACTION)
        return None if buffer is None else int(buffer)

    @fraction.setter
    def fraction(self, fraction: float | None) -> None:
        """Raises ValueError for a number that is no valid fraction, and for a network whose features cannot be held like this."""
        if fraction is None:
            setattr(self, RESIDUAL_FRACTION, None)
            return
        self.spec.check_int16_residual(self.config.quantize)
        check_fraction(fraction)
        setattr(self, RESIDUAL_FRACTION, torch.full((1,), float(fraction), device=next(self.parameters()).device))

    def held(self, x: torch.Tensor) -> torch.Tensor:
        """Features x as the network holds them between its layers, in the shape and dtype of x. `trunk` calls it for all of them.

        It is differentiable (rounding is a straight-through estimate).
        """
        if self._watch is not None:
            self._watch(x)
        fraction = None if self._float_residual else self.fraction
        if fraction is None:
            return x
        return torch.clamp(round_ste(x * 2.0**fraction), -MOST_FIXED, MOST_FIXED) * 2.0**-fraction

    @contextmanager
    def watching(self, act: Callable[[torch.Tensor], None]) -> Iterator[SimulatedNetwork]:
        """Inside this context `act` is called with features before they are held (`held`)."""
        before, self._watch = self._watch, act
        try:
            yield self
        finally:
            self._watch = before

    @property
    def equalized(self) -> bool:
        """Whether calibration multiplies channels by factors (`ConvertConfig.equalize`). All weights, those of the teacher too, are
        then weights of another network that computes the same."""
        config = self.config
        return config.equalize == "on" or (config.equalize == "auto" and config.recipe == "best" and self.spec.sharpens)

    @property
    def exit(self) -> ExitParameters | None:
        return self._exit

    @exit.setter
    def exit(self, parameters: ExitParameters | None) -> None:
        """Raises ValueError for an exit of another network."""
        if parameters is not None:
            parameters.check_for(self.spec, self.config)
        self._exit = parameters

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Moves `float_weights` to other devices too, in its own dtype."""
        self.float_weights = {name: moved(fn, value) for name, value in self.float_weights.items()}
        self._collapsed = None
        return super()._apply(fn, recurse)

    def float_state(self) -> dict[str, torch.Tensor]:
        """The float32 weights it was made from, under the names that the float network of its `spec` loads strictly."""
        return dict(self.float_weights)

    def quantized_convs(self) -> list[SimulatedConv2d]:
        """The quantised convolutions in the order they run."""
        return [self.layer_named(name) for name in self._quantized]

    def upsampler_convs(self) -> list[SimulatedConv2d]:
        """The quantised convolutions of the upsampler."""
        convs = self.quantized_convs()
        return convs[max(i for i, conv in enumerate(convs) if not conv.end) + 1 :]

    @property
    def after_trunk(self) -> SimulatedConv2d | None:
        """The quantised convolution that reads the result of `trunk`; None where that convolution is not quantised."""
        tail = [conv for conv in self.quantized_convs() if conv.name in self.spec.tail_names]
        return tail[0] if tail else None

    def body_biases(self) -> list[torch.Tensor]:
        """The biases that follow the convolutions of the body, which fine-tuning may shift. They are those of a BatchNorm after the
        convolution where there is one, else those of the quantised convolutions themselves."""
        found = []
        for conv, norm in self._structure.body:
            if norm or conv in self._quantized:
                found.append(self.layer_named(norm or conv).bias)
        return [bias for bias in found if bias is not None]

    def set_compute_dtype(self, dtype: torch.dtype | None) -> None:
        """Makes the quantised convolutions multiply in this dtype; None stands for that of their input."""
        for conv in self.quantized_convs():
            conv.compute_dtype = dtype

    @contextmanager
    def full_depth(self) -> Iterator[SimulatedNetwork]:
        """Inside this context every block is computed everywhere."""
        before, self._full_depth = self._full_depth, True
        try:
            yield self
        finally:
            self._full_depth = before

    @contextmanager
    def float_mode(self) -> Iterator[SimulatedNetwork]:
        """Inside this context the network computes in float, at full depth, as the teacher of its own calibration.

        The BatchNorms, too, have the biases of the float network then: fine-tuning moves them, and the teacher must stay where it
        is.
        """
        convs = self.quantized_convs()
        before = [conv.quantized for conv in convs]
        in_float, self._float_residual = self._float_residual, True
        norms = {norm: self.layer_named(norm).bias for _, norm in self._structure.body if norm}
        keys = {node.name: node.key for node in self.graph.nodes if isinstance(node, BatchNorm)}
        learned = {norm: bias.detach().clone() for norm, bias in norms.items()}
        try:
            with torch.no_grad():
                for norm, bias in norms.items():
                    bias.copy_(self.float_weights.get(f"{self.spec.published(keys[norm])}.bias", bias))
            for conv in convs:
                conv.quantized = False
            with self.full_depth():
                yield self
        finally:
            self._float_residual = in_float
            for conv, quantized in zip(convs, before, strict=True):
                conv.quantized = quantized
            with torch.no_grad():
                for norm, bias in norms.items():
                    bias.copy_(learned[norm])

    def image_offsets(self, x: torch.Tensor) -> torch.Tensor:
        """The bits that each image gets more or less: int32 [N], zeros when the network is not adaptive. While the thresholds are
        being learned they are floats with a gradient."""
        if not self.config.adaptive:
            return torch.zeros(x.shape[0], dtype=torch.int32, device=x.device)
        learned = self.measure_l.requires_grad and torch.is_grad_enabled()
        return (soft_image_offsets if learned else image_offsets)(image_measure(x), self.measure_l, self.measure_u)

    def layer_bits(self, image_offset: torch.Tensor) -> dict[str, torch.Tensor]:
        """The bits of the input of every quantised convolution, by name in the order they run: int32 [N] each."""
        return {conv.name: conv.bits(image_offset) for conv in self.quantized_convs()}

    def mean_bits(self, x: torch.Tensor) -> torch.Tensor:
        """The mean bits of each image over the counted convolutions, float32 [N]. All but the ends are counted, or the ends where
        there are no others."""
        offsets = self.image_offsets(x)
        convs = self.quantized_convs()
        bits = [conv.bits(offsets) for conv in [conv for conv in convs if not conv.end] or convs]
        return torch.stack(bits).sum(0).to(torch.float32) / len(bits)

    def depths(self, x: torch.Tensor) -> Depths | None:
        """The depth of each tile of images [N, 3, H, W]. None where every block is computed everywhere, which is also so in images
        narrower than the exit's filter."""
        if self.exit is None or self._full_depth or min(x.shape[2:]) < self.exit.kernel:
            return None
        return tile_depths(x.detach(), self.exit, min(self.spec.block_count, MAX_DEPTH))

    def mean_depth(self, x: torch.Tensor) -> torch.Tensor:
        """The share of the blocks that are computed, averaged over the pixels of each image: float32 [N]."""
        depths = self.depths(x)
        if depths is None:
            return torch.ones(x.shape[0], device=x.device)
        return _computed(depths, x).to(torch.float32).mean((1, 2, 3))

    def trunk(
        self, x: torch.Tensor, image_offset: torch.Tensor, computed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Computes the part before the upsampler. Returns the upsampler's input [N, C, H, W] and the features after each block, as
        they are `held`.

        computed: [N, 1, H, W], 1 where blocks are computed and 0 where they add nothing; None for everywhere.
        """
        values = {self.graph.inputs[0]: x}
        self.run_steps(values, self._structure.trunk, self._few_bits(image_offset, computed))
        return values[self._structure.entry], [values[name] for name in self._structure.blocks]

    def upsample(self, feature: torch.Tensor, image_offset: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Computes the upsampler: [N, 3, scale*H, scale*W] from its input [N, C, H, W] and the picture x of that input."""
        values = {self._structure.entry: feature, self.graph.inputs[0]: x}
        self.run_steps(values, self._structure.upsampler, self._few_bits(image_offset))
        return values[self.graph.outputs[0]]

    def _few_bits(
        self, image_offset: torch.Tensor, computed: torch.Tensor | None = None
    ) -> Callable[[Node, list[torch.Tensor]], torch.Tensor]:
        """A function that computes a node from its inputs; see `trunk` for the arguments."""

        def compute(node: Node, inputs: list[torch.Tensor]) -> torch.Tensor:
            if node.name in self._quantized:
                value = self.layer_named(node.name)(inputs[0], image_offset)
            else:
                value = self.compute_node(node, inputs)
            if computed is not None and node.name in self._structure.masked:
                value = value * computed
            return self.held(value) if node.name in self._structure.stream else value

        return compute

    def preview(self, x: torch.Tensor) -> torch.Tensor:
        """The output, in some order of its values and up to a constant, computed as cheaply as its differences can be. Fine-tuning
        compares it. The upsampler computes in float here: its 8 bits lose next to nothing, but are simulated for many times the
        pixels.

        Without activations the upsampler is one convolution, which takes a tenth of the work and is right except for the outer two
        pixels. With activations its first convolution is enough: it shows those directions of the features that the rest can see,
        for a seventh of the work. Networks whose channels have factors (`equalized`) are computed whole, because the published
        weights do not fit those features.
        """
        offset = self.image_offsets(x)
        feature = self.trunk(x.contiguous(memory_format=torch.channels_last), offset)[0]
        weight = self._preview_weight(x.device)
        if weight is not None:
            dtype = self.quantized_convs()[0].compute_dtype or feature.dtype
            return F.conv2d(feature.to(dtype), weight.to(dtype), padding=weight.shape[-1] // 2).to(feature.dtype)
        ends = [conv for conv in self.quantized_convs() if conv.end and conv.quantized]
        try:
            for conv in ends:
                conv.quantized = False
            return self.upsample(feature, offset, x)
        finally:
            for conv in ends:
                conv.quantized = True

    def _preview_weight(self, device: torch.device) -> torch.Tensor | None:
        """The weight of the one convolution by which the upsampler is previewed; None where the upsampler itself is used."""
        if self.equalized:
            return None
        if self._structure.linear is None:
            curved = any(isinstance(node, Activation) for node, _ in self._structure.upsampler)
            name = self.spec.tail_names[0]
            plain = all(keeps_size(node) for node in self.graph.nodes if isinstance(node, Conv) and node.key == name)
            return self.float_weights[f"{self.spec.published(name)}.weight"] if curved and plain else None
        if self._collapsed is None:
            names, shuffles = self._structure.linear
            names = tuple(map(self.spec.published, names))
            stages = [(self.float_weights[f"{name}.weight"].cpu(), self.float_weights[f"{name}.bias"].cpu()) for name in names]
            inner = collapse(stages, shuffles).weight[2, 2]
            self._collapsed = inner.float().contiguous(memory_format=torch.channels_last).to(device)
        return self._collapsed

    def features(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The output and the features after each block, or before the upsampler where there is no block.

        Raises ValueError unless x is floating point [N, 3, H, W].
        """
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise ValueError(f"Simulated{self.spec.title}: x must be floating point [N, 3, H, W], got {x.dtype} {tuple(x.shape)}")
        offset, depths = self.image_offsets(x), self.depths(x)
        if depths is None or self.exit is None:
            feature, blocks = self.trunk(x, offset)
            return self.upsample(feature, offset, x), blocks
        # The exit makes its own pixels. The part of the network that computes beside them reads the features there as they are.
        computed = _computed(depths, x)
        feature, blocks = self.trunk(x, offset, computed.to(x.dtype))
        whole = computed.repeat_interleave(self.spec.scale, 2).repeat_interleave(self.spec.scale, 3)
        return torch.where(whole, self.upsample(feature, offset, x), exit_output(self.exit, x)), blocks

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # one picture
        """The output [N, 3, scale*H, scale*W] for x, [N, 3, H, W] in 0..255. Raises ValueError unless x is floating point of this
        shape."""
        return self.features(x)[0]


@dataclass(frozen=True)
class Structure:
    """The structure of the graph of a network.

    before: the nodes between its input and its first convolution. body: the names of each convolution that is no end, and of the
    BatchNorm that alone reads it, or "". trunk, upsampler: plans up to `entry`, with which the upsampler begins, and from there on.
    linear: see `linear_upsampler`. blocks: the features after each residual block, or `entry` where there is none. stream: the
    features that are held. masked: the features that are zero where blocks are not computed (graph/trunk.py).
    """

    before: tuple[Node, ...]
    body: tuple[tuple[str, str], ...]
    entry: str
    trunk: list[Step]
    upsampler: list[Step]
    linear: tuple[tuple[str, ...], tuple[int, ...]] | None
    blocks: tuple[str, ...]
    stream: frozenset[str]
    masked: frozenset[str]


def body_of(graph: Graph) -> tuple[tuple[str, str], ...]:
    """The convolutions and BatchNorms of a graph's body (`Structure.body`)."""
    reading, body = readers(graph), []
    for conv in graph.nodes:
        if isinstance(conv, Conv) and conv.role != "end":
            after = reading[conv.name]
            body.append((conv.name, after[0] if len(after) == 1 and isinstance(graph[after[0]], BatchNorm) else ""))
    return tuple(body)


def _structure_of(graph: Graph) -> Structure:
    entry, found = upsampler_input(graph), residual_blocks(graph)
    blocks = tuple(block.output for block in found) or (entry,)
    first = next(node for node in graph.nodes if isinstance(node, Conv))
    skipped, _ = trunk(graph)
    return Structure(
        before=needed(graph, first.inputs),
        body=body_of(graph),
        entry=entry,
        trunk=steps(needed(graph, (entry, *blocks)), (entry, *blocks)),
        upsampler=steps(needed(graph, graph.outputs, (entry,)), graph.outputs),
        linear=linear_upsampler(graph),
        blocks=blocks,
        stream=stream(graph),
        masked=frozenset() if skipped is None else stopped(graph, skipped, [conv.name for conv in convs(graph)]),
    )


def _computed(depths: Depths, x: torch.Tensor) -> torch.Tensor:
    """For which pixels of images [N, 3, H, W] blocks are computed: bool [N, 1, H, W]."""
    return Region(own=(1, MAX_DEPTH)).masks(depths, *x.shape[2:])[0][:, None]


def _check_ranges(state: Mapping[str, torch.Tensor], conv: SimulatedConv2d) -> None:
    lower, upper, weight = (state[f"{conv.name}.{key}"] for key in ("lower_a", "upper_a", conv.range_name))
    if not lower < upper:
        values = f"{lower.item():g} and {upper.item():g}"
        raise ValueError(f"from_state: '{conv.name}.lower_a' must be below '{conv.name}.upper_a', got {values}")
    digits = state.get(f"{conv.name}.digits_a", torch.ones(1)).item()
    if digits not in (1, 2):
        raise ValueError(f"from_state: '{conv.name}.digits_a' must be 1 or 2, got {digits:g}")
    if not (weight > 0).all():
        raise ValueError(f"from_state: '{conv.name}.{conv.range_name}' must be positive, got {weight.min().item():g}")
