"""SRResNet (Ledig et al., CVPR 2017): its graph, and how its state dicts are recognised."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..graph.builder import Builder
from ..graph.nodes import Activation, Affine, BatchNorm, Graph
from .float_network import FloatNetwork
from .layouts import Layout, State, count, matches, parts_renamed, scale_of
from .spec import UNIT_RANGE, NetworkSpec, stages


def _conv_in(state: State) -> dict[str, str]:
    blocks = count(state, r"body\.(\d+)\.")
    parts = {"conv_in": "head.0", "prelu_in": "head.1", "conv_mid": f"body.{blocks}", "bn_mid": f"body.{blocks + 1}"}
    return parts_renamed(
        state,
        parts | {"conv_out": "tail.1"},
        {
            r"up\.(\d+)\.(conv|prelu)(?=\.)": lambda m: f"tail.0.{3 * int(m[1]) + 2 * (m[2] == 'prelu')}",
            r"(body\.\d+)\.prelu(?=\.)": lambda m: f"{m[1]}.act",
        },
    )


def _twtygqyy(state: State) -> dict[str, str]:
    blocks = count(state, r"residual\.(\d+)\.")
    parts = {"conv_input": "head.0", "conv_mid": f"body.{blocks}", "bn_mid": f"body.{blocks + 1}", "conv_output": "tail.1"}
    return parts_renamed(state, parts, {r"residual(?=\.)": lambda m: "body", r"upscale4x(?=\.)": lambda m: "tail.0"})


def _lornatang(state: State) -> dict[str, str]:
    blocks, layers = count(state, r"trunk\.(\d+)\."), {"0": "conv1", "1": "bn1", "2": "act", "3": "conv2", "4": "bn2"}
    parts = {"conv_block3": "tail.1", "conv3": "tail.1", "conv_block1": "head", "conv1": "head"}
    return parts_renamed(
        state,
        parts,
        {
            r"(?:conv_block2|conv2)\.([01])(?=\.)": lambda m: f"body.{blocks + int(m[1])}",
            r"trunk\.(\d+)\.rcb\.([0-4])(?=\.)": lambda m: f"body.{m[1]}.{layers[m[2]]}",
            r"upsampling\.(\d+)\.upsample_block\.([02])(?=\.)": lambda m: f"tail.0.{3 * int(m[1]) + int(m[2])}",
        },
    )


def _slopes_of_twtygqyy(state: State) -> dict[str, torch.Tensor]:
    """The slopes of the PReLUs, which are all the same, because this implementation has LeakyReLUs."""
    slope, blocks, stages_end = torch.tensor([0.2]), count(state, r"body\.(\d+)\.conv1\."), count(state, r"tail\.0\.(\d+)\.")
    names = ["head.1", *(f"body.{i}.act" for i in range(blocks)), *(f"tail.0.{i + 2}" for i in range(0, stages_end, 3))]
    return {f"{name}.weight": slope for name in names}


def _is_twtygqyy(state: State) -> bool:
    return "conv_input.weight" in state and matches(state, r"residual\.\d+\.bn1\.")


_LORNATANG = ("conv_block1.0.weight", "conv1.0.weight")
LAYOUTS = (
    Layout(
        "conv_in",
        ("conv_in.weight",),
        lambda state: "conv_in.weight" in state,
        _conv_in,
        constants=lambda state: {UNIT_RANGE: torch.ones(1)},
    ),
    Layout("lornatang", _LORNATANG, lambda state: matches(state, r"trunk\.\d+\.rcb\."), _lornatang, 1),
    Layout("twtygqyy", ("conv_input.weight",), _is_twtygqyy, _twtygqyy, 1, _slopes_of_twtygqyy),
)


@dataclass(frozen=True)
class SRResNetSpec(NetworkSpec):
    """The hyper-parameters of one SRResNet.

    scale: 2, 3 or 4. blocks, channels: the numbers of residual blocks and of feature channels. bias: true where the first, the
    upsampler's and the last convolutions have a bias (those before a BatchNorm never do). slopes: the number of slopes of each
    PReLU, one for all channels (1) or one for each (`channels`). unit_range: true where the weights expect pixels in 0..1 and give
    -1..1; the module itself takes and gives 0..255.
    """

    network = "srresnet"
    title = "SRResNet"
    called = "SRResNet with BatchNorm"
    known_by = "'body.0.bn1.weight' with 'head.0.weight' or 'conv_in.weight', or 'trunk.0.rcb.0.weight'"
    anchor = "head.0.weight"
    layouts = LAYOUTS

    scale: int
    blocks: int
    channels: int
    bias: bool = False
    slopes: int = 1
    unit_range: bool = False
    res_scale: float = 1.0

    def __post_init__(self) -> None:
        self.check_sizes("blocks", "channels")
        if self.slopes not in (1, self.channels):
            raise ValueError(f"SRResNetSpec: slopes must be 1 or {self.channels}, the channels, got {self.slopes}")

    def build(self) -> Graph:
        b, c, bias = Builder(), self.channels, self.bias

        def norm(name: str, x: str) -> str:
            return b.add(BatchNorm(name, (x,), name, c))

        def prelu(name: str, x: str) -> str:
            return b.add(Activation(name, (x,), "prelu", key=name, slopes=self.slopes))

        x = b.add(Affine("to_range", ("x",), divisor=255.0)) if self.unit_range else "x"
        first = y = prelu("head.1", b.conv("head.0", x, (3, c), 9, role="end", bias=bias))
        for i in range(self.blocks):
            name = f"body.{i}"
            inner = norm(f"{name}.bn1", b.conv(f"{name}.conv1", y, (c, c), bias=False, body=True))
            inner = b.conv(f"{name}.conv2", prelu(f"{name}.act", inner), (c, c), bias=False, body=True)
            y = b.sum(f"{name}.add", norm(f"{name}.bn2", inner), y, self.res_scale)
        y = norm(f"body.{self.blocks + 1}", b.conv(f"body.{self.blocks}", y, (c, c), bias=False))
        y = b.sum("body", y, first)
        for i, factor in enumerate(stages(self.scale)):
            y = b.conv(f"tail.0.{3 * i}", y, (c, c * factor**2), role="end", bias=bias)
            y = prelu(f"tail.0.{3 * i + 2}", b.shuffle(f"tail.0.{3 * i + 1}", y, factor))
        y = b.conv("tail.1", y, (c, 3), 9, role="end", bias=bias)
        if not self.unit_range:
            return b.graph(y)
        return b.graph(b.add(Affine("from_range", (y,), (127.5,), (1.0,), first="shift")), {UNIT_RANGE: (1,)})

    @classmethod
    def fits(cls, state: State) -> bool:
        return matches(state, r"body\.\d+\.bn1\.")

    @classmethod
    def read(cls, state: State, res_scale: float) -> SRResNetSpec:
        for key, axes in (("head.0.weight", 4), ("head.1.weight", 1), ("tail.0.0.weight", 4)):
            if key not in state or state[key].ndim != axes:
                raise ValueError(f"the state dict looks like an SRResNet ('body.0.bn1') but lacks {key!r} with {axes} axes")
        channels = state["head.0.weight"].shape[0]
        return cls(
            scale=4 if "tail.0.3.weight" in state else scale_of(state, "tail.0.0.weight", channels),
            blocks=count(state, r"body\.(\d+)\.conv1\."),
            channels=channels,
            bias="head.0.bias" in state,
            slopes=state["head.1.weight"].numel(),
            unit_range=UNIT_RANGE in state,
            res_scale=res_scale,
        )

    @classmethod
    def of_scale_8(cls, state: State) -> str:
        return "tail.0.6.weight" if cls.fits(state) and "tail.0.6.weight" in state else ""


class SRResNet(FloatNetwork):
    """The float network of an `SRResNetSpec`."""
