"""The names that public implementations give to the parts of a network, and the names of AdaBM's authors for the same parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

State = Mapping[str, torch.Tensor]

# No network has nearly as many. A damaged or hostile file must not lead to a network that takes minutes and gigabytes to build.
MAX_BLOCKS = 1000  # blocks of a network, or layers of a block
MAX_CHANNELS = 1 << 16  # pixels a side of the kernels
MAX_WEIGHT = 1e9  # the largest magnitude of a weight: no trained one comes near, and products of a few stay finite in float32
_MOST_DIGITS = 6  # the most digits of a number in a name


def is_factor(value: object) -> bool:
    """Whether a value is a number from 0 to MAX_WEIGHT."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MAX_WEIGHT


def adabm_name(key: str) -> str:
    """The AdaBM name of a weight that EDSR-PyTorch calls `key`: `body.0.body.2.bias` is `body.0.conv2.bias`."""
    return re.sub(r"^(body\.\d+)\.body\.([02])\.", lambda m: f"{m[1]}.conv{1 + int(m[2]) // 2}.", key)


def as_adabm(state: State) -> dict[str, str]:
    return {key: adabm_name(key) for key in state}


def nothing(state: State) -> dict[str, torch.Tensor]:
    return {}


def unchanged(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return state


def one_scale(state: State) -> dict[str, dict[str, torch.Tensor]]:
    return {}


@dataclass(frozen=True)
class Layout:
    """How an implementation calls the parts of a network, and what it does beside its weights: the range of pixels that it computes
    in, its mean colour.

    name: see `Detected.layout`. anchors: keys of the first convolution's weight, by which a network is found in a checkpoint that
    holds more. fits: whether a state dict without wrappers is of this layout. rename: the AdaBM name of each of its keys.
    rgb_range: of the pixels that it computes with, None where its weights say it. constants: what its code has, from weights under
    AdaBM names. folded: what its weights are in the graph, where that computes the same in fewer steps or of other colours.
    by_scale: the state dicts of the networks for each scale, by "x2" and so on, where its weights are several such or do not say
    which; none where they are one. published: its names are those of the float network here.
    """

    name: str
    anchors: tuple[str, ...]
    fits: Callable[[State], bool]
    rename: Callable[[State], dict[str, str]] = as_adabm
    rgb_range: float | None = None
    constants: Callable[[State], dict[str, torch.Tensor]] = nothing
    folded: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = unchanged
    by_scale: Callable[[State], dict[str, dict[str, torch.Tensor]]] = one_scale
    published: bool = False

    def apply(self, state: State) -> dict[str, torch.Tensor]:
        """The weights under their AdaBM names, with the values that its code adds to them."""
        renamed = {new: state[old] for old, new in self.rename(state).items()}
        return self.folded(renamed | self.constants(renamed))


def check_numbers(state: State) -> None:
    """ValueError where a name has a number that no part of a network has."""
    for key in state:
        if re.search(rf"\d{{{_MOST_DIGITS + 1}}}", key):
            raise _too_many(key)


def _too_many(key: str) -> ValueError:
    return ValueError(f"detect: parts of a network are numbered below {MAX_BLOCKS}, got {shortened(key)!r}")


def count(state: State, pattern: str) -> int:
    """One more than the largest index that the pattern finds at the start of a key. ValueError where no network has so many, or
    this one has fewer values than that."""
    largest, key = max(((int(m[1]), m[0]) for m in (re.match(pattern, key) for key in state) if m), default=(-1, ""))
    if largest >= MAX_BLOCKS:
        raise _too_many(key)
    if largest > len(state):
        raise ValueError(f"detect: parts of a network of {len(state)} values are numbered below that, got {shortened(key)!r}")
    return 1 + largest


def shortened(key: str, most: int = 60) -> str:
    """A name for messages: a hostile file may have one of megabytes."""
    return key if len(key) <= most else f"{key[:most]}..."


def listed(keys: list[str], most: int = 8) -> str:
    """Keys in quotes, the first ones of many."""
    shown = ", ".join(repr(shortened(key)) for key in keys[:most])
    return shown + (f" and {len(keys) - most} more" if len(keys) > most else "")


def matches(state: State, pattern: str) -> bool:
    """Whether a key begins as the pattern says."""
    return any(re.match(pattern, key) for key in state)


def parts_renamed(state: State, parts: Mapping[str, str], patterns: Mapping[str, Callable[[re.Match[str]], str]]) -> dict[str, str]:
    """New names by the part that a key begins with, or by the first pattern that its beginning matches."""

    def rename(key: str) -> str:
        for part, name in parts.items():
            if key.startswith(f"{part}."):
                return name + key[len(part) :]
        for pattern, name_of in patterns.items():
            if m := re.match(pattern, key):
                return name_of(m) + key[m.end() :]
        return key

    return {key: rename(key) for key in state}


SCALES = (2, 3, 4)


def with_each_scale(state: State) -> dict[str, dict[str, torch.Tensor]]:
    """Weights that do for every scale, with a mark of each; none where they have a mark."""
    if any(f"scale_{scale}" in state for scale in SCALES):
        return {}
    return {f"x{scale}": {**state, f"scale_{scale}": torch.ones(1)} for scale in SCALES}


def scale_said(state: State) -> int:
    """The scale that a mark says. Raises ValueError where there is none, or several."""
    found = [scale for scale in SCALES if f"scale_{scale}" in state]
    if len(found) != 1:
        raise ValueError(f"the weights must have one mark of their scale, 'scale_2', 'scale_3' or 'scale_4', got {len(found)}")
    return found[0]


def scale_of(state: State, key: str, channels: int, scales: tuple[int, ...] = (2, 3)) -> int:
    """The scale of a network whose upsampler begins with the weight `key`, which makes `channels` for each sub-pixel.

    Raises ValueError for another number of outputs.
    """
    outputs, per_scale = state[key].shape[0], {channels * scale**2: scale for scale in scales}
    if outputs not in per_scale:
        *most, last = map(str, per_scale)
        raise ValueError(f"{key!r} must have {', '.join(most)} or {last} output channels, got {outputs}")
    return per_scale[outputs]
