"""SPAN (Wan et al., "Swift Parameter-free Attention Network", CVPRW 2024): its graph, and how its state dicts are recognised."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from ..graph.builder import Builder
from ..graph.nodes import Activation, Affine, Concat, Graph, Multiply
from .convention import DIV2K_PIXELS
from .layouts import Layout, State, listed, matches, parts_renamed, scale_of
from .spec import UNIT_RANGE, NetworkSpec

BLOCKS, LAYERS = 6, 3  # the number of blocks with attention, and of convolutions in each
NO_NORM = "no_norm"  # the key of a buffer of one element, which marks networks that subtract no mean colour
_FIRST = "stem.weight"


def _renamed(state: State) -> dict[str, str]:
    """New names. The names of the parts of a convolution that is written as several stay behind the new name of that
    convolution."""
    parts = {"conv_1": "stem", "conv_2": "after", "conv_cat": "merge", "upsampler.0": "last"}
    blocks = {r"block_([1-9])\.c([1-9])_r(?=\.)": lambda m: f"spab.{int(m[1]) - 1}.convs.{int(m[2]) - 1}"}
    return parts_renamed(state, parts, blocks)


def _published(name: str) -> str:
    """The name that the authors give to a convolution of the graph."""
    block = re.sub(r"spab\.(\d)\.convs\.(\d)", lambda m: f"block_{int(m[1]) + 1}.c{int(m[2]) + 1}_r", name)
    return {"stem": "conv_1", "after": "conv_2"}.get(name, block)


def _as_one(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights, with each Conv3XC turned into the one convolution of 3x3 that it computes. A Conv3XC is a row of convolutions of
    1x1, 3x3 and 1x1, beside which there is one of 1x1.

    Its own `eval_conv` is that convolution only where it was saved after training. It is used only where no other weights are
    there.
    """
    found = dict(state)
    for name in dict.fromkeys(m[1] for key in state if (m := re.match(r"((?:stem|after|spab\.\d\.convs\.\d))\.", key))):
        parts = {key[len(name) + 1 :]: state[key] for key in state if key.startswith(f"{name}.")}
        if "weight" in parts:
            continue
        for part in parts:
            del found[f"{name}.{part}"]
        evaluated = all(part.startswith("eval_conv.") for part in parts)
        made = (parts.get("eval_conv.weight"), parts.get("eval_conv.bias")) if evaluated else _collapsed(name, parts)
        found |= {f"{name}.{part}": value for part, value in zip(("weight", "bias"), made, strict=True) if value is not None}
    return found | {UNIT_RANGE: torch.ones(1)}


def _collapsed(name: str, parts: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    names = ("sk", "conv.0", "conv.1", "conv.2")
    weights = [parts.get(f"{part}.weight") for part in names]
    sizes = [tuple(weight.shape) for weight in weights if weight is not None]
    k, c = (sizes[0] + (0, 0))[:2]
    inner, outer = ((sizes[i] + (0,))[0] for i in (1, 2)) if len(sizes) == 4 else (0, 0)
    if sizes != [(k, c, 1, 1), (inner, c, 1, 1), (outer, inner, 3, 3), (k, outer, 1, 1)]:
        rule = "convolutions of 1x1, 3x3 and 1x1 beside one of 1x1"
        raise ValueError(f"detect: {_published(name)!r} must be {rule}, got weights of {sizes}")
    sk, first, middle, last = (weight.double().flatten(2) for weight in weights if weight is not None)
    whole = torch.einsum("ko,oit,ic->kct", last[..., 0], middle, first[..., 0])
    whole[..., 4] += sk[..., 0]
    biases = [parts.get(f"{part}.bias") for part in names]
    if any(bias is None or bias.shape != weight[:1] for bias, weight in zip(biases, sizes, strict=True)):
        return whole.view(k, c, 3, 3).float(), None
    sk_bias, b1, b2, b3 = (bias.double() for bias in biases if bias is not None)
    bias = last[..., 0] @ (middle.sum(2) @ b1 + b2) + b3 + sk_bias
    return whole.view(k, c, 3, 3).float(), bias.float()


@dataclass(frozen=True)
class SPANSpec(NetworkSpec):
    """The hyper-parameters of one SPAN, whose blocks compute (y + x) * (sigmoid(y) - 0.5).

    scale: 1, 2, 3 or 4. channels: the number of features. norm: true where the network subtracts DIV2K's mean colour from pixels in
    0..255, as the authors' does; otherwise it takes pixels as they are. It gives pixels in 0..1. unit_range: true where it also
    takes pixels in 0..1, which it cannot with norm.
    """

    network = "span"
    title = called = "SPAN"
    article = "a"
    known_by = "'conv_1.sk.weight' or 'conv_1.eval_conv.weight' with 'block_1.c1_r.eval_conv.weight'"
    anchor = _FIRST
    scales = (1, 2, 3, 4)
    layouts = (
        Layout(
            "span",
            ("conv_1.sk.weight", "conv_1.eval_conv.weight"),
            lambda state: matches(state, r"conv_1\.(sk|eval_conv)\.") and matches(state, r"block_1\.c1_r\."),
            _renamed,
            folded=_as_one,
        ),
    )
    says_range = True
    module_forms = frozenset({((3, 3), (1, 1), (0, 0), (1, 1), 1)})  # in a Conv3XC, whose input is padded beforehand

    scale: int
    channels: int = 48
    norm: bool = True
    unit_range: bool = True

    def __post_init__(self) -> None:
        self.check_sizes("channels")
        if self.norm and not self.unit_range:
            raise ValueError("SPANSpec: rgb_range must be 1 for a SPAN that subtracts a mean colour, got 255")

    @property
    def any_order(self) -> bool:
        return not self.norm

    def build(self) -> Graph:
        b, c, x = Builder(), self.channels, "x"
        if self.norm:
            x = b.add(Affine("sub_mean", ("x",), shift=tuple(-value for value in DIV2K_PIXELS)))
        elif self.unit_range:
            x = b.add(Affine("to_range", ("x",), divisor=255.0))
        first = y = b.conv("stem", x, (3, c), role="end")
        kept = []
        for i in range(BLOCKS):
            entry = y
            for j in range(LAYERS):
                name = f"spab.{i}.convs.{j}"
                y = b.conv(name, y, (c, c), body=True)
                y = b.add(Activation(f"{name}.act", (y,), "silu")) if j + 1 < LAYERS else y
                kept += [y] if j == 0 else []  # the activation of the authors' code changes its input in place
            weigh = b.add(Activation(f"spab.{i}.sigmoid", (y,), "sigmoid"))
            weigh = b.add(Affine(f"spab.{i}.attention", (weigh,), shift=(-0.5,)))
            y = b.add(Multiply(f"spab.{i}", (b.sum(f"spab.{i}.sum", y, entry), weigh)))
            kept += [y] if i == 0 else []
        joined = b.add(Concat("joined", (first, b.conv("after", y, (c, c)), kept[1], kept[-1])))
        y = b.conv("last", b.conv("merge", joined, (4 * c, c), 1), (c, 3 * self.scale**2), role="end")
        y = b.shuffle("last.shuffle", y, self.scale)
        y = b.add(Affine("from_range", (y,), (255.0,))) if self.unit_range else y
        marks = [*([UNIT_RANGE] if self.unit_range else []), *([] if self.norm else [NO_NORM])]
        return b.graph(y, {mark: (1,) for mark in marks})

    @classmethod
    def fits(cls, state: State) -> bool:
        return _FIRST in state and matches(state, r"spab\.\d\.")

    @classmethod
    def read(cls, state: State, res_scale: float) -> SPANSpec:
        first, last = state[_FIRST], state.get("last.weight")
        if first.ndim != 4 or last is None or last.ndim != 4:
            raise ValueError(f"the state dict looks like a SPAN but lacks its first or last convolution, got {listed(list(state))}")
        return cls(scale_of(state, "last.weight", 3, cls.scales), len(first), NO_NORM not in state, UNIT_RANGE in state)
