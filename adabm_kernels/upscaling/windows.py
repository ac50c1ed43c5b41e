"""Where a picture is cut: windows that overlap by a halo, or AdaBM's patches."""

from __future__ import annotations

import math
from dataclasses import dataclass

PATCH = 96  # low-resolution pixels a side, without overlap, as AdaBM's own test commands cut pictures
_ALIGNMENT = 4  # the kernels' tiles fill multiples of this, and a window is at most this much larger than it must be


@dataclass(frozen=True)
class Span:
    """Pixels start..stop of one axis are computed, first..last of them kept."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def length(self) -> int:
        """Pixels that are computed."""
        return self.stop - self.start


def spans(size: int, tile: int, halo: int, grid: int = 1, phase: int = 1) -> list[Span]:
    """Windows of one axis, in order, of one length but for what `phase` takes off the last; what they keep covers the axis once.

    tile: pixels that one keeps at most, somewhat more where its length is rounded up to a multiple of 4 and `grid`; those at the
    ends keep the halo that lies at the border too. halo: pixels computed on either side of what is kept; at the border of the
    picture there are none, as in the whole picture. grid: windows begin at multiples of so many pixels, but for the last, where the
    halo is one. phase: all windows begin at multiples of so many pixels, of which the halo is one.
    Tile 0 makes one window of everything.
    """
    if not tile or size <= tile + 2 * halo:
        return [Span(0, size, 0, size)]
    count = -(-(size - 2 * halo) // tile)
    length = -(-(size + 2 * halo * (count - 1)) // count)  # as even as possible
    alignment = math.lcm(_ALIGNMENT, grid, phase)
    length = min(-(-length // alignment) * alignment, size)
    count = -(-(size - 2 * halo) // (length - 2 * halo))  # alignment may have made the last windows superfluous
    starts = [min(i * (length - 2 * halo), size - length) for i in range(count)]
    cuts = [0, *(start + length - halo for start in starts[:-1]), size]
    starts[-1] = -(-starts[-1] // phase) * phase
    stops = [*(start + length for start in starts[:-1]), size]
    return [Span(*span, *cut) for span, cut in zip(zip(starts, stops, strict=True), zip(cuts, cuts[1:], strict=False), strict=True)]


def patches(size: int) -> list[Span]:
    """AdaBM's test patches of one axis.

    Patches of PATCH pixels lie side by side as long as a whole one fits; the last of them reaches to the end. An axis shorter
    than PATCH has one.
    """
    starts = range(0, max(size - PATCH, 0) + 1, PATCH)
    ends = [*starts[1:], size]
    return [Span(start, stop, start, stop) for start, stop in zip(starts, ends, strict=True)]
