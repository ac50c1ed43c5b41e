"""SRResNet as AdaBM simulates it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from ..config import ConvertConfig
from ..networks.srresnet import BATCH_NORM_EPS, UNIT_RANGE, SRResNetSpec, from_range, to_range
from .network import SimulatedNetwork, masked, run


class SimulatedSRResNet(SimulatedNetwork, network="srresnet"):
    """SRResNet computing with few bits; the names of its parts are those of the authors' implementation.

    A weight is quantised before the BatchNorm that follows it, which computes in float with its trained statistics.
    """

    spec: SRResNetSpec

    def __init__(self, spec: SRResNetSpec, config: ConvertConfig, weight_grid: str = "odd"):
        super().__init__(spec, config, weight_grid)
        c = spec.channels
        self.head = nn.ModuleList([self._conv("head.0"), nn.PReLU(spec.slopes)])
        self.body = nn.ModuleList([self._block(f"body.{i}") for i in range(spec.blocks)])
        self.body.extend([self._conv(f"body.{spec.blocks}"), _norm(c)])
        stages = nn.ModuleList()
        for i, r in enumerate(spec.shuffles):
            stages.extend([self._conv(f"tail.0.{3 * i}"), nn.PixelShuffle(r), nn.PReLU(spec.slopes)])
        self.tail = nn.ModuleList([stages, self._conv("tail.1")])
        if spec.unit_range:
            self.register_buffer(UNIT_RANGE, torch.ones(1))
        self.eval()

    def _block(self, name: str) -> nn.ModuleDict:
        c = self.spec.channels
        convs = {f"conv{j}": self._conv(f"{name}.conv{j}") for j in (1, 2)}
        return nn.ModuleDict(convs | {"act": nn.PReLU(self.spec.slopes), "bn1": _norm(c), "bn2": _norm(c)})

    def train(self, mode: bool = True) -> SimulatedSRResNet:
        """Fine-tuning, too, uses the trained statistics of the BatchNorms."""
        return super().train(False)

    def body_biases(self) -> list[torch.Tensor]:
        blocks = self.body[: self.spec.blocks]
        return [block[norm].bias for block in blocks for norm in ("bn1", "bn2")] + [self.body[-1].bias]

    @contextmanager
    def float_mode(self) -> Iterator[SimulatedNetwork]:
        """As in every network; the BatchNorms, too, have the biases of the float network: fine-tuning moves them, and the teacher
        must stay where it is."""
        names = {id(value): name for name, value in self.named_parameters()}
        biases = [(bias, self.float_weights.get(names[id(bias)])) for bias in self.body_biases()]
        learned = [bias.detach().clone() for bias, _ in biases]
        try:
            with torch.no_grad():
                for bias, given in biases:
                    bias.copy_(bias if given is None else given)
            with super().float_mode():
                yield self
        finally:
            with torch.no_grad():
                for (bias, _), values in zip(biases, learned, strict=True):
                    bias.copy_(values)

    def trunk(
        self, x: torch.Tensor, image_offset: torch.Tensor, computed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        x = self.held(self.head[1](run(self.head[0], to_range(x, self.spec), image_offset)))
        y, blocks = x, []
        for block in self.body[: self.spec.blocks]:
            inner = masked(block["act"](block["bn1"](run(block["conv1"], y, image_offset))), computed)
            inner = block["bn2"](run(block["conv2"], inner, image_offset))
            y = self.held(masked(inner, computed) * self.spec.res_scale + y)
            blocks.append(y)
        return self.held(self.body[-1](run(self.body[-2], y, image_offset)) + x), blocks

    def upsample(self, feature: torch.Tensor, image_offset: torch.Tensor) -> torch.Tensor:
        for module in [*self.tail[0], self.tail[1]]:
            feature = run(module, feature, image_offset)
        return from_range(feature, self.spec)

    def pixel_unit(self) -> float:
        return 1 / 255 if self.spec.unit_range else 1.0

    def preview(self, x: torch.Tensor) -> torch.Tensor:
        """The first convolution of the upsampler in float, before its activation: at a seventh of the work, the directions of the
        features that the rest can see."""
        feature = self.trunk(x.contiguous(memory_format=torch.channels_last), self.image_offsets(x))[0]
        dtype = self.body[0]["conv1"].compute_dtype or feature.dtype
        return F.conv2d(feature.to(dtype), self.float_weights["tail.0.0.weight"].to(dtype), padding=1).to(feature.dtype)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, BATCH_NORM_EPS)
