"""EDSR (Lim et al., CVPRW 2017): its graph, and how its state dicts are recognised."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from ..graph.builder import Builder
from ..graph.nodes import ColourShift, Graph
from .convention import DIV2K_PIXELS, SHIFTS, shift_weights
from .float_network import FloatNetwork
from .layouts import MAX_WEIGHT, Layout, State, count, matches, parts_renamed, scale_of
from .spec import NetworkSpec, stages


def _basicsr(state: State) -> dict[str, str]:
    blocks = count(state, r"body\.(\d+)\.")
    parts = {"conv_first": "head.0", "conv_after_body": f"body.{blocks}", "conv_last": "tail.1"}
    return parts_renamed(
        state,
        parts,
        {
            r"upsample\.(\d+)\.upsample_conv(?=\.)": lambda m: f"tail.0.{2 * int(m[1])}",  # mmagic
            r"upsample(?=\.)": lambda m: "tail.0",
        },
    )


def _is_basicsr(state: State) -> bool:
    return "conv_after_body.weight" in state and matches(state, r"body\.\d+\.conv1\.")


_BASICSR = ("conv_first.weight",)
LAYOUTS = (
    Layout(
        "mmagic",
        _BASICSR,
        lambda state: _is_basicsr(state) and matches(state, r"upsample\.\d+\.upsample_conv\."),
        _basicsr,
        1,
        lambda state: shift_weights(DIV2K_PIXELS, 1),
    ),
    Layout("basicsr", _BASICSR, _is_basicsr, _basicsr, 255, lambda state: shift_weights(DIV2K_PIXELS)),
    Layout("edsr_pytorch", ("head.0.weight",), lambda state: matches(state, r"body\.\d+\.body\.[02]\."), published=True),
)


@dataclass(frozen=True)
class EDSRSpec(NetworkSpec):
    """The hyper-parameters of one EDSR.

    scale: 2, 3 or 4. blocks, channels: the numbers of residual blocks and of feature channels, at least 1 each.
    mean_shift: true where a mean colour is subtracted before the network and added after it (`sub_mean`, `add_mean`).
    tail: "staged" = conv, PixelShuffle, ..., conv (EDSR); "single" = one conv to 3*scale^2 channels, then PixelShuffle.
    res_scale: the factor on the second convolution of each block (0.1 in the largest EDSR, else 1).
    mean: the mean colour in 0..255, as float32 values; DIV2K's in published weights.
    """

    network = "edsr"
    title = called = "EDSR"
    known_by = (
        "'head.0.weight' with 'body.0.body.0.weight' or 'body.0.conv1.weight'; or 'conv_first.weight' with 'body.0.conv1.weight' "
        "and 'conv_after_body.weight'"
    )
    anchor = "head.0.weight"
    layouts = LAYOUTS
    takes_mean_shift = True

    scale: int
    blocks: int
    channels: int
    mean_shift: bool = True
    tail: str = "staged"
    res_scale: float = 1.0
    mean: tuple[float, float, float] = DIV2K_PIXELS

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))  # it is a list where it comes from JSON
        if len(self.mean) != 3 or not all(isinstance(value, float) and abs(value) <= MAX_WEIGHT for value in self.mean):
            raise ValueError(f"EDSRSpec: mean must be three numbers of at most {MAX_WEIGHT:g} in magnitude, got {self.mean}")
        self.check_sizes("blocks", "channels")
        if self.tail not in ("staged", "single"):
            raise ValueError(f"EDSRSpec: tail must be 'staged' or 'single', got {self.tail!r}")

    def published(self, name: str) -> str:
        return re.sub(r"^(body\.\d+)\.conv([12])$", lambda m: f"{m[1]}.body.{2 * int(m[2]) - 2}", name)

    def build(self) -> Graph:
        b, c, shift = Builder(), self.channels, self.mean_shift
        x = b.add(ColourShift("sub_mean", ("x",), "sub_mean", -1, self.mean)) if shift else "x"
        first = y = b.conv("head.0", x, (3, c), role="end")
        for i in range(self.blocks):
            inner = b.relu(f"body.{i}.act", b.conv(f"body.{i}.conv1", y, (c, c), body=True))
            y = b.sum(f"body.{i}", b.conv(f"body.{i}.conv2", inner, (c, c), body=True), y, self.res_scale)
        y = b.sum("body", b.conv(f"body.{self.blocks}", y, (c, c)), first)
        single = self.tail == "single"
        for i, factor in enumerate((self.scale,) if single else stages(self.scale)):
            name = f"tail.0.{2 * i}"
            y = b.conv(name, y, (c, (3 if single else c) * factor**2), role="end")
            y = b.shuffle(f"{name}.shuffle", y, factor)
        y = y if single else b.conv("tail.1", y, (c, 3), role="end")
        return b.graph(b.add(ColourShift("add_mean", (y,), "add_mean", 1, self.mean)) if shift else y)

    @classmethod
    def fits(cls, state: State) -> bool:
        first, blocks = state.get("head.0.weight"), count(state, r"body\.(\d+)\.conv1\.")
        conv1 = blocks > 0 and matches(state, r"body\.\d+\.conv1\.weight$")
        return conv1 and first is not None and first.ndim == 4 and not matches(state, r"body\.\d+\.bn1\.")

    @classmethod
    def read(cls, state: State, res_scale: float) -> EDSRSpec:
        first = state.get("tail.0.0.weight")
        if first is None or first.ndim != 4:
            raise ValueError("the scale cannot be read: 'tail.0.0.weight' is missing or not a convolution's weight")
        staged = "tail.1.weight" in state
        if staged and "tail.0.2.weight" in state:
            scale = 4
        else:
            channels, scales = (first.shape[1], (2, 3)) if staged else (3, (2, 3, 4))
            scale = scale_of(state, "tail.0.0.weight", channels, scales)
        return cls(
            scale=scale,
            blocks=count(state, r"body\.(\d+)\.conv1\.weight$"),
            channels=state["head.0.weight"].shape[0],
            mean_shift=any(key.startswith(SHIFTS) for key in state),
            tail="staged" if staged else "single",
            res_scale=res_scale,
        )

    @classmethod
    def of_scale_8(cls, state: State) -> str:
        single = state.get("tail.0.0.weight")
        if "tail.1.weight" not in state and single is not None and single.ndim == 4 and single.shape[0] == 3 * 8**2:
            return "tail.0.0.weight"
        return "tail.0.4.weight" if "tail.0.4.weight" in state else ""

    @classmethod
    def completed(cls, state: State, mean_shift: bool) -> dict[str, torch.Tensor]:
        """The state, with the weights of a mean shift where one is asked for (`reading` gives its colour), and with biases of zero
        where all convolutions before the upsampler lack them, as CADyQ's do."""
        whole = dict(state) | (shift_weights(DIV2K_PIXELS) if mean_shift else {})
        blocks = count(state, r"body\.(\d+)\.conv1\.")
        convs = ["head.0", *(f"body.{i}.conv{j}" for i in range(blocks) for j in (1, 2)), f"body.{blocks}"]
        if not any(f"{name}.bias" in state for name in convs):
            whole |= {f"{n}.bias": torch.zeros(w.shape[:1]) for n in convs if (w := state.get(f"{n}.weight")) is not None}
        return whole


class EDSR(FloatNetwork):
    """The float network of an `EDSRSpec`."""
