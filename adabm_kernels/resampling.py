"""Pictures in another size, row by row: the bicubic of `resize` with sums that are exact, so that no order of them shows."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from .resize import taps

if TYPE_CHECKING:
    from .images import Layout

# Weights and samples are integers in doubles, whose 53 bits hold every sum of their products: weights have 24 bits, samples 28, and
# the last is for the sizes of an output's weights, which add up to 1.25 at most in each of the two directions.
_ONE = 1 << 24  # what the weights of an output add up to
_SAMPLE_BITS = 28
_OUTPUTS = 16  # that one matrix makes: more of them multiply more zeros, fewer are more products
_ROWS = 64  # of the picture that are taken at a time, and of the output that are finished at a time


@dataclass(frozen=True)
class _Block:
    """Some outputs along an axis. first: the first of them. low: the first source sample. matrix: float64 [outputs, samples]."""

    first: int
    low: int
    matrix: torch.Tensor

    @property
    def high(self) -> int:
        return self.low + self.matrix.shape[1]


def _blocks(size: int, new_size: int) -> Iterator[_Block]:
    """The weights of an axis, as integers whose sum for every output is _ONE."""
    for first in range(0, new_size, _OUTPUTS):
        index, weight = taps(np.arange(first, min(first + _OUTPUTS, new_size)), size, new_size / size)
        # Rounded sums rather than rounded weights: the last of them is one.
        whole = np.diff(np.rint(np.cumsum(weight, 1) * _ONE), axis=1, prepend=0)
        low, high = int(index.min()), int(index.max()) + 1
        matrix = np.zeros((len(index), high - low))
        np.add.at(matrix, (np.arange(len(index))[:, None], index - low), whole)
        yield _Block(first, low, torch.from_numpy(matrix))


def _along_first(x: torch.Tensor, blocks: list[_Block], new_size: int) -> torch.Tensor:
    """float64 [size, N] -> [new_size, N], _ONE times as large."""
    out = x.new_empty(new_size, x.shape[1])
    for block in blocks:
        rows = out[block.first : block.first + len(block.matrix)]
        torch.mm(block.matrix.to(x.device), x[block.low : block.high], out=rows)
    return out


def resample(x: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """float [N, C, H, W] -> [N, C, height, width], of the same type and not clamped."""
    count, channels, rows, columns = x.shape
    down, across = list(_blocks(rows, height)), list(_blocks(columns, width))
    y = _along_first(x.double().movedim(2, 0).reshape(rows, -1), down, height).div_(_ONE)
    y = y.view(height, count, channels, columns).movedim(3, 0).reshape(columns, -1)
    y = _along_first(y, across, width).div_(_ONE)
    return y.view(width, height, count, channels).permute(2, 3, 1, 0).to(x.dtype).contiguous()


class Resampler:
    """A picture in another size, from the top: `rows` takes its next rows and gives those of the output that are then complete.

    layout: of the picture. width, height: of the output, whose layout is `target`.
    Values are resampled as they are encoded. Colours with transparency are weighted by their alpha, so that what is transparent has
    no part in them. The result is rounded once and does not depend on how many rows are given at a time.
    """

    def __init__(self, layout: Layout, width: int, height: int):
        self.layout, self.target = layout, replace(layout, width=width, height=height)
        self._most = 255 if layout.depth == 8 else 65535
        self._unit = (1 << _SAMPLE_BITS) // (self._most + 1)  # what a step of the picture's values is as a sample
        self._down = _blocks(layout.height, height)
        self._across = list(_blocks(layout.width, width))
        self._coming = next(self._down, None)
        self._open: deque[tuple[_Block, torch.Tensor]] = deque()
        self._row = 0
        # What is taken and what is finished, in memory that is used again: a page that is new costs as much as its pixels.
        self._taken = np.empty((_ROWS, layout.width, layout.channels))
        self._columns = torch.empty(layout.width, _ROWS, layout.channels, dtype=torch.float64)
        self._totals: list[torch.Tensor] = []

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """[n, W, channels], the next rows -> [m, width, channels], where m may be 0; all are given when the last row was."""
        scale = self.target.height / self.layout.height
        # As many as these rows make, and those that waited for them: of two blocks, and of a filter's reach.
        most = math.ceil(len(rows) * scale) + 2 * _OUTPUTS + 4 * math.ceil(max(scale, 1))
        out = np.empty((min(most, self.target.height), self.target.width, self.target.channels), self.target.dtype)
        done = held = 0
        for first in range(0, len(rows), _ROWS):
            for total in self._take(rows[first : first + _ROWS]):
                values = total.mul_((1 if self.layout.alpha else self._unit) / _ONE).round_()
                self._columns[:, held : held + len(total)] = values.view(len(total), self.layout.width, -1).transpose(0, 1)
                self._totals.append(total)
                held += len(total)
                if held > _ROWS - _OUTPUTS:
                    done, held = self._finish(out, done, held), 0
        return out[: self._finish(out, done, held)]

    @classmethod
    def held_bytes(cls, layout: Layout, width: int, height: int) -> int:
        """About what it holds, beside the rows that it takes and gives."""
        down, across = max(layout.height / height, 1), max(layout.width / width, 1)
        open_rows = _OUTPUTS * (2 + (4 * down + _ROWS) / (_OUTPUTS * layout.height / height))
        values = (3 * _ROWS + open_rows) * layout.width + 3 * _ROWS * width
        weights = (_OUTPUTS + 4) * (across * (width + _OUTPUTS) + 3 * down * _OUTPUTS)
        return int(8 * (values * layout.channels + weights))

    def _take(self, rows: np.ndarray) -> Iterator[torch.Tensor]:
        """Add some rows to the outputs that they have a part in; yields [outputs, W * channels] of those that are complete."""
        x = self._samples(rows)
        top, bottom = self._row, self._row + len(rows)
        while self._coming is not None and self._coming.low < bottom:
            self._open.append((self._coming, self._empty(len(self._coming.matrix))))
            self._coming = next(self._down, None)
        for block, total in self._open:
            first, last = max(block.low, top), min(block.high, bottom)
            part = block.matrix[:, first - block.low : last - block.low]
            # What is in memory that was used before counts for nothing.
            total.addmm_(part, x[first - top : last - top], beta=float(block.low < top))
        self._row = bottom
        while self._open and self._open[0][0].high <= bottom:
            yield self._open.popleft()[1]

    def _empty(self, count: int) -> torch.Tensor:
        """[count, W * channels] to be filled."""
        for number, total in enumerate(self._totals):
            if len(total) == count:
                return self._totals.pop(number)
        return torch.empty(count, self.layout.width * self.layout.channels, dtype=torch.float64)

    def _samples(self, rows: np.ndarray) -> torch.Tensor:
        """float64 [n, W * channels] of integers: values, or, in units, alpha and colours as they are seen."""
        x = self._taken[: len(rows)]
        x[...] = rows
        if self.layout.alpha:
            x[..., -1] = self._most
            x *= rows[..., -1:]
            x *= self._unit
            np.rint(np.divide(x, self._most, out=x), out=x)
        return torch.from_numpy(x.reshape(len(rows), -1))

    def _finish(self, out: np.ndarray, done: int, count: int) -> int:
        """Write `count` rows of the output, by what is in `_columns`, after those that are done; how many are then done."""
        x = self._columns[:, :count].reshape(self.layout.width, -1)
        x = _along_first(x, self._across, self.target.width).div_(_ONE * self._unit)
        x = x.view(self.target.width, count, self.layout.channels)
        if self.layout.alpha:
            alpha = x[..., -1:]
            seen = alpha > 0.5  # else it is rounded to none, which has no colour
            x[..., :-1] = torch.where(seen, x[..., :-1] * self._most / torch.where(seen, alpha, 1.0), 0.0)
        x = x.clamp_(0, self._most).round_().to(torch.uint8 if self.layout.depth == 8 else torch.uint16)
        out[done : done + count] = x.numpy().swapaxes(0, 1)
        return done + count
