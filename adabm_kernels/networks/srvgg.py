"""SRVGGNetCompact (Wang et al., "Real-ESRGAN", ICCVW 2021): its graph, and how its state dicts are recognised."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import isqrt

from ..graph.builder import Builder
from ..graph.nodes import Activation, Graph, Resize
from .layouts import Layout, State, count, matches
from .spec import NetworkSpec


def _realesrgan(state: State) -> dict[str, str]:
    """New names for convolutions and activations, which take turns in the published list."""

    def rename(found: re.Match[str]) -> str:
        return f"{('convs', 'acts')[int(found[1]) % 2]}.{int(found[1]) // 2}."

    return {key: re.sub(r"^body\.(\d+)\.", rename, key) for key in state}


def _is_realesrgan(state: State) -> bool:
    return matches(state, r"body\.0\.weight$") and matches(state, r"body\.1\.weight$") and not matches(state, r"head\.")


# The network is recognised by its first PReLU, because in other networks, too, `body.0.weight` behind some prefix is the weight of
# a convolution.
_REALESRGAN = Layout("realesrgan", ("body.1.weight",), _is_realesrgan, _realesrgan, rgb_range=1)


@dataclass(frozen=True)
class SRVGGSpec(NetworkSpec):
    """The hyper-parameters of one SRVGGNetCompact with PReLUs.

    scale: 1, 2, 3 or 4. layers: the number of convolutions between the first and the last. channels: the features between all of
    them.
    """

    network = "srvgg"
    title = called = "SRVGGNetCompact"
    known_by = "'body.0.weight' with 'body.1.weight', the slopes of a PReLU"
    anchor = "convs.0.weight"
    scales = (1, 2, 3, 4)
    layouts = (_REALESRGAN,)
    sharpens = True

    scale: int
    layers: int
    channels: int = 64

    def __post_init__(self) -> None:
        self.check_sizes("layers", "channels")

    def build(self) -> Graph:
        b, c, y, last = Builder(), self.channels, "x", self.layers + 1
        for i in range(last):
            y = b.conv(f"convs.{i}", y, (c if i else 3, c), role="adaptive" if i else "end", body=i > 0)
            y = b.add(Activation(f"acts.{i}", (y,), "prelu", key=f"acts.{i}", slopes=c))
        y = b.conv(f"convs.{last}", y, (c, 3 * self.scale**2), role="end")
        if self.scale == 1:
            return b.graph(b.sum("sum", y, "x"))
        enlarged = b.add(Resize("enlarged", ("x",), self.scale))
        return b.graph(b.sum("sum", b.shuffle("shuffle", y, self.scale), enlarged))

    @classmethod
    def fits(cls, state: State) -> bool:
        return "convs.0.weight" in state and "acts.0.weight" in state

    @classmethod
    def read(cls, state: State, res_scale: float) -> SRVGGSpec:
        last = count(state, r"convs\.(\d+)\.") - 1
        ends = [state.get(f"convs.{i}.weight") for i in (0, last)]
        if last < 2 or any(weight is None or weight.ndim != 4 for weight in ends):
            raise ValueError("the state dict looks like an SRVGGNetCompact but lacks its first or its last convolution")
        outputs = len(state[f"convs.{last}.weight"])
        if outputs not in [3 * scale**2 for scale in cls.scales]:
            raise ValueError(f"the last convolution must have 3, 12, 27 or 48 output channels, got {outputs}")
        return cls(isqrt(outputs // 3), last - 1, len(state["convs.0.weight"]))
