"""A picture on its way through a network: its rows, its windows, and which of them are computed as one."""

from __future__ import annotations

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
    """One window as it was computed: what it keeps, in low-resolution pixels from the top left, and at what cost.

    offset: bits more or less that its picture got. mean_bits: over the adaptive convolutions. seconds: its share of what it was
    computed with. flat: pixels that were not computed by the network: they are interpolated (smooth.py), or what they see has one
    colour (flat.py). deep: pixels with all blocks of the network computed; None where the network leaves out no blocks: all but
    `flat`. depths: share of the blocks of each of its tiles that were computed, float32 [rows, columns] from the tile its first
    pixel lies in; None likewise.
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
        """Pixels with all blocks of the network computed."""
        return self.height * self.width - self.flat if self.deep is None else self.deep


class Rows(NamedTuple):
    """Some rows of a picture. pixels: [n, W, channels]. top: the first one's place."""

    pixels: np.ndarray
    top: int

    def window(self, rows: Span, columns: Span) -> np.ndarray:
        """The computed part of a window."""
        return self.pixels[rows.start - self.top : rows.stop - self.top, columns.start : columns.stop]

    def part(self, place: Rect) -> np.ndarray:
        return self.pixels[place.top - self.top : place.bottom - self.top, place.left : place.right]

    def busy(self, kept: Rect, radius: int) -> Rect | None:
        """See `flat.busy`."""
        found = busy(self.pixels, kept.moved(-self.top), radius)
        return None if found is None else found.moved(self.top)

    def pixel(self, place: Rect) -> np.ndarray:
        """[channels], the first of a place."""
        return self.pixels[place.top - self.top, place.left]


@dataclass(frozen=True)
class Picture:
    """A picture on its way.

    smooth: whether smooth areas are interpolated. radius: how far a pixel sees, where a window may shrink to what needs computing,
    else 0. joined: the most pixels that windows may have as one, 0 where they stay apart. patches: of one colour, by
    what decides about them. record: takes the windows, or None.
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


@dataclass
class Window:
    """A window, or several as one.

    rows, columns: what is computed and what is kept. cells: what each window keeps. offsets: int32 [N] of its colours and, where
    alpha varies, of its alpha; None where there are none. opacity: value of an alpha that does not vary, None without. needed: a
    part of what it keeps with all that is to be computed, None where nothing is. smooth: how far its colours are interpolated.
    alpha_smooth: the same of an alpha that varies. flat: the parts that are not computed. results: of the
    network, [scale*h, scale*w, 3] floats, or uint8 where finished, by place in `offsets`.
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

    @property
    def kept(self) -> Rect:
        return kept_by(self.rows, self.columns)

    def take(self, other: Window, most: int) -> bool:
        """Span a neighbour too, the next in a row or one below as wide, if it got the same bits and both have no more pixels than
        that."""
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
        # a window that needs no computing would lie within the rectangle of both
        if (self.needed is None) != (other.needed is None):
            return False
        self.rows, self.columns = rows, columns
        self.cells += other.cells
        self.smooth += other.smooth
        if self.needed is not None and other.needed is not None:
            self.needed = self.needed.union(other.needed)
        return True

    def shrink(self, picture: Picture) -> None:
        """Leave out what needs no computing: all of the window, or, where windows may have any size, what lies around the rest.

        What is interpolated costs nothing to leave out. What is flat takes patches to be computed: two colours at most, as flat
        neighbours have the same one, so that leaving it out must save more than two patches.
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
    """Rows of windows with neighbours of the same bits as one, of at most so many pixels: first those beside each other, then those
    below each other."""
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
    """One span over two spans and everything between them."""
    return Span(first.start, last.stop, first.first, last.last)


def _around(first: int, last: int, halo: int, size: int) -> Span:
    return Span(max(first - halo, 0), min(last + halo, size), first, last)


def kept_by(rows: Span, columns: Span) -> Rect:
    """The rectangle that a window keeps."""
    return Rect(rows.first, rows.last, columns.first, columns.last)


def part_of(out: np.ndarray, place: Rect, first: int, scale: int) -> np.ndarray:
    """A place in a band of output whose first row is low-resolution row `first`."""
    return out[scale * (place.top - first) : scale * (place.bottom - first), scale * place.left : scale * place.right]
