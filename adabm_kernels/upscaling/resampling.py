"""Resizes pictures row by row, by the bicubic filter of `resize`. Its sums are exact, so the result depends on no order of them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..evaluation.resize import taps

if TYPE_CHECKING:
    from ..images import Layout

# Weights and samples are whole numbers of some unit, and a double's 53 bits hold every sum of their products. Weights have 22 bits
# and add up to at most 1.25 in size in each of the two directions. For samples of 8 bits both directions are one such sum; other
# samples are rounded to 30 bits in between.
_WEIGHTS = float(1 << 22)
_SAMPLE_BITS = 30
_OUTPUTS = 16  # the outputs of one matrix: with more of them it multiplies more zeros, with fewer there are more products
_ROWS = 64  # the rows of the picture that are taken at a time
# BLAS multiplies matrices of this size on the calling thread. Beside other work its threads wait for each other longer than all of
# this takes.
_PRODUCTS = 1 << 18
_STRIP = 16 * _OUTPUTS  # the columns of the output that one thread makes on its own, so few that they take little memory
_PADDING = 8  # doubles that fill a line of the cache: rows that lie a power of two apart would share their places in the cache


@dataclass(frozen=True)
class _Block:
    """The weights of some outputs along an axis. first: the first of these outputs. low: the first sample of the source that they
    read. matrix: the weights, float64 [outputs, samples]."""

    first: int
    low: int
    matrix: np.ndarray

    @property
    def high(self) -> int:
        return self.low + self.matrix.shape[1]


def _blocks(size: int, new_size: int) -> Iterator[_Block]:
    """Yields the weights of an axis in blocks. The weights of each output add up to exactly 1."""
    for first in range(0, new_size, _OUTPUTS):
        index, weight = taps(np.arange(first, min(first + _OUTPUTS, new_size)), size, new_size / size)
        # The sums are rounded rather than the weights, because the last sum is 1.
        exact = np.diff(np.rint(np.cumsum(weight, 1) * _WEIGHTS), axis=1, prepend=0) / _WEIGHTS
        low, high = int(index.min()), int(index.max()) + 1
        matrix = np.zeros((len(index), high - low))
        np.add.at(matrix, (np.arange(len(index))[:, None], index - low), exact)
        yield _Block(first, low, matrix)


def resample(x: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Images x, floats [N, C, H, W], in another size: [N, C, height, width] of the same type, not clamped."""
    count, channels, rows, columns = x.shape
    y = _last_axis(x.double().reshape(-1, columns), _blocks(columns, width), width)
    y = y.view(-1, rows, width).transpose(1, 2).reshape(-1, rows)
    y = _last_axis(y, _blocks(rows, height), height)
    return y.view(count, channels, width, height).transpose(2, 3).to(x.dtype).contiguous()


def _last_axis(x: torch.Tensor, blocks: Iterable[_Block], new_size: int) -> torch.Tensor:
    """Values x, float64 [N, size], resized along their last axis: [N, new_size]."""
    out = x.new_empty(len(x), new_size)
    for block in blocks:
        matrix = torch.from_numpy(block.matrix).to(x.device)
        torch.mm(x[:, block.low : block.high], matrix.T, out=out[:, block.first : block.first + len(matrix)])
    return out


class Resampler:
    """Resizes a picture from the top: `rows` takes its next rows and returns the rows of the output that are then complete.

    layout: the layout of the picture. width, height: the size of the output, whose layout is `target`. run: `map`, or the map of a
    pool of threads. Values are resampled as they are encoded. Colours with transparency are weighted by their alpha, so that fully
    transparent pixels have no part in the result. The result is rounded once and does not depend on how many rows are given at a
    time.
    """

    def __init__(self, layout: Layout, width: int, height: int, run: Callable[..., Iterable] = map):
        self.layout, self.target, self._run = layout, replace(layout, width=width, height=height), run
        across, down = list(_blocks(layout.width, width)), list(_blocks(layout.height, height))
        step = _STRIP // _OUTPUTS
        self._strips = [_Strip(layout, across[first : first + step], down) for first in range(0, len(across), step)]

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Takes the next rows of the picture, [n, W, channels], and returns those of the output that follow, [m, width, channels],
        where m may be 0. With the last row of the picture all remaining rows of the output are returned."""
        scale = self.target.height / self.layout.height
        # There is room for the rows that these make, and for those that waited for them: of two blocks, and of a filter's reach.
        most = math.ceil(len(rows) * scale) + 2 * _OUTPUTS + 4 * math.ceil(max(scale, 1))
        out = np.empty((min(most, self.target.height), self.target.width, self.target.channels), self.target.dtype)
        (done,) = set(self._run(lambda strip: strip.rows(rows, out), self._strips))
        return out[:done]

    @classmethod
    def held_bytes(cls, layout: Layout, width: int, height: int) -> int:
        """About how many bytes a Resampler holds, besides the rows that it takes and returns."""
        down, across = max(layout.height / height, 1), max(layout.width / width, 1)
        strips = -(-width // _STRIP)
        open_rows = _OUTPUTS * (2 + (4 * down + _ROWS) / (_OUTPUTS * layout.height / height))
        values = _ROWS * (layout.width + strips * (4 * across + _PADDING)) + (_ROWS + open_rows) * (width + strips * _PADDING)
        weights = (_OUTPUTS + 6) * (across * (width + _OUTPUTS) + down * (height + _OUTPUTS))
        return int(8 * (values * layout.channels + weights + strips * _PRODUCTS))


class _Strip:
    """Computes some columns of the output, from weights across and down."""

    def __init__(self, layout: Layout, across: list[_Block], down: list[_Block]):
        self._layout, self._across = layout, across
        self._seen = slice(across[0].low, across[-1].high)  # a slice of the picture
        self._made = slice(across[0].first, across[-1].first + len(across[-1].matrix))
        self._width = self._made.stop - self._made.start
        self._most = 255 if layout.depth == 8 else 65535
        self._unit = (1 << _SAMPLE_BITS) // (self._most + 1)  # one step of the picture's values, as a rounded sample
        self._coming = iter(down)
        self._next = next(self._coming, None)
        self._open: deque[tuple[_Block, np.ndarray]] = deque()  # with sums so far [outputs, channels, width and padding]
        self._row = 0
        # This memory is used again, because a new page costs as much as computing its pixels.
        self._samples = np.empty((_ROWS, layout.channels, self._seen.stop - self._seen.start + _PADDING))
        self._resized = np.zeros((_ROWS, layout.channels, self._width + _PADDING))
        self._part = np.empty((_OUTPUTS, _PRODUCTS // _OUTPUTS))
        self._sums: list[np.ndarray] = []

    def rows(self, rows: np.ndarray, out: np.ndarray) -> int:
        """Takes the next rows, writes its columns of the output rows that are then complete, and returns how many these are."""
        done = 0
        for first in range(0, len(rows), _ROWS):
            for sums in self._take(rows[first : first + _ROWS]):
                self._finish(sums, out[done : done + len(sums), self._made])
                self._sums.append(sums)
                done += len(sums)
        return done

    def _take(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Adds some rows to the outputs that read them, and yields the sums of the outputs that are then complete."""
        self._resize_across(rows)
        x = self._resized[: len(rows)].reshape(len(rows), -1)
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
        """Adds the product of a matrix with rows to sums, or overwrites them where they are empty."""
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
        return np.empty((count, *self._resized.shape[1:]))

    def _resize_across(self, rows: np.ndarray) -> None:
        """Fills the first rows of `_resized` with values, or, with transparency, with alpha and colours as they are seen."""
        values = self._samples[: len(rows), :, :-_PADDING]
        values[...] = rows[:, self._seen].transpose(0, 2, 1)
        if self._layout.alpha:
            colours = values[:, :-1]
            colours *= values[:, -1:]
            colours /= self._most
            self._round(colours)
        x = self._samples[: len(rows)].reshape(-1, self._samples.shape[2])
        out = self._resized[: len(rows)].reshape(-1, self._resized.shape[2])
        for block in self._across:
            step = max(_PRODUCTS // block.matrix.size, 1)
            seen = x[:, block.low - self._seen.start : block.high - self._seen.start]
            made = out[:, block.first - self._made.start : block.first - self._made.start + len(block.matrix)]
            for first in range(0, len(x), step):
                np.matmul(seen[first : first + step], block.matrix.T, out=made[first : first + step])
        if self._layout.alpha or self._layout.depth > 8:
            self._round(out)

    def _round(self, x: np.ndarray) -> None:
        x *= self._unit
        np.rint(x, out=x)
        x /= self._unit

    def _finish(self, sums: np.ndarray, out: np.ndarray) -> None:
        """Turns sums, [n, channels, width and padding], into rows of the output, [n, width, channels]."""
        x = sums[..., : self._width]
        if self._layout.alpha:
            colours, alpha = x[:, :-1], x[:, -1:]
            seen = alpha > 0.5  # elsewhere alpha is rounded to zero, and there is no colour
            colours *= self._most
            colours /= np.where(seen, alpha, 1)
            colours *= seen
        np.rint(np.clip(x, 0, self._most, out=x), out=x)
        out[...] = x.transpose(0, 2, 1)
