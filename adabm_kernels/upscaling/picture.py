"""A picture while a network computes it: its rows, its windows, and which windows are computed as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from .flat import Rect, busy, patch_side
from .smooth import Smooth
from .windows import Span

if TYPE_CHECKING:
    from ..images import Layout


@dataclass(frozen=True)
class Patch:
    """The report of one computed window: where the part that it keeps lies, in low-resolution pixels from the top left, and what
    the window cost.

    offset: the bits that the window got more or less. mean_bits: the mean bits of the window (`ConvertedNetwork.mean_bits`).
    seconds: the window's share of the time of its batch. flat: the number of pixels that the network did not compute, because they
    are interpolated (smooth.py) or see only one colour (flat.py). deep: the number of pixels for which all blocks of the network
    were computed; None for a network that leaves out no blocks, which computes them for all pixels except `flat`. depths: the share
    of the blocks that was computed in each tile, float32 [rows, columns] from the tile in which the window's first pixel lies; None
    as for `deep`.
    """

    y: int
    x: int
    height: int
    width: int
    offset: int
    mean_bits: float
    seconds: float
    flat: int = 0
    deep: int | None = None
    depths: np.ndarray | None = field(default=None, compare=False)

    @property
    def with_blocks(self) -> int:
        """The number of pixels for which all blocks of the network were computed."""
        return self.height * self.width - self.flat if self.deep is None else self.deep


def reading(rows: np.ndarray) -> Callable[[int], np.ndarray]:
    """A function that gives the next rows of a picture in memory."""
    top = 0

    def read(count: int) -> np.ndarray:
        nonlocal top
        top += count
        return rows[top - count : top]

    return read


class Rows(NamedTuple):
    """Some rows of a picture. pixels: [n, W, channels]. top: the place of the first of these rows in the picture."""

    pixels: np.ndarray
    top: int

    def window(self, rows: Span, columns: Span) -> np.ndarray:
        """The pixels that a window computes."""
        return self.pixels[rows.start - self.top : rows.stop - self.top, columns.start : columns.stop]

    def part(self, place: Rect) -> np.ndarray:
        return self.pixels[place.top - self.top : place.bottom - self.top, place.left : place.right]

    def busy(self, kept: Rect, radius: int) -> Rect | None:
        """A rectangle that holds the pixels of `kept` that see more than one colour (`flat.busy`), in places of the picture."""
        found = busy(self.pixels, kept.moved(-self.top), radius)
        return None if found is None else found.moved(self.top)

    def pixel(self, place: Rect) -> np.ndarray:
        """The first pixel of a place, [channels]."""
        return self.pixels[place.top - self.top, place.left]


@dataclass(frozen=True)
class Picture:
    """The state of one picture while it is computed.

    smooth: whether smooth areas are interpolated. radius: how far a pixel of the output sees, in low-resolution pixels; 0 where a
    window may not shrink to the part that needs computing. joined: the most pixels of windows that are computed as one, 0 where
    windows stay apart. patches: the network's results for patches of one colour, by everything that decides about such a result.
    record: the list to which windows are appended, or None.
    """

    layout: Layout
    smooth: bool
    radius: int
    joined: int
    patches: dict[tuple, np.ndarray]
    record: list[Patch] | None

    def add(self, patches: list[Patch]) -> None:
        if self.record is not None:
            self.record.extend(patches)


@dataclass(frozen=True)
class Band:
    """Rows of windows of a picture that are computed together.

    held: the rows of the picture that the windows see. first: the first low-resolution row that they keep. out: their output,
    [scale * rows, scale * W, channels], which is written.
    """

    picture: Picture
    held: Rows
    first: int
    out: np.ndarray


@dataclass
class Window:
    """A window, or several windows that are computed as one.

    rows, columns: the rows and columns that are computed, and those of them that are kept. cells: the part that each of the joined
    windows keeps. offsets: the bits more or less, int32 [N], for the colours and, where alpha varies, for the alpha; None for a
    float network. opacity: the value of an alpha that does not vary, None without alpha. varies: whether alpha varies. needed: a
    rectangle of the kept part that holds all pixels to be computed, None where there are none. smooth: the parts whose colours are
    interpolated, and how far. alpha_smooth: the parts whose varying alpha is interpolated. flat: the parts that are not computed.
    results: the network's results by their place in `offsets`, as floats [scale*h, scale*w, 3], or uint8 where the network writes
    the finished pixels. band: the band that it belongs to, None for a window of a tensor.
    """

    rows: Span
    columns: Span
    cells: list[Rect]
    offsets: list[torch.Tensor | None]
    opacity: np.unsignedinteger | None = None
    varies: bool = False
    needed: Rect | None = None
    smooth: list[Smooth] = field(default_factory=list)
    alpha_smooth: list[Smooth] = field(default_factory=list)
    flat: list[Rect] = field(default_factory=list)
    results: dict[int, np.ndarray] = field(default_factory=dict)
    band: Band | None = None

    @property
    def kept(self) -> Rect:
        return kept_by(self.rows, self.columns)

    def take(self, other: Window, most: int) -> bool:
        """Takes a neighbour into this window if both got the same bits and have at most `most` pixels together. The neighbour must
        be the next one in the row, or one below of the same width. Returns whether it was taken."""
        rows, columns = from_to(self.rows, other.rows), from_to(self.columns, other.columns)
        beside = self.rows == other.rows and self.columns.last == other.columns.first
        below = self.columns == other.columns and self.rows.last == other.rows.first
        if not (beside or below) or rows.length * columns.length > most:
            return False
        if self.varies or other.varies or self.opacity != other.opacity:  # a varying alpha has bits of its own
            return False
        own, others = self.offsets[0], other.offsets[0]
        if own is not None and others is not None and not torch.equal(own, others):
            return False
        # If only one of the windows needs computing, the rectangle around both would have the other one computed too.
        if (self.needed is None) != (other.needed is None):
            return False
        self.rows, self.columns = rows, columns
        self.cells += other.cells
        self.smooth += other.smooth
        if self.needed is not None and other.needed is not None:
            self.needed = self.needed.union(other.needed)
        return True

    def shrink(self, picture: Picture) -> None:
        """Leaves out the pixels that need no computing: the whole window or, where windows may have any size, the pixels around the
        part that needs computing.

        Leaving out interpolated pixels costs nothing. For flat pixels, patches of their colours must be computed. These are at most
        two, since flat neighbours have the same colour, so leaving flat pixels out must save more than two patches.
        """
        if self.needed is None:
            self.flat = [self.kept]
            return
        layout, radius = picture.layout, picture.radius
        rows = _around(self.needed.top, self.needed.bottom, radius, layout.height)
        columns = _around(self.needed.left, self.needed.right, radius, layout.width)
        saved = self.rows.length * self.columns.length - rows.length * columns.length
        cost = 0 if picture.smooth else 2 * patch_side(radius) ** 2
        if radius and picture.joined and not self.varies and saved > cost:
            self.flat = self.kept.outside(self.needed)
            self.rows, self.columns = rows, columns


def joined_windows(windows: list[list[Window]], most: int) -> list[Window]:
    """The windows, given in rows, after neighbours with the same bits were joined to windows of at most `most` pixels: first those
    beside each other, then those below each other."""
    joined: list[Window] = []
    above: list[Window] = []
    for row in windows:
        wide: list[Window] = []
        for window in row:
            if not wide or not wide[-1].take(window, most):
                wide.append(window)
        following = []
        for window in wide:
            taken = next((other for other in above if other.take(window, most)), None)
            if taken is None:
                joined.append(window)
            following.append(taken or window)
        above = following
    return joined


def from_to(first: Span, last: Span) -> Span:
    """One span that covers two spans and everything between them."""
    return Span(first.start, last.stop, first.first, last.last)


def _around(first: int, last: int, halo: int, size: int) -> Span:
    return Span(max(first - halo, 0), min(last + halo, size), first, last)


def kept_by(rows: Span, columns: Span) -> Rect:
    """The rectangle that a window keeps."""
    return Rect(rows.first, rows.last, columns.first, columns.last)


def part_of(out: np.ndarray, place: Rect, first: int, scale: int) -> np.ndarray:
    """The part of a band of output that belongs to a low-resolution place. The band begins with low-resolution row `first`."""
    return out[scale * (place.top - first) : scale * (place.bottom - first), scale * place.left : scale * place.right]
