"""SRResNet on integer convolutions: BatchNorm folds into the scales, PReLU into the epilogues."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..networks.srresnet import BATCH_NORM_EPS, SRResNetSpec, from_range, to_range
from ..quantize import act_grid
from .network import ConvertedResidualNetwork


class ConvertedSRResNet(ConvertedResidualNetwork, network="srresnet"):
    """SRResNet with integer convolutions: float32 [N, 3, H, W] in 0..255 -> float32 [N, 3, scale*H, scale*W], not clamped."""

    spec: SRResNetSpec

    def _build(self) -> None:
        spec = self.spec
        if self.full:
            self._add("head.0", activation="prelu", slope=self._slopes("head.1"))
            # The range of the first input is that of the weights' own units: pixels are quantised as they come.
            head = self.parameters_by_name["head.0"]
            unit = 255.0 if spec.unit_range else 1.0
            self.register_buffer("pixel_grid", act_grid(head.lower * unit, head.upper * unit))
        for i in range(spec.blocks):
            gain, shift = self._norm(f"body.{i}.bn1")
            self._add(f"body.{i}.conv1", gain=gain, shift=shift, activation="prelu", slope=self._slopes(f"body.{i}.act"))
            gain, shift = self._norm(f"body.{i}.bn2")
            self._add(f"body.{i}.conv2", gain=gain * spec.res_scale, shift=shift * spec.res_scale)
        if not self.full:
            return
        gain, shift = self._norm(f"body.{spec.blocks + 1}")
        self._add(f"body.{spec.blocks}", gain=gain, shift=shift)
        for i, r in enumerate(spec.shuffles):
            slope = self._slopes(f"tail.0.{3 * i + 2}").repeat_interleave(r * r)
            self._add(f"tail.0.{3 * i}", activation="prelu", slope=slope, shuffle=r)
        half = torch.full((3,), 127.5, dtype=torch.float64) if spec.unit_range else None
        self._add("tail.1", gain=half, shift=half)

    def _slopes(self, name: str) -> torch.Tensor:
        """The slope of every channel, float32 [channels]."""
        return self._plain(f"{name}.weight").expand(self.spec.channels)

    def _norm(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A BatchNorm as a gain and a shift of every channel, float64 [channels]."""
        parts = ("weight", "bias", "running_mean", "running_var")
        weight, bias, mean, var = (self._plain(f"{name}.{part}").double() for part in parts)
        gain = weight / torch.sqrt(var + BATCH_NORM_EPS)
        return gain, bias - mean * gain

    def _pixel_codes(self, x: torch.Tensor) -> torch.Tensor:
        bits = torch.full((x.shape[0],), self.conv("head.0").bit_range[1], dtype=torch.int32, device=x.device)
        return self._quantize(x, self.pixel_grid, bits)

    def _forward_full(self, x, blocks, bits, as_pixels, origin) -> torch.Tensor:
        head, last = self.conv("head.0"), self.conv(f"body.{self.spec.blocks}")
        first = blocks[0][0]
        end_bits, last_bits = bits[head.name], bits[last.name]
        pixels = self._quantize(x, self.pixel_grid, end_bits)
        places = self._places(x, pixels, origin)
        tail = self._upsample((*(f"tail.0.{3 * i}" for i in range(len(self.spec.shuffles))), "tail.1"), pixels)
        skip = self._features("skip", pixels, self.spec.channels)
        codes = self._codes("codes", pixels, self.spec.channels)
        outputs = {"y": skip, "y_q": codes, "fraction": self.fraction}
        head.into(pixels, end_bits, out_grid=first.grid, out_bits=bits[first.name], **outputs, **places.head())
        _, codes = self._run_blocks(skip, codes, blocks, bits, last.grid, last_bits, places)
        return self._run_into_tail(last, codes, last_bits, skip, tail, end_bits, "inner", as_pixels, places, pixels)

    def _forward_body(self, x, blocks, bits) -> torch.Tensor:
        spec = self.spec
        first = self._float_conv("head.0", to_range(x, spec).contiguous(memory_format=torch.channels_last))
        skip = F.prelu(first, self._plain("head.1.weight"))
        codes = self._quantize(skip, blocks[0][0].grid, bits[blocks[0][0].name])
        feature, _ = self._run_blocks(skip.permute(0, 2, 3, 1).contiguous(), codes, blocks, bits, None, None)
        gain, shift = (value.float().view(1, -1, 1, 1) for value in self._norm(f"body.{spec.blocks + 1}"))
        y = self._float_conv(f"body.{spec.blocks}", feature.permute(0, 3, 1, 2)) * gain + shift + skip
        for i, r in enumerate(spec.shuffles):
            y = F.pixel_shuffle(self._float_conv(f"tail.0.{3 * i}", y), r)
            y = F.prelu(y, self._plain(f"tail.0.{3 * i + 2}.weight"))
        return from_range(self._float_conv("tail.1", y), spec)
