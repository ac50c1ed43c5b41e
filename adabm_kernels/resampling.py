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
_PADDING = 8  # doubles: a line of the cache
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
    """The weights of an axis; those of an output add up to exactly 1."""
    for first in range(0, new_size, _OUTPUTS):
        index, weight = taps(np.arange(first, min(first + _OUTPUTS, new_size)), size, new_size / size)
        # Rounded sums rather than rounded weights: the last of them is 1.
        exact = np.diff(np.rint(np.cumsum(weight, 1) * _WEIGHTS), axis=1, prepend=0) / _WEIGHTS
        low, high = int(index.min()), int(index.max()) + 1
        matrix = np.zeros((len(index), high - low))
        np.add.at(matrix, (np.arange(len(index))[:, None], index - low), exact)
        yield _Block(first, low, torch.from_numpy(matrix))


def _padded(rows: int, columns: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """float64 [rows, columns] to be filled, whose rows do not lie a power of two apart: they would share places in the cache."""
    return torch.empty(rows, columns + _PADDING, dtype=torch.float64, device=device)[:, :columns]


def _across(x: torch.Tensor, blocks: Iterable[_Block], new_size: int) -> torch.Tensor:
    """float64 [N, size] -> [N, new_size]."""
    out = _padded(len(x), new_size, x.device)
    for block in blocks:
        columns = out[:, block.first : block.first + len(block.matrix)]
        torch.mm(x[:, block.low : block.high], block.matrix.to(x.device).T, out=columns)
    return out


def resample(x: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """float [N, C, H, W] -> [N, C, height, width], of the same type and not clamped."""
    count, channels, rows, columns = x.shape
    y = _across(x.double().reshape(-1, columns), _blocks(columns, width), width)
    y = y.view(-1, rows, width).transpose(1, 2).reshape(-1, rows)
    y = _across(y, _blocks(rows, height), height)
    return y.view(count, channels, width, height).transpose(2, 3).to(x.dtype).contiguous()


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
        self._down = _blocks(layout.height, height)
        self._columns = list(_blocks(layout.width, width))
        self._coming = next(self._down, None)
        self._open: deque[tuple[_Block, torch.Tensor]] = deque()
        self._row = 0
        # Memory that is used again, as a page that is new costs as much as its pixels: what is taken, and what is complete.
        self._taken = torch.empty(_ROWS, layout.channels * layout.width, dtype=torch.float64)
        self._complete = _padded(_ROWS * layout.channels, layout.width)
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
                planes = self.layout.channels
                self._complete[held * planes : (held + len(total)) * planes] = total.view(-1, self.layout.width)
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
        """Add some rows to the outputs that they have a part in; yields [outputs, channels * W] of those that are complete."""
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
        """[count, channels * W] to be filled."""
        for number, total in enumerate(self._totals):
            if len(total) == count:
                return self._totals.pop(number)
        return torch.empty(count, self.layout.channels * self.layout.width, dtype=torch.float64)

    def _samples(self, rows: np.ndarray) -> torch.Tensor:
        """[n, channels * W] of values, with transparency of alpha and of the colours as they are seen."""
        x = self._taken[: len(rows)]
        values = x.view(len(rows), self.layout.channels, -1)
        values.copy_(torch.from_numpy(rows).transpose(1, 2))
        if self.layout.alpha:
            colours, alpha = values[:, :-1], values[:, -1:]
            self._round(colours.mul_(alpha).div_(self._most))
        return x

    def _round(self, x: torch.Tensor) -> None:
        x.mul_(self._unit).round_().div_(self._unit)

    def _finish(self, out: np.ndarray, done: int, count: int) -> int:
        """Write `count` rows of the output, by what is in `_complete`, after those that are done; how many are then done."""
        x = self._complete[: count * self.layout.channels]
        if self.layout.alpha or self.layout.depth > 8:
            self._round(x)
        x = _across(x, self._columns, self.target.width)
        x = x.view(count, self.layout.channels, self.target.width)
        if self.layout.alpha:
            colours, alpha = x[:, :-1], x[:, -1:]
            seen = alpha > 0.5  # else it is rounded to none, which has no colour
            colours.mul_(self._most).div_(torch.where(seen, alpha, 1.0)).mul_(seen)
        x = x.clamp_(0, self._most).round_().to(torch.uint8 if self.layout.depth == 8 else torch.uint16)
        torch.from_numpy(out[done : done + count]).copy_(x.transpose(1, 2))
        return done + count
