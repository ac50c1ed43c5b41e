"""RDN as AdaBM simulates it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ..config import ConvertConfig
from ..networks.rdn import RDNSpec
from .network import SimulatedNetwork, run


class SimulatedRDN(SimulatedNetwork, network="rdn"):
    """RDN computing with few bits; the names of its parts are those of the authors' implementation."""

    spec: RDNSpec

    def __init__(self, spec: RDNSpec, config: ConvertConfig, weight_grid: str = "odd"):
        super().__init__(spec, config, weight_grid)
        self.SFENet1, self.SFENet2 = self._conv("SFENet1"), self._conv("SFENet2")
        self.RDBs = nn.ModuleList([self._block(f"RDBs.{i}") for i in range(spec.blocks)])
        self.GFF = nn.ModuleList([self._conv("GFF.0"), self._conv("GFF.1")])
        stages: list[nn.Module] = []
        for name, r in zip(spec.tail_names, spec.shuffles, strict=False):
            stages += [self._conv(name), nn.PixelShuffle(r)]
        self.UPNet = nn.ModuleList([*stages, self._conv(spec.tail_names[-1])])

    def _block(self, name: str) -> nn.ModuleDict:
        layers = [nn.ModuleDict({"conv": nn.ModuleList([self._conv(f"{name}.convs.{j}.conv.0")])}) for j in range(self.spec.layers)]
        return nn.ModuleDict({"convs": nn.ModuleList(layers), "LFF": self._conv(f"{name}.LFF")})

    def trunk(
        self, x: torch.Tensor, image_offset: torch.Tensor, computed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """As in every network; `computed` is None: the features of all blocks are gathered, so none can be left out."""
        first = run(self.SFENet1, x, image_offset)
        x, blocks = run(self.SFENet2, first, image_offset), []
        for block in self.RDBs:
            dense = x
            for layer in block["convs"]:
                dense = torch.cat((dense, F.relu(run(layer["conv"][0], dense, image_offset))), 1)
            x = run(block["LFF"], dense, image_offset) + x
            blocks.append(x)
        y = run(self.GFF[1], run(self.GFF[0], torch.cat(blocks, 1), image_offset), image_offset)
        return y + first, blocks

    def upsample(self, feature: torch.Tensor, image_offset: torch.Tensor) -> torch.Tensor:
        for module in self.UPNet:
            feature = run(module, feature, image_offset)
        return feature

    def preview(self, x: torch.Tensor) -> torch.Tensor:
        return self.collapsed_preview(x, self.spec.tail_names, self.spec.shuffles)
