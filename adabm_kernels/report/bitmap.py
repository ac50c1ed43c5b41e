"""The bit map of a picture, as a picture and as a matplotlib figure. It shows which bits every patch got in which group of layers,
and where no blocks were computed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch

from ..upscaling.picture import Patch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_BITS, MAX_BITS = 2, 8
# The colours of 2..8 bits, from dark to light: seven steps of matplotlib's "cividis", which people with any colour vision can tell
# apart.
COLOURS = ("#00224e", "#1f3b6e", "#4f576c", "#7d7c78", "#a59c74", "#d3c164", "#fee838")
BLOCKS = "blocks"  # the group name for the share of a network's blocks that was computed
BLOCK_COLOURS = {"no blocks": COLOURS[0], "all blocks": COLOURS[-1]}
_LEGEND = 28  # rows of pixels below the picture


class Area(NamedTuple):
    """A part of a map in low-resolution pixels from the top left, with its value and the colour of this value."""

    x: int
    y: int
    width: int
    height: int
    value: float
    colour: str


@dataclass(frozen=True, eq=False)
class BitMap:
    """The bits of the patches of a picture. width, height: the size of the low-resolution picture. bits: float [patches, groups],
    the mean over the layers of each group.

    patches: the patches, in the order of `bits`. groups: the names of the groups. mean: float [patches], the mean over all adaptive
    convolutions. tile: the side, in low-resolution pixels, of the tiles that have blocks computed or not; None for a network that
    leaves out no blocks.
    """

    width: int
    height: int
    patches: tuple[Patch, ...]
    groups: tuple[str, ...]
    bits: np.ndarray
    mean: np.ndarray
    tile: int | None = None

    def of(self, group: str | None = None) -> np.ndarray:
        """The values of the patches, float [patches]: the bits of one group, or with None the mean over all. For "blocks", where
        the network leaves some out, it is the share of the pixels that have them computed. Raises ValueError, which names the
        groups, for any other group."""
        if group is None:
            return self.mean
        if group == BLOCKS and self.tile is not None:
            return np.array([patch.with_blocks / (patch.height * patch.width) for patch in self.patches])
        if group not in self.groups:
            known = [*self.groups, *([BLOCKS] if self.tile is not None else [])]
            raise ValueError(f"group must be one of {', '.join(known)}, got {group!r}")
        return self.bits[:, self.groups.index(group)]

    def areas(self, group: str | None = None) -> list[Area]:
        """The areas of which a map is drawn: the patches or, for "blocks", the tiles in them, where neighbouring tiles that are
        alike form one area. Raises as `of` does."""
        if group == BLOCKS and self.tile is not None:
            return [area for patch in self.patches for area in _tiles(patch, self.tile)]
        places = ((patch.x, patch.y, patch.width, patch.height) for patch in self.patches)
        return [Area(*place, float(value), colour(value)) for place, value in zip(places, self.of(group), strict=True)]

    def to_image(
        self, picture: PIL.Image.Image | None = None, *, group: str | None = None, opacity: float = 0.6
    ) -> PIL.Image.Image:
        """A Pillow RGB image of the patches in the colours of their bits over the low-resolution picture, with a legend below.

        group: the group of layers; None for the mean over all; "blocks", where the network leaves blocks out, for the tiles that
        have them computed and those that have not. opacity: the opacity of the colours, 0..1. Raises ValueError for another group
        or opacity and for a picture of another size.
        """
        self._check(picture, opacity)
        colours = PIL.Image.new("RGB", (self.width, self.height))
        draw = PIL.ImageDraw.Draw(colours)
        for area in self.areas(group):
            corner = area.x + area.width - 1, area.y + area.height - 1
            draw.rectangle([(area.x, area.y), corner], fill=area.colour, outline=None if group == BLOCKS else "white")
        if picture is not None:
            colours = PIL.Image.blend(picture.convert("RGB"), colours, opacity)
        page = PIL.Image.new("RGB", (max(self.width, 7 * 24), self.height + _LEGEND), "white")
        page.paste(colours)
        steps = legend(group)
        draw, step = PIL.ImageDraw.Draw(page), page.width / len(steps)
        for i, (text, shade) in enumerate(steps.items()):
            box = [(i * step, self.height + 2), ((i + 1) * step - 2, self.height + _LEGEND - 2)]
            draw.rectangle(box, fill=shade)
            text = text if step > 50 else text.split()[0]
            draw.text((i * step + step / 2, self.height + _LEGEND / 2), text, fill=ink(shade), anchor="mm")
        return page

    def to_figure(self, picture: PIL.Image.Image | None = None, *, group: str | None = None, opacity: float = 0.6) -> Figure:
        """A matplotlib figure with the map over the low-resolution picture, and with the bits of every patch in every group of
        layers.

        group, opacity: as in `to_image`, which raises ValueError as this does. Raises ModuleNotFoundError where matplotlib is not
        installed.
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
        title = "blocks computed" if group == BLOCKS else f"bits, {group or 'mean over the layers'}"
        over.set(xlim=(0, self.width), ylim=(self.height, 0), aspect="equal", title=title)
        if picture is not None:
            over.imshow(picture.convert("RGB"), extent=(0, self.width, self.height, 0))
        edge = "none" if group == BLOCKS else "white"
        for area in self.areas(group):
            place = (area.x, area.y), area.width, area.height
            over.add_patch(Rectangle(*place, facecolor=area.colour, edgecolor=edge, alpha=opacity if picture else 1))
        if group == BLOCKS:
            shown = [Rectangle((0, 0), 1, 1, facecolor=shade, label=text) for text, shade in legend(group).items()]
            over.legend(handles=shown, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(shown))
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
    tile = model.exit.tile if any(patch.depths is not None for patch in patches) else None
    return BitMap(width, height, patches, tuple(groups), table, np.array([patch.mean_bits for patch in patches]), tile)


def _tiles(patch: Patch, side: int) -> list[Area]:
    """The tiles of a patch, clipped to it, with the share of their blocks that was computed. Neighbouring tiles of a row with the
    same share form one area."""
    depths = np.ones((1, 1), np.float32) if patch.depths is None else patch.depths
    top, left = patch.y // side * side, patch.x // side * side
    bottom, right = patch.y + patch.height, patch.x + patch.width
    found = []
    for row, shares in enumerate(depths):
        first, last = max(top + row * side, patch.y), min(top + (row + 1) * side, bottom)
        starts = [0, *(np.flatnonzero(np.diff(shares)) + 1)]
        for start, stop in zip(starts, [*starts[1:], len(shares)], strict=True):
            begin, end = max(left + int(start) * side, patch.x), min(left + int(stop) * side, right)
            share = float(shares[start])
            shade = BLOCK_COLOURS["all blocks" if share > 0.5 else "no blocks"]
            found.append(Area(begin, first, end - begin, last - first, share, shade))
    return found


def legend(group: str | None = None) -> dict[str, str]:
    """For each word of the legend, its colour on the map."""
    if group == BLOCKS:
        return BLOCK_COLOURS
    return {f"{bits} bits": shade for bits, shade in enumerate(COLOURS, MIN_BITS)}


def group_name(layer: str) -> str:
    """The group of a layer: its block, or the part of the network to which it belongs ("body.3.conv1" -> "body.3")."""
    found = re.match(r"(?:body|RDBs)\.\d+(?=\.)", layer)
    return found[0] if found else layer.split(".")[0] if not re.match(r"body\.\d+$", layer) else layer


def colour(bits: float) -> str:
    """The colour of a number of bits, which is rounded to a whole number."""
    return COLOURS[int(np.clip(round(float(bits)), MIN_BITS, MAX_BITS)) - MIN_BITS]


def ink(background: str) -> str:
    """Black or white, whichever is easier to read on a colour (relative luminance of WCAG 2, section 1.4.3)."""
    channels = np.array([int(background[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return "#000000" if float(linear @ [0.2126, 0.7152, 0.0722]) > 0.179 else "#ffffff"
