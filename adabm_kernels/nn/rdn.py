"""RDN on integer convolutions, without concatenation: features lie side by side in one buffer and are quantised out of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional as F

from .. import ops
from ..networks.rdn import RDNSpec
from ..quantize import CODE_CHANNELS
from .conv import IntegerConv2d
from .network import ConvertedNetwork


class ConvertedRDN(ConvertedNetwork, network="rdn"):
    """RDN with integer convolutions: float32 [N, 3, H, W] in 0..255 -> float32 [N, 3, scale*H, scale*W], not clamped.

    A block keeps the features that it is given and those its layers add side by side in one wide buffer: each layer writes into
    its slice. The codes of a layer's input, whose range and bits are its own, are made from the slices before it: all at once when
    the layer's turn comes or, where the backend quantises on several grids in one pass, those of a slice for all layers that read
    it as soon as it is there, into a code buffer for each. Then every feature is read once instead of once for each reader.
    """

    spec: RDNSpec

    def _build(self) -> None:
        spec = self.spec
        if self.full:
            self._add("SFENet1")
            self._add("SFENet2")
        for i in range(spec.blocks):
            for j in range(spec.layers):
                self._add(f"RDBs.{i}.convs.{j}.conv.0", activation="relu")
            self._add(f"RDBs.{i}.LFF")
        self._add("GFF.0")
        self._add("GFF.1")
        if self.full:
            for name, r in zip(spec.tail_names, [*spec.shuffles, 1], strict=True):
                self._add(name, shuffle=r)

    def _collapsible(self) -> tuple[tuple[str, ...], tuple[int, ...], torch.Tensor] | None:
        return self.spec.tail_names, self.spec.shuffles, torch.zeros(3)

    @property
    def quantizes_early(self) -> bool:
        """Whether features become codes for all layers that read them as soon as they are there."""
        aligned = self.spec.channels % CODE_CHANNELS == 0 and self.spec.growth % CODE_CHANNELS == 0
        return self.choice.backend in ops.QUANTIZE_MANY and aligned

    def _packable(self) -> bool:
        return self.spec.channels % CODE_CHANNELS == 0  # the codes of the blocks lie side by side

    def _forward(
        self, x: torch.Tensor, bits: Mapping[str, torch.Tensor], as_pixels: bool = False, origin: tuple[int, int] = (0, 0)
    ) -> torch.Tensor:
        return self._forward_full(x, bits, as_pixels) if self.full else self._forward_body(x, bits)

    def _forward_full(self, x: torch.Tensor, bits: Mapping[str, torch.Tensor], as_pixels: bool) -> torch.Tensor:
        c, first, second = self.spec.channels, self.conv("SFENet1"), self.conv("SFENet2")
        end_bits = bits[first.name]
        pixels = self._quantize(x, first.grid, end_bits)
        tail = self._upsample(self.spec.tail_names, pixels)
        skip, codes = self._floats("skip", pixels, c), self._codes("narrow", pixels, c)
        first.into(pixels, end_bits, y=skip, y_q=codes, out_grid=second.grid, out_bits=end_bits)
        wide = self._wide(pixels)
        entry = self.conv("RDBs.0.convs.0.conv.0")
        entry_codes, entry_bits = self._codes("dense", pixels, c), bits[entry.name]
        second.into(codes, end_bits, y=wide[0][..., :c], y_q=entry_codes, out_grid=entry.grid, out_bits=entry_bits)
        codes, last, last_bits = self._run_blocks(wide, entry_codes, bits)
        return self._run_into_tail(last, codes, last_bits, skip, tail, end_bits, "narrow", as_pixels)

    def _forward_body(self, x: torch.Tensor, bits: Mapping[str, torch.Tensor]) -> torch.Tensor:
        c = self.spec.channels
        skip = self._float_conv("SFENet1", x.contiguous(memory_format=torch.channels_last))
        feature = self._float_conv("SFENet2", skip).permute(0, 2, 3, 1)
        wide = self._wide(feature)
        wide[0][..., :c].copy_(feature)
        entry = self.conv("RDBs.0.convs.0.conv.0")
        codes = self._quantize(feature.permute(0, 3, 1, 2), entry.grid, bits[entry.name])
        codes, last, last_bits = self._run_blocks(wide, codes, bits)
        y, _ = last(codes, last_bits, residual=skip.permute(0, 2, 3, 1).contiguous())
        y = y.permute(0, 3, 1, 2)
        for name, r in zip(self.spec.tail_names, [*self.spec.shuffles, 1], strict=True):
            y = self._float_conv(name, y)
            y = F.pixel_shuffle(y, r) if r > 1 else y
        return y

    def _quantize_for(
        self,
        x: torch.Tensor,
        readers: list[IntegerConv2d],
        buffers: list[torch.Tensor],
        bits: Mapping[str, torch.Tensor],
        start: int,
    ) -> None:
        """Codes of features [N, H, W, C] for several convolutions, from channel `start` of a buffer of each."""
        place = {"y_q": buffers, "starts": [start] * len(readers)}
        if not self.packed_codes:
            place = {"y_q": [buffer[..., start : start + x.shape[3]] for buffer in buffers]}
        grids, own_bits = [reader.grid for reader in readers], [bits[reader.name] for reader in readers]
        ops.quantize_many_out(x.permute(0, 3, 1, 2), grids, own_bits, **place, **self._running_on())

    def _wide(self, like: torch.Tensor) -> list[torch.Tensor]:
        """Two buffers for the features of a block and of the next, [N, H, W, channels + layers * growth]."""
        width = self.spec.channels + self.spec.layers * self.spec.growth
        return [self._floats(f"wide{i}", like, width) for i in range(2)]

    def _run_blocks(self, wide, codes, bits):
        """The blocks, from the features in wide[0] and their codes, up to the first fusion over all of them: returns the codes of
        the second, that convolution and its bits."""
        spec, (c, g) = self.spec, (self.spec.channels, self.spec.growth)
        gather, last = self.conv("GFF.0"), self.conv("GFF.1")
        gather_bits, last_bits = bits[gather.name], bits[last.name]
        gathered = self._codes("gathered", codes, spec.blocks * c)
        for i in range(spec.blocks):
            now, following = wide[i % 2], wide[1 - i % 2]
            fusion = self.conv(f"RDBs.{i}.LFF")
            readers = [*(self.conv(f"RDBs.{i}.convs.{j}.conv.0") for j in range(spec.layers)), fusion]
            buffers = []  # of the readers from 1 on: the first one's codes are there already
            if self.quantizes_early:
                buffers = [self._codes(f"dense{j}", now, c + j * g) for j in range(1, len(readers))]
                self._quantize_for(now[..., :c], readers[1:], buffers, bits, 0)
            for j, reader in enumerate(readers):
                end = c + j * g
                if buffers and j > 0:
                    codes = buffers[j - 1]
                elif j > 0:
                    codes = self._codes("dense", now, end)
                    self._quantize_into(now[..., :end], reader.grid, bits[reader.name], codes)
                if j < spec.layers:
                    reader.into(codes, bits[reader.name], y=now[..., end : end + g])
                    if buffers:
                        self._quantize_for(now[..., end : end + g], readers[j + 1 :], buffers[j:], bits, end)
            entry = self.conv(f"RDBs.{i + 1}.convs.0.conv.0") if i + 1 < spec.blocks else None
            out = following[..., :c]
            made = {}
            if entry is not None:
                entry_codes = self._codes("narrow", now, c)
                made = {"y_q": entry_codes, "out_grid": entry.grid, "out_bits": bits[entry.name]}
            fusion.into(codes, bits[fusion.name], residual=now[..., :c], y=out, **made)
            end = gathered.shape[3] if entry is None else (i + 1) * c  # the last one also clears the padding channels
            self._quantize_into(out, gather.grid, gather_bits, gathered, i * c, end)
            codes = entry_codes if entry is not None else codes
        fused = self._codes("fused", gathered, c)
        gather.into(gathered, gather_bits, y_q=fused, out_grid=last.grid, out_bits=last_bits)
        return fused, last, last_bits
