"""The names that public implementations give to the parts of a network, and the names of AdaBM's authors for the same parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

State = Mapping[str, torch.Tensor]

# Real networks stay far below these limits. A damaged or hostile file must not lead to a network that takes minutes and gigabytes
# to build.
MAX_BLOCKS = 1000  # blocks of a network, or layers of a block
MAX_CHANNELS = 1 << 16  # channels of a tensor, or any other number of a specification
MAX_WEIGHT = 1e9  # the largest magnitude of a weight: no trained one comes near, and products of a few stay finite in float32
_MOST_DIGITS = 6  # the most digits of a number in a name


def is_factor(value: object) -> bool:
    """Returns whether a value is a number from 0 to MAX_WEIGHT."""
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
    """The names that an implementation gives to the parts of a network, and what its code does beside the weights: the range of its
    pixels and its mean colour.

    name: the name of the layout, see `Detected.layout`. anchors: the keys of the first convolution's weight, by which a network is
    found in a checkpoint that holds more. fits: tells whether a state dict without wrappers has this layout. rename: gives the
    AdaBM name of each key.
    rgb_range: the range of the pixels that the implementation computes with; None where its weights tell it. constants: gives the
    values that stand in its code, from the weights under AdaBM names. folded: turns these weights into those of the graph, where
    the graph computes the same in fewer steps, or from RGB what the implementation computes from other colours.
    by_scale: gives the state dicts of the networks for each scale, by "x2" and so on, where one state dict holds several networks
    or does not tell the scale; an empty dict where it is one network. published: true where the names are those of the float
    network in this project.
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
        """The weights under their AdaBM names, with the values that the implementation's code adds to them."""
        renamed = {new: state[old] for old, new in self.rename(state).items()}
        return self.folded(renamed | self.constants(renamed))


def check_numbers(state: State) -> None:
    """Raises ValueError where a name contains a number that is too large for a part of a network."""
    for key in state:
        if re.search(rf"\d{{{_MOST_DIGITS + 1}}}", key):
            raise _too_many(key)


def _too_many(key: str) -> ValueError:
    return ValueError(f"detect: parts of a network are numbered below {MAX_BLOCKS}, got {shortened(key)!r}")


def count(state: State, pattern: str) -> int:
    """One more than the largest index that the pattern finds at the start of a key; 0 where it finds none. Raises ValueError where
    no network has so many parts, or where the state has fewer values than that."""
    largest, key = max(((int(m[1]), m[0]) for m in (re.match(pattern, key) for key in state) if m), default=(-1, ""))
    if largest >= MAX_BLOCKS:
        raise _too_many(key)
    if largest > len(state):
        raise ValueError(f"detect: parts of a network of {len(state)} values are numbered below that, got {shortened(key)!r}")
    return 1 + largest


def shortened(key: str, most: int = 60) -> str:
    """A name for messages, shortened because a hostile file may have a name of megabytes."""
    return key if len(key) <= most else f"{key[:most]}..."


def listed(keys: list[str], most: int = 8) -> str:
    """Keys in quotes for a message; of many keys only the first ones, and the number of the others."""
    shown = ", ".join(repr(shortened(key)) for key in keys[:most])
    return shown + (f" and {len(keys) - most} more" if len(keys) > most else "")


def matches(state: State, pattern: str) -> bool:
    """Returns whether the beginning of any key matches the pattern."""
    return any(re.match(pattern, key) for key in state)


def parts_renamed(state: State, parts: Mapping[str, str], patterns: Mapping[str, Callable[[re.Match[str]], str]]) -> dict[str, str]:
    """The new name of each key. parts: new names for the parts that keys begin with. patterns: for the other keys, patterns of
    beginnings, each with a function that gives the new beginning; the first that matches is used."""

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
    """The same weights for every scale, each time with a mark of the scale; an empty dict where they already have such a mark."""
    if any(f"scale_{scale}" in state for scale in SCALES):
        return {}
    return {f"x{scale}": {**state, f"scale_{scale}": torch.ones(1)} for scale in SCALES}


def scale_said(state: State) -> int:
    """The scale that the mark in a state dict says. Raises ValueError where there is no mark, or where there are several."""
    found = [scale for scale in SCALES if f"scale_{scale}" in state]
    if len(found) != 1:
        raise ValueError(f"the weights must have one mark of their scale, 'scale_2', 'scale_3' or 'scale_4', got {len(found)}")
    return found[0]


def scale_of(state: State, key: str, channels: int, scales: tuple[int, ...] = (2, 3)) -> int:
    """The scale of a network whose upsampler begins with the weight `key`, which makes `channels` channels for each sub-pixel.

    Raises ValueError where the weight has a number of outputs that belongs to none of `scales`.
    """
    outputs, per_scale = state[key].shape[0], {channels * scale**2: scale for scale in scales}
    if outputs not in per_scale:
        *most, last = map(str, per_scale)
        raise ValueError(f"{key!r} must have {', '.join(most)} or {last} output channels, got {outputs}")
    return per_scale[outputs]
