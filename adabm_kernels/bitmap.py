"""The bit map of a picture: which bits every patch got in which group of layers, as a picture and as a matplotlib figure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch

from .picture import Patch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_BITS, MAX_BITS = 2, 8
# 2..8 bits, from dark to light, told apart with any colour vision: seven steps of matplotlib's "cividis".
COLOURS = ("#00224e", "#1f3b6e", "#4f576c", "#7d7c78", "#a59c74", "#d3c164", "#fee838")
_LEGEND = 28  # rows of pixels below the picture


@dataclass(frozen=True, eq=False)
class BitMap:
    """width, height: of the low-resolution picture. bits: float [patches, groups], the mean over the layers of a group.

    patches: in the order of `bits`. groups: names. mean: float [patches], over all adaptive convolutions.
    """

    width: int
    height: int
    patches: tuple[Patch, ...]
    groups: tuple[str, ...]
    bits: np.ndarray
    mean: np.ndarray

    def of(self, group: str | None = None) -> np.ndarray:
        """float [patches]: of one group, or the mean over all. ValueError names the groups."""
        if group is None:
            return self.mean
        if group not in self.groups:
            raise ValueError(f"group must be one of {', '.join(self.groups)}, got {group!r}")
        return self.bits[:, self.groups.index(group)]

    def to_image(
        self, picture: PIL.Image.Image | None = None, *, group: str | None = None, opacity: float = 0.6
    ) -> PIL.Image.Image:
        """The patches in the colours of their bits over the low-resolution picture, with a legend below: a Pillow RGB image.

        group: of layers, None for the mean over all. opacity: of the colours, 0..1. Raises ValueError for another group or opacity
        and for a picture of another size.
        """
        self._check(picture, opacity)
        colours = PIL.Image.new("RGB", (self.width, self.height))
        draw = PIL.ImageDraw.Draw(colours)
        for patch, bits in zip(self.patches, self.of(group), strict=True):
            corner = patch.x + patch.width - 1, patch.y + patch.height - 1
            draw.rectangle([(patch.x, patch.y), corner], fill=colour(bits), outline="white")
        if picture is not None:
            colours = PIL.Image.blend(picture.convert("RGB"), colours, opacity)
        page = PIL.Image.new("RGB", (max(self.width, 7 * 24), self.height + _LEGEND), "white")
        page.paste(colours)
        draw, step = PIL.ImageDraw.Draw(page), page.width / 7
        for i, value in enumerate(range(MIN_BITS, MAX_BITS + 1)):
            box = [(i * step, self.height + 2), ((i + 1) * step - 2, self.height + _LEGEND - 2)]
            draw.rectangle(box, fill=COLOURS[i])
            text = f"{value} bits" if step > 50 else str(value)
            draw.text((i * step + step / 2, self.height + _LEGEND / 2), text, fill=ink(COLOURS[i]), anchor="mm")
        return page

    def to_figure(self, picture: PIL.Image.Image | None = None, *, group: str | None = None, opacity: float = 0.6) -> Figure:
        """A matplotlib figure: the map over the low-resolution picture, and every patch by every group of layers.

        group, opacity, ValueError: as `to_image`. Raises ModuleNotFoundError where matplotlib is not installed.
        """
        self._check(picture, opacity)
        try:
            from matplotlib.colors import BoundaryNorm, ListedColormap
            from matplotlib.figure import Figure
            from matplotlib.patches import Rectangle
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "to_figure: matplotlib is not installed; it comes with adabm-kernels[figure]; to_image does without",
                name=error.name,
            ) from error

        colours = ListedColormap(COLOURS)
        norm = BoundaryNorm(np.arange(MIN_BITS, MAX_BITS + 2) - 0.5, colours.N)
        figure = Figure(figsize=(11, 5), layout="constrained")
        over, table = figure.subplots(1, 2)
        over.set(xlim=(0, self.width), ylim=(self.height, 0), aspect="equal", title=f"bits, {group or 'mean over the layers'}")
        if picture is not None:
            over.imshow(picture.convert("RGB"), extent=(0, self.width, self.height, 0))
        for patch, bits in zip(self.patches, self.of(group), strict=True):
            place = (patch.x, patch.y), patch.width, patch.height
            over.add_patch(Rectangle(*place, facecolor=colour(bits), edgecolor="white", alpha=opacity if picture else 1))
        drawn = table.imshow(self.bits, cmap=colours, norm=norm, aspect="auto", interpolation="nearest")
        table.set(xticks=range(len(self.groups)), ylabel="patch", title="patch by group of layers")
        table.set_xticklabels(self.groups, rotation=90)
        figure.colorbar(drawn, ax=table, ticks=range(MIN_BITS, MAX_BITS + 1), label="bits")
        return figure

    def _check(self, picture: PIL.Image.Image | None, opacity: float) -> None:
        if not 0 <= opacity <= 1:
            raise ValueError(f"opacity must be in 0..1, got {opacity}")
        if picture is not None and picture.size != (self.width, self.height):
            raise ValueError(f"picture must be {self.width}x{self.height}, got {picture.width}x{picture.height}")


def bit_map(model: Any, patches: Sequence[Patch], width: int, height: int) -> BitMap:
    """The bit map of a picture of width x height low-resolution pixels from its patches, as `upscale(..., record=patches)` lists
    them, in reading order."""
    if not patches:
        raise ValueError("patches must hold at least one patch, got none")
    patches = tuple(sorted(patches, key=lambda patch: (patch.y, patch.x)))
    offsets = torch.tensor([patch.offset for patch in patches], dtype=torch.int32)
    layers = model.layer_bits(None, offset=offsets)
    groups: dict[str, list[torch.Tensor]] = {}
    for name, bits in layers.items():
        groups.setdefault(group_name(name), []).append(bits.float())
    table = np.stack([torch.stack(bits).mean(0).cpu().numpy() for bits in groups.values()], 1)
    return BitMap(width, height, patches, tuple(groups), table, np.array([patch.mean_bits for patch in patches]))


def group_name(layer: str) -> str:
    """The group of a layer: its block, or the part of the network it belongs to ("body.3.conv1" -> "body.3")."""
    found = re.match(r"(?:body|RDBs)\.\d+(?=\.)", layer)
    return found[0] if found else layer.split(".")[0] if not re.match(r"body\.\d+$", layer) else layer


def colour(bits: float) -> str:
    """The colour of a number of bits, rounded to whole ones."""
    return COLOURS[int(np.clip(round(float(bits)), MIN_BITS, MAX_BITS)) - MIN_BITS]


def ink(background: str) -> str:
    """Black or white, whichever is easier to read on a colour (relative luminance of WCAG 2, section 1.4.3)."""
    channels = np.array([int(background[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return "#000000" if float(linear @ [0.2126, 0.7152, 0.0722]) > 0.179 else "#ffffff"
