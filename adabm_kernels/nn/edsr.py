"""EDSR on integer convolutions: between two convolutions only codes travel, and the residual beside them in 16 or 32 bits."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..networks.edsr import EDSRSpec, MeanShift
from .network import ConvertedResidualNetwork


class ConvertedEDSR(ConvertedResidualNetwork, network="edsr"):
    """EDSR with integer convolutions: float32 [N, 3, H, W] in 0..255 -> float32 [N, 3, scale*H, scale*W], not clamped."""

    spec: EDSRSpec

    def _build(self) -> None:
        spec = self.spec
        self.register_buffer("mean", MeanShift(1, spec.mean).bias if spec.mean_shift else torch.zeros(3))
        if self.full:
            self._add("head.0")
            # What pixels lack to be what the codes of the first convolution stand for.
            shift = self.parameters_by_name["head.0"].input_shift
            self.register_buffer("pixel_shift", self.mean if shift is None else self.mean + shift)
        gain = torch.full((spec.channels,), spec.res_scale, dtype=torch.float64)
        for i in range(spec.blocks):
            self._add(f"body.{i}.conv1", activation="relu")
            self._add(f"body.{i}.conv2", gain=gain)
        if not self.full:
            return
        self._add(f"body.{spec.blocks}")
        for name, r in zip(spec.tail_names, [*spec.shuffles, 1], strict=False):
            last = name == spec.tail_names[-1]
            self._add(name, shuffle=r, shift=self.mean.repeat_interleave(r * r) if last else None)

    def _collapsible(self) -> tuple[tuple[str, ...], tuple[int, ...], torch.Tensor] | None:
        return (self.spec.tail_names, self.spec.shuffles, self.mean) if self.spec.linear_upsampler else None

    def _pixel_codes(self, x: torch.Tensor) -> torch.Tensor:
        head = self.conv("head.0")
        bits = torch.full((x.shape[0],), head.bit_range[1], dtype=torch.int32, device=x.device)
        return self._quantize(x, head.grid, bits, shift=self.pixel_shift)

    def _forward_full(self, x, blocks, bits, as_pixels, origin) -> torch.Tensor:
        head, last = self.conv("head.0"), self.conv(f"body.{self.spec.blocks}")
        first = blocks[0][0]
        end_bits, last_bits = bits[head.name], bits[last.name]
        pixels = self._quantize(x, head.grid, end_bits, shift=self.pixel_shift)
        places = self._places(x, pixels, origin)
        tail = self._upsample(self.spec.tail_names, pixels)
        skip = self._features("skip", pixels, self.spec.channels)
        codes = self._codes("codes", pixels, self.spec.channels)
        outputs = {"y": skip, "y_q": codes, "fraction": self.fraction}
        head.into(pixels, end_bits, out_grid=first.grid, out_bits=bits[first.name], **outputs, **places.head())
        _, codes = self._run_blocks(skip, codes, blocks, bits, last.grid, last_bits, places)
        return self._run_into_tail(last, codes, last_bits, skip, tail, end_bits, "inner", as_pixels, places, pixels)

    def _forward_body(self, x, blocks, bits) -> torch.Tensor:
        mean = self.mean.view(1, 3, 1, 1)
        skip = self._float_conv("head.0", (x - mean).contiguous(memory_format=torch.channels_last))
        codes = self._quantize(skip, blocks[0][0].grid, bits[blocks[0][0].name])
        feature, _ = self._run_blocks(skip.permute(0, 2, 3, 1).contiguous(), codes, blocks, bits, None, None)
        y = skip + self._float_conv(f"body.{self.spec.blocks}", feature.permute(0, 3, 1, 2))
        for name, r in zip(self.spec.tail_names, [*self.spec.shuffles, 1], strict=False):
            y = self._float_conv(name, y)
            y = F.pixel_shuffle(y, r) if r > 1 else y
        return y + mean
