"""Pictures in another size, row by row: the bicubic of `resize` with sums that are exact, so that no order of them shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from .resize import taps

if TYPE_CHECKING:
    from .images import Layout

# Weights and samples are integers held in doubles, whose 53 bits take every sum of their products: weights have 24 bits, samples 28,
# and weights of both signs add up to 1.25 in each of both directions at most, which is the last bit.
_ONE = 1 << 24  # what the weights of an output add up to
_MOST = 1 << 28
_OUTPUTS = 8  # that one matrix makes: more of them multiply more zeros, fewer are more products
_ROWS = 32  # of the picture that are taken at a time, and of the output that are finished at a time


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
    """A picture in another size, from the top: `rows` takes its next rows and gives those of the output that are complete with them.

    layout: of the picture. width, height: of the output, whose layout is `target`.
    Values are resampled as they are encoded. Colours with transparency are weighted by their alpha, so that what is transparent has no
    part in them. The result is rounded once and does not depend on how many rows are given at a time.
    """

    def __init__(self, layout: Layout, width: int, height: int):
        self.layout, self.target = layout, replace(layout, width=width, height=height)
        self._most = 255 if layout.depth == 8 else 65535
        # Colours that are multiplied by an alpha of 16 bits have 32, of which 28 are kept.
        self._divisor = 16 if layout.alpha and layout.depth == 16 else 1
        largest = self._most**2 // self._divisor if layout.alpha else self._most
        self._finer = float(1 << (_MOST // (largest + 1)).bit_length() - 1)  # the first pass keeps what 28 bits hold
        self._down = _blocks(layout.height, height)
        self._across = list(_blocks(layout.width, width))
        self._coming = next(self._down, None)
        self._open: deque[tuple[_Block, torch.Tensor]] = deque()
        self._row = 0

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """[n, W, channels], the next rows -> [m, width, channels], where m may be 0; all are given when the last row was."""
        complete: list[torch.Tensor] = []
        finished = []
        for first in range(0, len(rows), _ROWS):
            complete += self._take(self._samples(rows[first : first + _ROWS]))
            if sum(map(len, complete)) >= _ROWS:
                finished.append(self._finish(torch.cat(complete)))
                complete = []
        if complete:
            finished.append(self._finish(torch.cat(complete)))
        if not finished:
            return np.empty((0, self.target.width, self.target.channels), self.target.dtype)
        return finished[0] if len(finished) == 1 else np.concatenate(finished)

    @classmethod
    def held_bytes(cls, layout: Layout, width: int, height: int) -> int:
        """About what it holds, beside the rows that it takes and gives."""
        reach = _OUTPUTS * max(layout.height / height, 1) + 4 * max(layout.height / height, 1)  # rows that a block sees
        blocks = 1 + (reach + _ROWS) / (_OUTPUTS * layout.height / height)
        rows = 3 * _ROWS + blocks * _OUTPUTS
        weights = 8 * (width + _OUTPUTS) * (_OUTPUTS + 4) * max(layout.width / width, 1)
        return int(8 * rows * max(layout.width, width) * layout.channels + weights)

    def _samples(self, rows: np.ndarray) -> torch.Tensor:
        """float64 [n, W * channels] of integers below _MOST: values, or colours times alpha and alpha times the most."""
        if not self.layout.alpha:
            return torch.from_numpy(rows.astype(np.float64).reshape(len(rows), -1))
        values = rows.astype(np.float64)
        alpha = values[..., -1:].copy()
        values[..., -1] = self._most
        values *= alpha
        if self._divisor > 1:
            np.rint(np.divide(values, self._divisor, out=values), out=values)
        return torch.from_numpy(values.reshape(len(rows), -1))

    def _take(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """Add rows of samples to the outputs that they have a part in; yields [outputs, W * channels] of those that are complete."""
        top, bottom = self._row, self._row + len(x)
        while self._coming is not None and self._coming.low < bottom:
            self._open.append((self._coming, x.new_zeros(len(self._coming.matrix), x.shape[1])))
            self._coming = next(self._down, None)
        for block, total in self._open:
            first, last = max(block.low, top), min(block.high, bottom)
            if first < last:
                total.addmm_(block.matrix[:, first - block.low : last - block.low], x[first - top : last - top])
        self._row = bottom
        while self._open and self._open[0][0].high <= bottom:
            yield self._open.popleft()[1]

    def _finish(self, x: torch.Tensor) -> np.ndarray:
        """[n, W * channels] of sums -> [n, width, channels] of the output."""
        count, channels = len(x), self.layout.channels
        x = x.mul_(self._finer / _ONE).round_()
        x = x.view(count, self.layout.width, channels).transpose(0, 1).reshape(self.layout.width, -1)
        x = _along_first(x, self._across, self.target.width).view(-1, count, channels).div_(_ONE * self._finer)
        if self.layout.alpha:
            alpha = x[..., -1:] * (self._divisor / self._most)
            seen = alpha >= 0.5
            colours = torch.where(seen, x[..., :-1] * self._divisor / torch.where(seen, alpha, 1.0), 0.0)
            x = torch.cat([colours, alpha], 2)
        x = x.clamp_(0, self._most).round_().transpose(0, 1)
        return x.to(torch.uint8 if self.layout.depth == 8 else torch.uint16).contiguous().numpy()
