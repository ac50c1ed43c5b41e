"""Where a picture is cut: windows that overlap by a halo, or AdaBM's patches."""

from __future__ import annotations

import math
from dataclasses import dataclass

PATCH = 96  # The side in low-resolution pixels of the patches, without overlap, into which AdaBM's own test commands cut pictures.
_ALIGNMENT = 4  # the kernels' tiles fill multiples of this, and a window is at most this much larger than it must be


@dataclass(frozen=True)
class Span:
    """A window along one axis. The pixels start..stop are computed, and of these the pixels first..last are kept."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def length(self) -> int:
        """The number of pixels that are computed."""
        return self.stop - self.start


def spans(size: int, tile: int, halo: int, grid: int = 1, phase: int = 1) -> list[Span]:
    """The windows of one axis in order. The parts that they keep cover each of the `size` pixels of the axis once. All windows have
    the same length, except that the last may be shorter because of `phase`.

    tile: the most pixels that a window keeps; 0 makes one window of the whole axis. A window keeps somewhat more where its length
    is rounded up to a multiple of 4, `grid` and `phase`, and windows at the ends keep their halo at the border too. halo: how many
    pixels on either side of the kept part are computed too; there are none beyond the border of the picture. grid: windows begin at
    multiples of this number of pixels, except the last; the halo must be such a multiple. phase: all windows, the last included,
    begin at multiples of this number of pixels; the halo must be such a multiple.
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

    Patches of PATCH pixels lie side by side as long as a whole one fits, and the last patch reaches to the end of the axis. An axis
    shorter than PATCH has one patch.
    """
    starts = range(0, max(size - PATCH, 0) + 1, PATCH)
    ends = [*starts[1:], size]
    return [Span(start, stop, start, stop) for start, stop in zip(starts, ends, strict=True)]
