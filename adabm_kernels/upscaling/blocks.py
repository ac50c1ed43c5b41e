"""Where in a window the network's blocks were computed, for networks that leave them out in easy tiles of a picture."""

from __future__ import annotations

import numpy as np

from ..regions import Depths
from .flat import Rect
from .picture import Window


class Blocks:
    """The tiles of a picture in which blocks were computed for a window."""

    def __init__(self, tile: int, depths: Depths | None, window: Window):
        rows, columns = window.rows, window.columns
        self._tile, self._first = tile, (rows.start // tile, columns.start // tile)
        self._seen = Rect(rows.start, rows.stop, columns.start, columns.stop)
        counts = [-(-span.stop // tile) - span.start // tile for span in (rows, columns)]
        self._hard = np.full(counts, window.needed is not None) if depths is None else depths.values[0].numpy() > 0

    def pixels(self, cell: Rect) -> int:
        """The number of pixels of a cell for which blocks were computed."""
        seen = cell.overlap(self._seen)
        if seen.area == 0:
            return 0
        rows, columns = self._sizes(seen.top, seen.bottom), self._sizes(seen.left, seen.right)
        return int(rows @ self._part(seen).astype(np.int64) @ columns)

    def tiles(self, cell: Rect) -> np.ndarray:
        """The share of the blocks that was computed in each tile of a cell (`Patch.depths`)."""
        tile, seen = self._tile, cell.overlap(self._seen)
        top, left = cell.top // tile, cell.left // tile
        found = np.zeros((-(-cell.bottom // tile) - top, -(-cell.right // tile) - left), np.float32)
        if seen.area:
            part = self._part(seen)
            row, column = seen.top // tile - top, seen.left // tile - left
            found[row : row + part.shape[0], column : column + part.shape[1]] = part
        return found

    def _part(self, place: Rect) -> np.ndarray:
        """In which tiles of a place blocks were computed. Each of these tiles holds at least one pixel."""
        ends = (place.top, place.bottom), (place.left, place.right)
        index = [slice(a // self._tile - at, -(-b // self._tile) - at) for (a, b), at in zip(ends, self._first, strict=True)]
        return self._hard[tuple(index)]

    def _sizes(self, first: int, last: int) -> np.ndarray:
        """For each tile of an axis, how many of its pixels are in first..last."""
        edges = np.arange(first // self._tile, -(-last // self._tile) + 1) * self._tile
        return np.diff(edges.clip(first, last))
