"""Where a picture has one colour, a network of integers gives the same result at every pixel, which is computed only once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_BLOCK = 64  # rows that are compared at a time


class Rect(NamedTuple):
    """A rectangle of pixels: the rows top..bottom and the columns left..right, where bottom and right are excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> int:
        return max(self.bottom - self.top, 0) * max(self.right - self.left, 0)

    def moved(self, down: int, right: int = 0) -> Rect:
        return Rect(self.top + down, self.bottom + down, self.left + right, self.right + right)

    def union(self, other: Rect) -> Rect:
        """The smallest rectangle that holds both."""
        return Rect(
            min(self.top, other.top), max(self.bottom, other.bottom), min(self.left, other.left), max(self.right, other.right)
        )

    def overlap(self, other: Rect) -> Rect:
        """The part that both rectangles share, of area 0 where there is none."""
        return Rect(
            max(self.top, other.top), min(self.bottom, other.bottom), max(self.left, other.left), min(self.right, other.right)
        )

    def outside(self, other: Rect) -> list[Rect]:
        """The part of this rectangle outside another, as up to four rectangles."""
        parts = [
            Rect(self.top, other.top, self.left, self.right),
            Rect(other.bottom, self.bottom, self.left, self.right),
            Rect(other.top, other.bottom, self.left, other.left),
            Rect(other.top, other.bottom, other.right, self.right),
        ]
        return [part for part in parts if part.area]


def busy(pixels: np.ndarray, kept: Rect, radius: int) -> Rect | None:
    """A rectangle within `kept` that holds all of its pixels that see more than one colour within `radius`. It may be a row or a
    column too large. None where there are no such pixels.

    pixels: [H, W, channels], with `radius` pixels around `kept`, or fewer where the picture ends.
    """
    top, left = max(kept.top - radius, 0), max(kept.left - radius, 0)
    seen = pixels[top : kept.bottom + radius, left : kept.right + radius]
    height, width, channels = seen.shape
    rows, values = np.zeros(height, bool), np.zeros((width, channels), bool)  # which rows and values differ from those before them
    for first in range(0, height, _BLOCK):
        block = seen[first : first + _BLOCK]
        across = block[:, 1:] != block[:, :-1]
        above = max(first - 1, 0)
        down = seen[above + 1 : first + _BLOCK] != seen[above : first + len(block) - 1]
        rows[first : first + len(block)] |= across.reshape(len(block), -1).any(1)
        rows[above + 1 : first + len(block)] |= down.reshape(len(down), -1).any(1)
        values[1:] |= across.any(0)
        values |= down.any(0)
    y, x = np.flatnonzero(rows), np.flatnonzero(values.any(1))
    if not len(y):
        return None
    reached = Rect(top + y[0] - radius, top + y[-1] + radius + 1, left + x[0] - radius, left + x[-1] + radius + 1)
    return Rect(*map(int, reached.overlap(kept)))


def patch_side(radius: int) -> int:
    """The side in pixels of the smallest patch of one colour that has a pixel of every kind: for each border, one at each distance
    up to the radius, and one that is further away."""
    return 2 * radius + 1


def spread(patch: np.ndarray, out: np.ndarray, place: Rect, height: int, width: int, radius: int) -> None:
    """Fills a place of one colour in a picture with the network's results for a patch of this colour.

    patch: the network's output for a patch of n = `patch_side` pixels a side, [scale * n, scale * n, channels]. out: the output at
    the place, [scale * h, scale * w, channels], which is written. height, width: the size of the low-resolution picture, at least n
    each.
    """
    scale = len(patch) // patch_side(radius)
    columns = (_kinds(place.left, place.right, width, radius)[:, None] * scale + np.arange(scale)).ravel()
    rows = np.unique(_kinds(place.top, place.bottom, height, radius), return_index=True, return_counts=True)
    for kind, first, count in zip(*rows, strict=True):
        band = patch[scale * kind : scale * (kind + 1), columns]
        for row in range(first, first + count):
            out[scale * row : scale * (row + 1)] = band


def _kinds(first: int, last: int, size: int, radius: int) -> np.ndarray:
    """For the pixels first..last of an axis, the indexes of the pixels of the patch that lie alike to the borders."""
    at = np.arange(first, last)
    return np.minimum(at, radius) + np.maximum(at - (size - 1 - radius), 0)
