"""How pictures are cut into windows: how large the windows are, which of them are computed together, and how much memory that
takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import machine
from .picture import from_to
from .windows import Span, patches, spans

if TYPE_CHECKING:
    from ..images import Layout

TILE_HALOS = 48  # Sides of a window in halos: (1 + 2 / 48)^2 is 1.085, so that overlapping costs 9 % at most.
SMALLEST_TILE = 16
# These sides of windows are tried in turn when memory is short.
TILES = (4096, 2048, 1024, 768, 512, 384, 256, 192, 128, 96, 64, 48, 32, SMALLEST_TILE)
BATCH_PIXELS = {"cpu": 1 << 16, "cuda": 1 << 20}  # low-resolution pixels that a batch of small windows may have
JOINED_PIXELS = 1 << 20  # the most low-resolution pixels of windows that are computed as one
RESERVE = 64 << 20  # bytes that are left for the codecs


class TooLittleMemory(ValueError):
    """What the process may hold does not suffice for a picture."""


@dataclass(frozen=True)
class Beside:
    """The memory that other stages of the work on a picture hold beside its windows: `fixed` bytes, and `share` bytes for each byte
    of a band of output."""

    fixed: int = 0
    share: float = 0.0


@dataclass(frozen=True)
class Cutting:
    """How pictures are cut into windows for a network on its present device. All lengths are in low-resolution pixels.

    scale: the network's scale. radius: the radius of its receptive field. tile: the side of the square that a window keeps; 0 for
    the whole picture, None for `default_tile` or less where max_memory asks for it. halo: how many pixels around the square are
    computed too. grid: all windows except the last of an axis begin at multiples of this. phase: all windows begin at multiples of
    this. paper: whether AdaBM's patches take the place of windows. device: the type of the device. bytes_per_pixel: the bytes that
    a forward pass holds for each pixel. max_memory: the bytes that the process may hold, None for no bound. beside: the memory that
    is held beside the windows.
    """

    scale: int
    radius: int
    tile: int | None
    halo: int
    grid: int
    phase: int
    paper: bool
    device: str
    bytes_per_pixel: int
    max_memory: int | None
    beside: Beside

    @property
    def batch_pixels(self) -> int:
        """The most low-resolution pixels of a batch of small windows."""
        return BATCH_PIXELS.get(self.device, BATCH_PIXELS["cpu"])

    def windows(self, height: int, width: int, layout: Layout | None = None) -> tuple[list[Span], list[Span]]:
        """The rows and the columns of the windows. layout: the layout of the picture, from which follows what max_memory allows;
        None does not apply max_memory.

        Raises TooLittleMemory where max_memory does not allow the smallest tile.
        """
        if self.paper:
            found = patches(height), patches(width)
        elif self.tile is not None:
            found = self._cut(height, width, self.tile)
        else:
            tile = default_tile(min(self.halo, self.radius))
            found = self._cut(height, width, tile)
            smaller = iter([t for t in TILES if t < tile])
            while self._too_much(found, layout) and (following := next(smaller, None)):
                found = self._cut(height, width, following)
        if self.max_memory is not None and (needed := self._too_much(found, layout)):
            window = "x".join(str(max(span.length for span in axis)) for axis in reversed(found))
            raise TooLittleMemory(
                f"max_memory must be at least {format_bytes(needed)} for {width}x{height} pixels in windows of {window}, "
                f"got {format_bytes(self.max_memory)}"
            )
        return found

    def groups(self, rows: list[Span], width: int, layout: Layout | None = None) -> tuple[list[list[Span]], int]:
        """Two values: the rows of windows in groups that are computed together, and the most pixels of windows that are computed as
        one, 0 where windows stay apart. A group has as many rows as could be one window across the whole picture."""
        for count in range(len(rows), 0, -1):
            groups = [rows[first : first + count] for first in range(0, len(rows), count)]
            joined = self._joined_pixels([from_to(group[0], group[-1]) for group in groups], layout)
            if max(group[-1].stop - group[0].start for group in groups) * width <= joined:
                break
        return groups, joined

    def held_bytes(self, rows: list[Span], layout: Layout) -> int:
        """The bytes of two bands of output, of what later stages make of them, and of the picture's rows for them."""
        largest = max(span.length for span in rows)
        kept = max(span.last - span.first for span in rows)
        bands = min(2, len(rows)) * kept * self.scale**2 * layout.row_bytes
        return int(bands * (1 + self.beside.share)) + 2 * largest * layout.row_bytes

    def _cut(self, height: int, width: int, tile: int) -> tuple[list[Span], list[Span]]:
        return spans(height, tile, self.halo, self.grid, self.phase), spans(width, tile, self.halo, self.grid, self.phase)

    def _too_much(self, found: tuple[list[Span], list[Span]], layout: Layout | None) -> int:
        """The bytes that these windows need, 0 where they are allowed."""
        if self.max_memory is None or layout is None:
            return 0
        needed = self.needed_bytes(*found, layout)
        return needed if needed > self.max_memory else 0

    def needed_bytes(self, rows: list[Span], columns: list[Span], layout: Layout) -> int:
        """The most bytes that the process will hold: `_bytes_beside` and one batch."""
        largest = math.prod(max(span.length for span in axis) for axis in (rows, columns))
        batch = max(largest, min(self.batch_pixels, layout.width * layout.height))
        return self._bytes_beside(rows, layout) + batch * self._bytes_per_pixel(layout)

    def _bytes_per_pixel(self, layout: Layout) -> int:
        """Bytes that a batch holds for each of its pixels. With alpha, the enlarged colours are held too, until the enlarged alpha
        is there."""
        return self.bytes_per_pixel + (12 * self.scale**2 if layout.alpha else 0)

    def _bytes_beside(self, rows: list[Span], layout: Layout) -> int:
        """Bytes that the process holds now, and will hold for these windows besides a batch of them."""
        return machine.resident_bytes() + RESERVE + self.beside.fixed + self.held_bytes(rows, layout)

    def _joined_pixels(self, rows: list[Span], layout: Layout | None) -> int:
        """The most pixels of windows that are computed as one where the picture comes in these rows; 0 where windows stay apart."""
        if self.paper or self.device != "cpu":  # in all other cases windows of one shape make batches
            return 0
        if self.max_memory is None or layout is None:
            return JOINED_PIXELS
        return min(JOINED_PIXELS, (self.max_memory - self._bytes_beside(rows, layout)) // self._bytes_per_pixel(layout))


def default_tile(halo: int) -> int:
    """The side in pixels of the square that a window keeps, chosen so that the halo costs at most 9 % more pixels."""
    return max(TILE_HALOS * halo, 256)


def format_bytes(count: float) -> str:
    """A number of bytes in words: "1.5 GB"."""
    for unit, size in (("GB", 1 << 30), ("MB", 1 << 20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"
