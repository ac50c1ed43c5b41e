"""Pictures in another size, row by row: the bicubic of `resize` with sums that are exact, so that no order of them shows."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from .resize import taps

if TYPE_CHECKING:
    from .images import Layout

# Weights and samples are whole numbers of some unit, and a double's 53 bits hold every sum of their products: weights have 22 bits
# and add up to 1.25 in size at most, in each of the two directions. Of samples of 8 bits both directions are one such sum; others
# are rounded to 30 bits in between.
_WEIGHTS = float(1 << 22)
_SAMPLE_BITS = 30
_OUTPUTS = 16  # that one matrix makes: more of them multiply more zeros, fewer are more products
_ROWS = 64  # of the picture that are taken at a time
# What BLAS multiplies on the calling thread: beside other work its threads wait for each other longer than all of this takes.
_PRODUCTS = 1 << 18
_PADDING = 8  # doubles, a line of the cache: rows a power of two apart would share their places in it


@dataclass(frozen=True)
class _Block:
    """Some outputs along an axis. first: the first of them. low: the first source sample. matrix: float64 [outputs, samples]."""

    first: int
    low: int
    matrix: np.ndarray

    @property
    def high(self) -> int:
        return self.low + self.matrix.shape[1]


def _blocks(size: int, new_size: int) -> Iterator[_Block]:
    """The weights of an axis; those of an output add up to exactly 1."""
    for first in range(0, new_size, _OUTPUTS):
        index, weight = taps(np.arange(first, min(first + _OUTPUTS, new_size)), size, new_size / size)
        # Rounded sums rather than rounded weights: the last of them is 1.
        exact = np.diff(np.rint(np.cumsum(weight, 1) * _WEIGHTS), axis=1, prepend=0) / _WEIGHTS
        low, high = int(index.min()), int(index.max()) + 1
        matrix = np.zeros((len(index), high - low))
        np.add.at(matrix, (np.arange(len(index))[:, None], index - low), exact)
        yield _Block(first, low, matrix)


def resample(x: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """float [N, C, H, W] -> [N, C, height, width], of the same type and not clamped."""
    count, channels, rows, columns = x.shape
    y = _last_axis(x.double().reshape(-1, columns), _blocks(columns, width), width)
    y = y.view(-1, rows, width).transpose(1, 2).reshape(-1, rows)
    y = _last_axis(y, _blocks(rows, height), height)
    return y.view(count, channels, width, height).transpose(2, 3).to(x.dtype).contiguous()


def _last_axis(x: torch.Tensor, blocks: Iterable[_Block], new_size: int) -> torch.Tensor:
    """float64 [N, size] -> [N, new_size]."""
    out = x.new_empty(len(x), new_size)
    for block in blocks:
        matrix = torch.from_numpy(block.matrix).to(x.device)
        torch.mm(x[:, block.low : block.high], matrix.T, out=out[:, block.first : block.first + len(matrix)])
    return out


class Resampler:
    """A picture in another size, from the top: `rows` takes its next rows and gives those of the output that are then complete.

    layout: of the picture. width, height: of the output, whose layout is `target`.
    Values are resampled as they are encoded. Colours with transparency are weighted by their alpha, so that what is transparent has
    no part in them. The result is rounded once and does not depend on how many rows are given at a time.
    """

    def __init__(self, layout: Layout, width: int, height: int):
        self.layout, self.target = layout, replace(layout, width=width, height=height)
        self._most = 255 if layout.depth == 8 else 65535
        self._unit = (1 << _SAMPLE_BITS) // (self._most + 1)  # what a step of the picture's values is as a rounded sample
        self._columns = list(_blocks(layout.width, width))
        self._coming = _blocks(layout.height, height)
        self._next = next(self._coming, None)
        self._open: deque[tuple[_Block, np.ndarray]] = deque()  # with their sums so far, [outputs, channels, width and padding]
        self._row = 0
        # Memory that is used again, as a page that is new costs as much as its pixels.
        self._samples = np.empty((_ROWS, layout.channels, layout.width + _PADDING))
        self._across = np.zeros((_ROWS, layout.channels, width + _PADDING))
        self._part = np.empty((_OUTPUTS, _PRODUCTS // _OUTPUTS))
        self._sums: list[np.ndarray] = []

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """[n, W, channels], the next rows -> [m, width, channels], where m may be 0; all are given when the last row was."""
        scale = self.target.height / self.layout.height
        # As many as these rows make, and those that waited for them: of two blocks, and of a filter's reach.
        most = math.ceil(len(rows) * scale) + 2 * _OUTPUTS + 4 * math.ceil(max(scale, 1))
        out = np.empty((min(most, self.target.height), self.target.width, self.target.channels), self.target.dtype)
        done = 0
        for first in range(0, len(rows), _ROWS):
            for sums in self._take(rows[first : first + _ROWS]):
                self._finish(sums, out[done : done + len(sums)])
                self._sums.append(sums)
                done += len(sums)
        return out[:done]

    @classmethod
    def held_bytes(cls, layout: Layout, width: int, height: int) -> int:
        """About what it holds, beside the rows that it takes and gives."""
        down, across = max(layout.height / height, 1), max(layout.width / width, 1)
        open_rows = _OUTPUTS * (2 + (4 * down + _ROWS) / (_OUTPUTS * layout.height / height))
        values = _ROWS * (layout.width + _PADDING) + (_ROWS + open_rows) * (width + _PADDING)
        weights = (_OUTPUTS + 4) * (across * (width + _OUTPUTS) + 3 * down * _OUTPUTS)
        return int(8 * (values * layout.channels + weights + _PRODUCTS))

    def _take(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Add some rows to the outputs that they have a part in; yields the sums of those that are complete."""
        self._resize_across(rows)
        x = self._across[: len(rows)].reshape(len(rows), -1)
        top, bottom = self._row, self._row + len(rows)
        while self._next is not None and self._next.low < bottom:
            self._open.append((self._next, self._empty(len(self._next.matrix))))
            self._next = next(self._coming, None)
        for block, sums in self._open:
            first, last = max(block.low, top), min(block.high, bottom)
            matrix = np.ascontiguousarray(block.matrix[:, first - block.low : last - block.low])
            self._add(matrix, x[first - top : last - top], sums.reshape(len(sums), -1), block.low >= top)
        self._row = bottom
        while self._open and self._open[0][0].high <= bottom:
            yield self._open.popleft()[1]

    def _add(self, matrix: np.ndarray, x: np.ndarray, sums: np.ndarray, empty: bool) -> None:
        """Add the product of a matrix with rows to sums that may be empty."""
        step = _PRODUCTS // max(matrix.size, _OUTPUTS)
        for first in range(0, x.shape[1], step):
            part = slice(first, min(first + step, x.shape[1]))
            if empty:
                np.matmul(matrix, x[:, part], out=sums[:, part])
            else:
                sums[:, part] += np.matmul(matrix, x[:, part], out=self._part[: len(matrix), : part.stop - first])

    def _empty(self, count: int) -> np.ndarray:
        for number, sums in enumerate(self._sums):
            if len(sums) == count:
                return self._sums.pop(number)
        return np.empty((count, *self._across.shape[1:]))

    def _resize_across(self, rows: np.ndarray) -> None:
        """Fill the first rows of `_across` with values, or, with transparency, with alpha and colours as they are seen."""
        values = self._samples[: len(rows), :, : self.layout.width]
        values[...] = rows.transpose(0, 2, 1)
        if self.layout.alpha:
            colours = values[:, :-1]
            colours *= values[:, -1:]
            colours /= self._most
            self._round(colours)
        x = self._samples[: len(rows)].reshape(-1, self._samples.shape[2])
        out = self._across[: len(rows)].reshape(-1, self._across.shape[2])
        for block in self._columns:
            step = max(_PRODUCTS // block.matrix.size, 1)
            columns = slice(block.first, block.first + len(block.matrix))
            for first in range(0, len(x), step):
                some = slice(first, first + step)
                np.matmul(x[some, block.low : block.high], block.matrix.T, out=out[some, columns])
        if self.layout.alpha or self.layout.depth > 8:
            self._round(out)

    def _round(self, x: np.ndarray) -> None:
        x *= self._unit
        np.rint(x, out=x)
        x /= self._unit

    def _finish(self, sums: np.ndarray, out: np.ndarray) -> None:
        """[n, channels, width and padding] of sums into [n, width, channels] of the output."""
        x = sums[..., : self.target.width]
        if self.layout.alpha:
            colours, alpha = x[:, :-1], x[:, -1:]
            seen = alpha > 0.5  # else it is rounded to none, which has no colour
            colours *= self._most
            colours /= np.where(seen, alpha, 1)
            colours *= seen
        np.rint(np.clip(x, 0, self._most, out=x), out=x)
        out[...] = x.transpose(0, 2, 1)
