"""EDSR as AdaBM simulates it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ..config import ConvertConfig
from ..networks.edsr import EDSRSpec, MeanShift
from .network import SimulatedNetwork, masked, run


class SimulatedEDSR(SimulatedNetwork, network="edsr"):
    """EDSR computing with few bits; the names of its parts are those of the authors' implementation."""

    spec: EDSRSpec

    def __init__(self, spec: EDSRSpec, config: ConvertConfig, weight_grid: str = "odd"):
        super().__init__(spec, config, weight_grid)
        if spec.mean_shift:
            self.sub_mean, self.add_mean = MeanShift(-1, spec.mean), MeanShift(1, spec.mean)
        self.head = nn.ModuleList([self._conv("head.0")])
        pairs = [{f"conv{j}": self._conv(f"body.{i}.conv{j}") for j in (1, 2)} for i in range(spec.blocks)]
        self.body = nn.ModuleList([nn.ModuleDict(pair) for pair in pairs])
        self.body.append(self._conv(f"body.{spec.blocks}"))
        stages = nn.ModuleList()
        for i, r in enumerate(spec.shuffles):
            stages.extend([self._conv(f"tail.0.{2 * i}"), nn.PixelShuffle(r)])
        self.tail = nn.ModuleList([stages] + ([self._conv("tail.1")] if spec.tail == "staged" else []))

    def trunk(
        self, x: torch.Tensor, image_offset: torch.Tensor, computed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        if self.spec.mean_shift:
            x = self.sub_mean(x)
        x = self.held(run(self.head[0], x, image_offset))
        y, blocks = x, []
        for block in self.body[:-1]:
            inner = masked(F.relu(run(block["conv1"], y, image_offset)), computed)
            inner = run(block["conv2"], inner, image_offset)
            y = self.held(masked(inner, computed) * self.spec.res_scale + y)
            blocks.append(y)
        return self.held(run(self.body[-1], y, image_offset) + x), blocks

    def upsample(self, feature: torch.Tensor, image_offset: torch.Tensor) -> torch.Tensor:
        for module in [*self.tail[0], *self.tail[1:]]:
            feature = run(module, feature, image_offset)
        return self.add_mean(feature) if self.spec.mean_shift else feature

    def pixel_shift(self) -> torch.Tensor | None:
        return self.sub_mean.bias.clone() if self.spec.mean_shift else None

    def preview(self, x: torch.Tensor) -> torch.Tensor:
        if self.spec.tail != "staged":
            return super().preview(x)
        return self.collapsed_preview(x, self.spec.tail_names, self.spec.shuffles)
