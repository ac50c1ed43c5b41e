"""CARN and CARN-M (Ahn et al., ECCV 2018): their graph, and how their state dicts are recognised."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from ..graph.builder import Builder
from ..graph.nodes import ColourShift, Concat, Graph
from .convention import DIV2K_PIXELS, SHIFTS, shift_weights
from .layouts import SCALES, Layout, State, count, listed, matches, parts_renamed
from .spec import NetworkSpec, stages

STAGES = 3  # the number of cascading blocks, and of residual blocks in each
_FIRST = "cascade.0.blocks.0.convs.0.weight"


def _renamed(state: State) -> dict[str, str]:
    def block(m: re.Match[str]) -> str:
        return f"cascade.{int(m[1]) - 1}.blocks.{int(m[2]) - 1}.convs.{int(m[3]) // 2}"

    parts = {"sub_mean.shifter": "sub_mean", "add_mean.shifter": "add_mean", "entry": "stem", "exit": "last"}
    patterns = {
        r"b([123])\.b([123])\.body\.([024])(?=\.)": block,
        r"b([123])\.c([123])\.body\.0(?=\.)": lambda m: f"cascade.{int(m[1]) - 1}.merge.{int(m[2]) - 1}",
        r"c([123])\.body\.0(?=\.)": lambda m: f"merge.{int(m[1]) - 1}",
        r"upsample\.up\.body\.(\d+)(?=\.)": lambda m: f"up.{int(m[1]) // 3}",
    }
    return parts_renamed(state, parts, patterns)


def _repeated(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights with every residual block written out: those of CARN-M hold one residual block for the three of a cascading
    block."""
    found = dict(state)
    for key, value in state.items():
        if (m := re.match(r"(cascade\.\d\.blocks)\.0(\..*)", key)) and not matches(state, rf"{m[1]}\.[12]\."):
            found |= {f"{m[1]}.{j}{m[2]}": value for j in range(1, STAGES)}
    return found


def _by_scale(state: State) -> dict[str, dict[str, torch.Tensor]]:
    """The state dicts of the networks for each scale: a published file holds one network with an upsampler for each scale."""
    rest = {key: value for key, value in state.items() if not re.match(r"upsample\.up[234]\.", key)}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for scale in SCALES:
        part = f"upsample.up{scale}."
        own = {f"upsample.up.{key[len(part) :]}": value for key, value in state.items() if key.startswith(part)}
        found |= {f"x{scale}": rest | own} if own else {}
    return found


def _is_carn(state: State) -> bool:
    return "entry.weight" in state and matches(state, r"b1\.b1\.body\.0\.")


@dataclass(frozen=True)
class CARNSpec(NetworkSpec):
    """The hyper-parameters of one CARN.

    scale: 2, 3 or 4. channels: the number of features. groups: the groups of the convolutions in its residual blocks and its
    upsampler; more than one in CARN-M. efficient: true for CARN-M, whose residual blocks have two such convolutions and one of 1x1.
    mean_shift, mean: as in an EDSR's specification.
    """

    network = "carn"
    title = called = "CARN"
    article = "a"
    known_by = "'entry.weight' with 'b1.b1.body.0.weight'"
    anchor = "stem.weight"
    layouts = (Layout("carn", ("entry.weight",), _is_carn, _renamed, 1, folded=_repeated, by_scale=_by_scale),)
    takes_mean_shift = True

    scale: int
    channels: int = 64
    groups: int = 1
    up_groups: int = 1
    efficient: bool = False
    mean_shift: bool = True
    mean: tuple[float, float, float] = DIV2K_PIXELS

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))  # it is a list where it comes from JSON
        self.check_sizes("channels", "groups", "up_groups")
        if self.channels % self.groups or self.channels % self.up_groups:
            raise ValueError(f"CARNSpec: channels must be a multiple of the groups, got {self.channels} in {self.groups}")

    def build(self) -> Graph:
        b, c, shift = Builder(), self.channels, self.mean_shift
        x = b.add(ColourShift("sub_mean", ("x",), "sub_mean", -1, self.mean)) if shift else "x"

        def residual(name: str, x: str) -> str:
            y = x
            for k in range(2):
                conv = f"{name}.convs.{k}"
                y = b.conv(conv, y, (c, c), groups=self.groups, body=True)
                y = b.relu(f"{conv}.act", y) if k == 0 or self.efficient else y
            y = b.conv(f"{name}.convs.2", y, (c, c), 1, body=True) if self.efficient else y
            return b.relu(name, b.sum(f"{name}.sum", y, x))

        def cascade(name: str, x: str) -> str:
            parts: tuple[str, ...] = (x,)
            y = x
            for j in range(STAGES):
                inner = residual(f"{name}.blocks.{j}", y) if name else cascade(f"cascade.{j}", y)
                parts = (*parts, inner)
                merge = f"{name}.merge.{j}".lstrip(".")
                joined = b.add(Concat(f"{merge}.joined", parts))
                y = b.relu(f"{merge}.act", b.conv(merge, joined, (len(parts) * c, c), 1, body=True))
            return y

        y = cascade("", b.conv("stem", x, (3, c), role="end"))
        for i, factor in enumerate(stages(self.scale)):
            y = b.conv(f"up.{i}", y, (c, c * factor**2), groups=self.up_groups, role="end")
            y = b.shuffle(f"up.{i}.shuffle", b.relu(f"up.{i}.act", y), factor)
        y = b.conv("last", y, (c, 3), role="end")
        return b.graph(b.add(ColourShift("add_mean", (y,), "add_mean", 1, self.mean)) if shift else y)

    @classmethod
    def fits(cls, state: State) -> bool:
        return "stem.weight" in state and matches(state, r"cascade\.\d\.")

    @classmethod
    def read(cls, state: State, res_scale: float) -> CARNSpec:
        ups = count(state, r"up\.(\d+)\.")
        weights = [state.get(key) for key in ("stem.weight", _FIRST, "up.0.weight")]
        if not ups or any(weight is None or weight.ndim != 4 or not weight.shape[1] for weight in weights):
            raise ValueError(
                f"the state dict looks like a CARN but lacks its first block or its upsampler, got {listed(list(state))}"
            )
        channels, inputs, up_inputs = state["stem.weight"].shape[0], state[_FIRST].shape[1], state["up.0.weight"].shape[1]
        scale = 3 if len(state["up.0.weight"]) == 9 * channels else 2**ups
        shift = any(key.startswith(SHIFTS) for key in state)
        efficient = "cascade.0.blocks.0.convs.2.weight" in state
        return cls(scale, channels, max(1, channels // inputs), max(1, channels // up_inputs), efficient, shift)

    @classmethod
    def completed(cls, state: State, mean_shift: bool) -> dict[str, torch.Tensor]:
        return dict(state) | (shift_weights(DIV2K_PIXELS) if mean_shift else {})
