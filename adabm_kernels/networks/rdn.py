"""RDN (Zhang et al., CVPR 2018): its graph, and how its state dicts are recognised."""

from __future__ import annotations

from dataclasses import dataclass

from ..graph.builder import Builder
from ..graph.nodes import Concat, Graph
from .float_network import FloatNetwork
from .layouts import Layout, State, count, listed, parts_renamed, scale_of
from .spec import NetworkSpec, stages


def _yjn870(state: State) -> dict[str, str]:
    stages = count(state, r"upscale\.(\d+)\.")
    parts = {"sfe1": "SFENet1", "sfe2": "SFENet2", "gff": "GFF", "upscale": "UPNet", "output": f"UPNet.{stages + 1}"}
    return parts_renamed(
        state,
        parts,
        {
            r"rdbs\.(\d+)\.layers\.(\d+)\.conv(?=\.)": lambda m: f"RDBs.{m[1]}.convs.{m[2]}.conv.0",
            r"rdbs\.(\d+)\.lff(?=\.)": lambda m: f"RDBs.{m[1]}.LFF",
        },
    )


@dataclass(frozen=True)
class RDNSpec(NetworkSpec):
    """The hyper-parameters of one RDN, for pixels in 0..255 and without a mean shift.

    scale: 2, 3 or 4. blocks: the number of residual dense blocks (D). layers: the convolutions in each block (C). growth: the
    channels that each of these adds (G). channels: the features between the blocks (G0).
    """

    network = "rdn"
    title = called = "RDN"
    known_by = "'SFENet1.weight' with 'RDBs.0.convs.0.conv.0.weight', or 'sfe1.weight' with 'rdbs.0.layers.0.conv.weight'"
    anchor = "SFENet1.weight"
    layouts = (Layout("yjn870", ("sfe1.weight",), lambda state: "sfe1.weight" in state, _yjn870, 1),)

    scale: int
    blocks: int
    layers: int
    growth: int
    channels: int = 64

    def __post_init__(self) -> None:
        self.check_sizes("blocks", "layers", "growth", "channels")

    def build(self) -> Graph:
        b, c, g = Builder(), self.channels, self.growth
        first = b.conv("SFENet1", "x", (3, c), role="end")
        y, blocks = b.conv("SFENet2", first, (c, c), role="end"), []
        for i in range(self.blocks):
            dense = y
            for j in range(self.layers):
                name = f"RDBs.{i}.convs.{j}"
                new = b.relu(f"{name}.act", b.conv(f"{name}.conv.0", dense, (c + j * g, g), body=True))
                dense = b.add(Concat(name, (dense, new)))
            fused = b.conv(f"RDBs.{i}.LFF", dense, (c + self.layers * g, c), 1, role="fixed", body=True)
            y = b.sum(f"RDBs.{i}", fused, y)
            blocks.append(y)
        fused = b.conv("GFF.0", b.add(Concat("RDBs", tuple(blocks))), (self.blocks * c, c), 1, body=True)
        y = b.sum("GFF", b.conv("GFF.1", fused, (c, c), body=True), first)
        factors = stages(self.scale)
        for i, factor in enumerate(factors):
            name = f"UPNet.{2 * i}"
            y = b.conv(name, y, (g if i else c, g * factor**2), role="end")
            y = b.shuffle(f"{name}.shuffle", y, factor)
        return b.graph(b.conv(f"UPNet.{2 * len(factors)}", y, (g, 3), role="end"))

    @classmethod
    def fits(cls, state: State) -> bool:
        return "SFENet1.weight" in state

    @classmethod
    def read(cls, state: State, res_scale: float) -> RDNSpec:
        blocks = count(state, r"RDBs\.(\d+)\.")
        layers = count(state, r"RDBs\.0\.convs\.(\d+)\.")
        first, up = state.get("RDBs.0.convs.0.conv.0.weight"), state.get("UPNet.0.weight")
        if not blocks or not layers or first is None or first.ndim != 4 or up is None or up.ndim != 4:
            raise ValueError(
                "the state dict looks like an RDN ('SFENet1.weight') but lacks 'RDBs.0.convs.0.conv.0.weight' or 'UPNet.0.weight', "
                f"got {listed(list(state))}"
            )
        growth, channels = first.shape[:2]
        scale = 4 if "UPNet.4.weight" in state else scale_of(state, "UPNet.0.weight", growth)
        return cls(scale, blocks, layers, growth, channels)

    @classmethod
    def of_scale_8(cls, state: State) -> str:
        return "UPNet.6.weight" if "UPNet.6.weight" in state else ""


class RDN(FloatNetwork):
    """The float network of an `RDNSpec`."""
