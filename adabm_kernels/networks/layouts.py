"""What public implementations call the parts of an EDSR, an RDN and an SRResNet, and the names of AdaBM's authors for the same.

A layout also says what its implementation does beside its weights: which range of pixels it computes in, which mean colour.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .edsr import MeanShift
from .spec import MAX_BLOCKS
from .srresnet import UNIT_RANGE

State = Mapping[str, torch.Tensor]

# The first convolution of every layout: what a network is found by in a checkpoint that holds more.
ANCHORS = (
    "head.0.weight",
    "conv_first.weight",
    "SFENet1.weight",
    "sfe1.weight",
    "conv_in.weight",
    "conv_input.weight",
    "conv_block1.0.weight",
    "conv1.0.weight",
    "conv_block1.conv_block.0.weight",
)

# Networks of other kinds that people bring, by a key of theirs, and what keeps them from being converted.
_OTHERS = (
    (
        r"(conv_hr|HRconv|upconv1|upsample1\.upsample_conv)\.weight$",
        r"conv_after_body\.",
        "an MSRResNet (the SRResNet of BasicSR and mmagic) or a network built like it, which adds a bilinear enlargement of the "
        "picture to its output and has no convolution after its blocks: the integer networks do otherwise",
    ),
    (
        r"(model\.)?1\.sub\.\d+\.(RDB1\.|res\.)",
        None,
        "an SRResNet or RRDBNet in the layout of BasicSR before 2020, whose upsampler has activations and a convolution more than "
        "the integer networks have",
    ),
    (r"(RRDB_trunk\.\d+\.|body\.\d+\.rdb1\.)", None, "an RRDBNet (ESRGAN, Real-ESRGAN)"),
    (
        r"conv_block1\.conv_block\.0\.",
        None,
        "an SRResNet of sgrvinod's tutorial, which ends in a tanh and takes pixels normalised by ImageNet's mean and deviation: "
        "the integer networks compute neither",
    ),
    (r"residual\.\d+\.in1\.", None, "an SRResNet with InstanceNorm, which depends on the picture: only BatchNorm is supported"),
    (r"body\.\d+\..*conv_du\.", None, "an RCAN, whose channel attention depends on the picture"),
    (r"pre_process\.\d+\.", None, "an MDSR, which has an upsampler for each of several scales"),
    (r"layers\.\d+\.residual_group\.", None, "a SwinIR or HAT"),
    (r"body\.\d+\.(bitsel\d|quant_act\d)\.", None, "a network that CADyQ has quantised: convert the float weights instead"),
)


@dataclass(frozen=True)
class Layout:
    """name: see `Detected.layout`. rename: the AdaBM name of each of its keys. rgb_range: of the pixels that it computes with, None
    where its weights say it. shifts: it subtracts DIV2K's mean colour and adds it again, as constants of its code."""

    name: str
    rename: Callable[[State], dict[str, str]]
    rgb_range: float | None = None
    shifts: bool = False

    def apply(self, state: State) -> dict[str, torch.Tensor]:
        """The weights under their AdaBM names, with the values that its code adds to them."""
        renamed = {new: state[old] for old, new in self.rename(state).items()}
        return renamed | _constants(self, renamed)


def layout_of(state: State) -> Layout:
    """The layout of a state dict without wrappers; "adabm" where it is none that is known."""
    return next(layout for layout, fits in _LAYOUTS if fits(state))


def why_not(state: State) -> str:
    """In words, which known network this is that cannot be converted, and why; empty where it is none of those."""
    for pattern, without, words in _OTHERS:
        if _any(state, pattern) and not (without and _any(state, without)):
            return words
    return ""


def adabm_name(key: str) -> str:
    """The AdaBM name of a weight that EDSR-PyTorch calls `key`: `body.0.body.2.bias` is `body.0.conv2.bias`."""
    return re.sub(r"^(body\.\d+)\.body\.([02])\.", lambda m: f"{m[1]}.conv{1 + int(m[2]) // 2}.", key)


def count(state: State, pattern: str) -> int:
    """One more than the largest index that the pattern finds at the start of a key. ValueError where no network has so many."""
    largest, key = max(((int(m[1]), m[0]) for m in (re.match(pattern, key) for key in state) if m), default=(-1, ""))
    if largest >= MAX_BLOCKS:
        raise ValueError(f"detect: parts of a network are numbered below {MAX_BLOCKS}, got {shortened(key)!r}")
    return 1 + largest


def shortened(key: str, most: int = 60) -> str:
    """A name for messages: a hostile file may have one of megabytes."""
    return key if len(key) <= most else f"{key[:most]}..."


def _any(state: State, pattern: str) -> bool:
    return any(re.match(pattern, key) for key in state)


def _constants(layout: Layout, state: State) -> dict[str, torch.Tensor]:
    if layout.name == "conv_in":
        return {UNIT_RANGE: torch.ones(1)}
    if layout.shifts:
        mean = torch.tensor(MeanShift(1).bias.tolist()) * ((layout.rgb_range or 255) / 255)
        one = torch.eye(3).view(3, 3, 1, 1)
        return {"sub_mean.weight": one, "sub_mean.bias": -mean, "add_mean.weight": one, "add_mean.bias": mean}
    if layout.name == "twtygqyy":  # its activations are LeakyReLUs of this slope
        slope, blocks, stages = torch.tensor([0.2]), count(state, r"body\.(\d+)\.conv1\."), count(state, r"tail\.0\.(\d+)\.")
        names = ["head.1", *(f"body.{i}.act" for i in range(blocks)), *(f"tail.0.{i + 2}" for i in range(0, stages, 3))]
        return {f"{name}.weight": slope for name in names}
    return {}


def _as_adabm(state: State) -> dict[str, str]:
    return {key: adabm_name(key) for key in state}


def _parts(state: State, parts: Mapping[str, str], patterns: Mapping[str, Callable[[re.Match], str]]) -> dict[str, str]:
    """New names by the part that a key begins with, or by the first pattern that its beginning matches."""

    def rename(key: str) -> str:
        for part, name in parts.items():
            if key.startswith(f"{part}."):
                return name + key[len(part) :]
        for pattern, name in patterns.items():
            if m := re.match(pattern, key):
                return name(m) + key[m.end() :]
        return key

    return {key: rename(key) for key in state}


def _basicsr(state: State) -> dict[str, str]:
    blocks = count(state, r"body\.(\d+)\.")
    parts = {"conv_first": "head.0", "conv_after_body": f"body.{blocks}", "conv_last": "tail.1"}
    return _parts(
        state,
        parts,
        {
            r"upsample\.(\d+)\.upsample_conv(?=\.)": lambda m: f"tail.0.{2 * int(m[1])}",  # mmagic
            r"upsample(?=\.)": lambda m: "tail.0",
        },
    )


def _conv_in(state: State) -> dict[str, str]:
    blocks = count(state, r"body\.(\d+)\.")
    parts = {"conv_in": "head.0", "prelu_in": "head.1", "conv_mid": f"body.{blocks}", "bn_mid": f"body.{blocks + 1}"}
    return _parts(
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
    return _parts(state, parts, {r"residual(?=\.)": lambda m: "body", r"upscale4x(?=\.)": lambda m: "tail.0"})


def _lornatang(state: State) -> dict[str, str]:
    blocks, layers = count(state, r"trunk\.(\d+)\."), {"0": "conv1", "1": "bn1", "2": "act", "3": "conv2", "4": "bn2"}
    parts = {"conv_block3": "tail.1", "conv3": "tail.1", "conv_block1": "head", "conv1": "head"}
    return _parts(
        state,
        parts,
        {
            r"(?:conv_block2|conv2)\.([01])(?=\.)": lambda m: f"body.{blocks + int(m[1])}",
            r"trunk\.(\d+)\.rcb\.([0-4])(?=\.)": lambda m: f"body.{m[1]}.{layers[m[2]]}",
            r"upsampling\.(\d+)\.upsample_block\.([02])(?=\.)": lambda m: f"tail.0.{3 * int(m[1]) + int(m[2])}",
        },
    )


def _yjn870(state: State) -> dict[str, str]:
    stages = count(state, r"upscale\.(\d+)\.")
    parts = {"sfe1": "SFENet1", "sfe2": "SFENet2", "gff": "GFF", "upscale": "UPNet", "output": f"UPNet.{stages + 1}"}
    return _parts(
        state,
        parts,
        {
            r"rdbs\.(\d+)\.layers\.(\d+)\.conv(?=\.)": lambda m: f"RDBs.{m[1]}.convs.{m[2]}.conv.0",
            r"rdbs\.(\d+)\.lff(?=\.)": lambda m: f"RDBs.{m[1]}.LFF",
        },
    )


def _is_basicsr(state: State) -> bool:
    return "conv_after_body.weight" in state and _any(state, r"body\.\d+\.conv1\.")


_LAYOUTS: tuple[tuple[Layout, Callable[[State], bool]], ...] = (
    (Layout("conv_in", _conv_in), lambda state: "conv_in.weight" in state),
    (Layout("mmagic", _basicsr, 1, True), lambda state: _is_basicsr(state) and _any(state, r"upsample\.\d+\.upsample_conv\.")),
    (Layout("basicsr", _basicsr, 255, True), _is_basicsr),
    (Layout("yjn870", _yjn870, 1), lambda state: "sfe1.weight" in state),
    (Layout("lornatang", _lornatang, 1), lambda state: _any(state, r"trunk\.\d+\.rcb\.")),
    (Layout("twtygqyy", _twtygqyy, 1), lambda state: "conv_input.weight" in state and _any(state, r"residual\.\d+\.bn1\.")),
    (Layout("edsr_pytorch", _as_adabm), lambda state: _any(state, r"body\.\d+\.body\.[02]\.")),
    (Layout("adabm", _as_adabm), lambda state: True),
)
