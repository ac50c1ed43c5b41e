"""EDSR on integer convolutions: between two convolutions only codes travel, the residual stays in float."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .. import native, ops
from ..config import ConvertConfig
from ..networks.edsr import EDSR, EDSRSpec, MeanShift
from ..quantize import MAX_BITS, MIN_BITS, padded_channels
from ..registry import Choice, Problem, choose
from ..simulate import image_offsets
from ..tiles import TILES
from .bits import measure_images
from .conv import AdaptiveConv2d, ConvParameters, IntegerConv2d
from .tail import SMALLEST, CollapsedConv2d, collapse
from .workspace import Workspace


class ConvertedEDSR(nn.Module):
    """EDSR with integer convolutions: float32 [N, 3, H, W] in 0..255 -> float32 [N, 3, scale*H, scale*W], not clamped.

    parameters: the quantised convolutions by name ("head.0", "body.0.conv1", ...). floats: weight and bias of the others.
    thresholds: (lower, upper) of the image measure, None when the network is not adaptive. float_state: the float weights
    it was made from, for `float_model`, or None.
    """

    def __init__(
        self,
        spec: EDSRSpec,
        config: ConvertConfig,
        parameters: Mapping[str, ConvParameters],
        floats: Mapping[str, torch.Tensor],
        thresholds: tuple[float, float] | None,
        float_state: Mapping[str, torch.Tensor] | None = None,
    ):
        super().__init__()
        self.spec, self.config, self.scale = spec, config, spec.scale
        self.parameters_by_name, self.floats = dict(parameters), dict(floats)
        self.float_state = None if float_state is None else dict(float_state)
        self.thresholds = thresholds
        self.report: dict[str, Any] = {}
        if thresholds is not None:
            self.register_buffer("measure_lower", torch.tensor(thresholds[0]))
            self.register_buffer("measure_upper", torch.tensor(thresholds[1]))
        self.register_buffer("mean", MeanShift(1).bias if spec.mean_shift else torch.zeros(3))
        full, c = config.quantize == "full", spec.channels
        gain = torch.full((c,), spec.res_scale, dtype=torch.float64)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                (
                    AdaptiveConv2d(parameters[f"body.{i}.conv1"], activation="relu"),
                    AdaptiveConv2d(parameters[f"body.{i}.conv2"], gain=gain),
                )
            )
            for i in range(spec.blocks)
        )
        self.ends = nn.ModuleDict()
        self.tail_names = [f"tail.0.{2 * i}" for i in range(len(spec.shuffles))]
        if spec.tail == "staged":
            self.tail_names.append("tail.1")
        if full:
            body_last = f"body.{spec.blocks}"
            self._add_end("head.0", AdaptiveConv2d(parameters["head.0"]))
            self._add_end(body_last, AdaptiveConv2d(parameters[body_last]))
            for name, r in zip(self.tail_names, [*spec.shuffles, 1], strict=False):
                shift = self.mean.repeat_interleave(r * r) if name == self.tail_names[-1] else None
                self._add_end(name, AdaptiveConv2d(parameters[name], shuffle=r, shift=shift))
        else:
            for key, value in self.floats.items():
                self.register_buffer(key.replace(".", "_"), value)
        self.collapsed = self._collapsed_tail()
        self._workspace = Workspace()
        self._bits: str | int = "auto"
        self._threads = 0
        self._requested = "auto"
        self.set_backend("auto")

    def _add_end(self, name: str, conv: AdaptiveConv2d) -> None:
        self.ends[name.replace(".", "_")] = conv

    def _collapsed_tail(self) -> CollapsedConv2d | None:
        """The tail as one convolution, where the settings and the network allow it."""
        config, spec = self.config, self.spec
        possible = spec.tail == "staged" and config.quantize == "full" and self.float_state is not None
        if config.tail == "staged" or not possible:
            if config.tail == "collapsed":
                raise ValueError(
                    "ConvertedEDSR: tail='collapsed' needs a fully quantised network with a staged tail and its float weights"
                )
            return None
        convs = [(self.float_state[f"{name}.weight"], self.float_state[f"{name}.bias"]) for name in self.tail_names]
        range_ = self.parameters_by_name[self.tail_names[0]]
        return CollapsedConv2d(collapse(convs, spec.shuffles), range_.lower, range_.upper, self.mean)

    def _end(self, name: str) -> AdaptiveConv2d:
        return self.ends[name.replace(".", "_")]

    def convs(self) -> list[IntegerConv2d]:
        """The integer convolutions in the order they run."""
        body = [conv for block in self.blocks for conv in block]
        if not self.ends:
            return body
        ends = [self._end("head.0"), *body, self._end(f"body.{self.spec.blocks}"), *map(self._end, self.tail_names)]
        return ends if self.collapsed is None else [*ends, self.collapsed]

    # ---- settings

    def set_backend(self, backend: str = "auto") -> Choice:
        """Compute with a backend of registry.BACKENDS, or the fastest that can run. Returns the choice with its reasons.

        Raises ValueError for an unknown name, RuntimeError with the reason when an explicit one cannot run.
        """
        self._requested = backend
        self.choice = choose(Problem(self.mean.device.type), backend)
        for conv in self.convs():
            conv.set_backend(self.choice.backend, self._threads)
        return self.choice

    def set_threads(self, threads: int) -> None:
        """Threads of the CPU kernels: 1..256, or 0 for as many as torch uses. Raises ValueError otherwise."""
        if isinstance(threads, bool) or not isinstance(threads, int) or not 0 <= threads <= 256:
            raise ValueError(f"set_threads: threads must be 1..256, or 0 for as many as torch uses, got {threads!r}")
        self._threads = threads
        for conv in self.convs():
            conv.threads = threads

    def set_bits(self, bits: str | int = "auto") -> None:
        """ "auto": every image and layer decides; 2..8: that many in every adaptive layer. Raises ValueError otherwise."""
        if bits != "auto" and (isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS):
            raise ValueError(f"set_bits: bits must be 'auto' or {MIN_BITS}..{MAX_BITS}, got {bits!r}")
        self._bits = bits

    def backend_summary(self) -> str:
        """The backend in words: "cpu (avx512vnni, 2 threads)"."""
        if self.choice.backend != "cpu":
            return self.choice.backend
        threads = self._threads or torch.get_num_threads()
        return f"cpu ({native.isa_chosen()}, {threads} thread{'s' if threads > 1 else ''})"

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self.mean.dtype != torch.float32:
            raise TypeError(f"ConvertedEDSR computes in integers and float32: it cannot become {self.mean.dtype}")
        if self._requested in ("auto", "reference") or self.mean.device.type == "cpu":
            self.set_backend(self._requested)
        return self

    def plan(self) -> str:
        """The plan as a table: for every integer convolution the tile of each bit-width its codes can have, or why direct."""
        rows = []
        for conv in self.convs():
            least, most = conv.bit_range
            for bits in range(least, most + 1):
                why = conv.plan.why_direct[bits - MIN_BITS]
                products = next(tile.products for tile in TILES if tile.name == conv.plan.tile[bits - MIN_BITS])
                products *= conv.weight.shape[-3] * conv.weight.shape[-2] / 9
                rows.append((conv.name, f"{bits}", conv.plan.tile[bits - MIN_BITS], f"{products:g}", why))
        head = ("layer", "bits", "tile", "products an output", "why direct")
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(4)]
        return "\n".join(
            "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[4]]).rstrip() for row in (head, *rows)
        )

    # ---- bits

    def image_offsets(self, x: torch.Tensor) -> torch.Tensor:
        """Bits that each image gets more or less, int32 [N]."""
        if self.thresholds is None or self._bits != "auto":
            return torch.zeros(x.shape[0], dtype=torch.int32, device=x.device)
        return image_offsets(measure_images(x), self.measure_lower, self.measure_upper)

    def _layer_bits(self, conv: AdaptiveConv2d, offset: torch.Tensor) -> torch.Tensor:
        if self._bits != "auto" and conv.name.startswith("body."):
            return torch.full_like(offset, self._bits)
        return conv.bits(offset)

    def layer_bits(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Bits of the input codes of every integer convolution, by name in the order they run: int32 [N] each."""
        offset = self.image_offsets(x)
        convs = (conv for conv in self.convs() if isinstance(conv, AdaptiveConv2d))
        return {conv.name: self._layer_bits(conv, offset) for conv in convs}

    def mean_bits(self, x: torch.Tensor) -> torch.Tensor:
        """Mean activation bits over the convolutions of the body, float32 [N] (first, last and upsampler are not counted)."""
        counted = [bits for name, bits in self.layer_bits(x).items() if name.startswith("body.")]
        return torch.stack(counted).sum(0).to(torch.float32) / len(counted)

    # ---- forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Raises ValueError unless x is float32 [N, 3, H, W] with at least one image and pixel."""
        if x.dim() != 4 or x.shape[1] != 3 or x.dtype != torch.float32 or x.numel() == 0:
            raise ValueError(f"ConvertedEDSR: x must be float32 [N, 3, H, W] and not empty, got {x.dtype} {tuple(x.shape)}")
        with torch.no_grad():
            return self._forward_full(x) if self.ends else self._forward_body(x)

    def _codes(self, name: str, like: torch.Tensor, channels: int, factor: int = 1) -> torch.Tensor:
        """A code buffer for `channels` on the pixels of the codes `like`, `factor` times as many a side."""
        n, h, w, _ = like.shape
        shape = (n, h * factor, w * factor, padded_channels(channels))
        return self._workspace.get(name, shape, torch.uint8, like.device)

    def _floats(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A float buffer for the features on the pixels of the codes `like`."""
        return self._workspace.get(name, (*like.shape[:3], self.spec.channels), torch.float32, like.device)

    def _run_blocks(self, skip, codes, bits, last_grid, last_bits):
        """The residual blocks, from the features `skip` and their codes: returns the features (a buffer) and, if `last_grid`
        is given, their codes on it."""
        feature = self._floats("feature", codes)
        inner = self._codes("inner", codes, self.spec.channels)
        for i, (conv1, conv2) in enumerate(self.blocks):
            bits1, bits2 = bits[i]
            conv1.into(codes, bits1, y_q=inner, out_grid=conv2.grid, out_bits=bits2)
            if i + 1 < len(self.blocks):
                grid, next_bits = self.blocks[i + 1][0].grid, bits[i + 1][0]
            else:
                grid, next_bits = last_grid, last_bits
            codes = None if grid is None else self._codes("codes", inner, self.spec.channels)
            residual = {"residual": skip} if i == 0 else {"accumulate": True}
            conv2.into(inner, bits2, y=feature, y_q=codes, out_grid=grid, out_bits=next_bits, **residual)
        return feature, codes

    def _forward_full(self, x: torch.Tensor) -> torch.Tensor:
        offset = self.image_offsets(x)
        head, last = self._end("head.0"), self._end(f"body.{self.spec.blocks}")
        tail = [self._end(name) for name in self.tail_names]
        if self.collapsed is not None and min(x.shape[2:]) >= SMALLEST:
            tail = [self.collapsed]
        bits = [[self._layer_bits(conv, offset) for conv in block] for block in self.blocks]
        end_bits, last_bits = head.bits(offset), self._layer_bits(last, offset)
        shift = self.mean if self.spec.mean_shift else None
        pixels = ops.quantize(x, head.grid, end_bits, shift=shift, backend=self.choice.backend, threads=self._threads)
        skip = self._floats("skip", pixels)
        codes = self._codes("codes", pixels, self.spec.channels)
        head.into(pixels, end_bits, y=skip, y_q=codes, out_grid=self.blocks[0][0].grid, out_bits=bits[0][0])
        _, codes = self._run_blocks(skip, codes, bits, last.grid, last_bits)
        wide = self._codes("inner", codes, self.spec.channels)
        last.into(codes, last_bits, residual=skip, y_q=wide, out_grid=tail[0].grid, out_bits=end_bits)
        for i, (conv, following) in enumerate(zip(tail, tail[1:], strict=False)):
            narrow, wide = wide, self._codes(f"tail{i}", wide, conv.out_channels, conv.shuffle)
            conv.into(narrow, end_bits, y_q=wide, out_grid=following.grid, out_bits=end_bits)
        y, _ = tail[-1](wide, end_bits)
        return y.permute(0, 3, 1, 2)

    def _float_conv(self, name: str, x: torch.Tensor) -> torch.Tensor:
        key = name.replace(".", "_")
        weight, bias = getattr(self, f"{key}_weight"), getattr(self, f"{key}_bias")
        return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)

    def _forward_body(self, x: torch.Tensor) -> torch.Tensor:
        offset = self.image_offsets(x)
        bits = [[self._layer_bits(conv, offset) for conv in block] for block in self.blocks]
        mean = self.mean.view(1, 3, 1, 1)
        skip = self._float_conv("head.0", (x - mean).contiguous(memory_format=torch.channels_last))
        backend, first = self.choice.backend, self.blocks[0][0]
        codes = ops.quantize(skip, first.grid, bits[0][0], backend=backend, threads=self._threads)
        feature, _ = self._run_blocks(skip.permute(0, 2, 3, 1).contiguous(), codes, bits, None, None)
        y = skip + self._float_conv(f"body.{self.spec.blocks}", feature.permute(0, 3, 1, 2))
        for name, r in zip(self.tail_names, [*self.spec.shuffles, 1], strict=False):
            y = self._float_conv(name, y)
            y = F.pixel_shuffle(y, r) if r > 1 else y
        return y + mean

    def float_model(self) -> EDSR:
        """The float network this one was made from. Raises ValueError when its weights were not kept."""
        if self.float_state is None:
            raise ValueError("float_model: this model carries no float weights (save with include_float=True)")
        model = EDSR(self.spec)
        model.load_state_dict(self.float_state)
        return model.eval()
