"""Where a picture is smooth, cubic interpolation lies nearer to the float network than a network of few bits does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from ..evaluation.resize import cubic
from .flat import Rect

REACH = 2  # the low-resolution pixels on either side that cubic interpolation reads
_ROWS = 16  # the low-resolution rows that are worked on at a time, so few that they stay in the cache


class Rule(NamedTuple):
    """The rule that decides what counts as smooth."""

    smooth: int
    rough: int
    near: int
    blur: int

    @property
    def context(self) -> int:
        """How many pixels on every side of a pixel decide about it."""
        return 1 + self.near + self.blur

    @property
    def full(self) -> int:
        """The whole number that stands for a share of 1."""
        return (self.rough - self.smooth) * (2 * self.blur + 1) ** 2


def rules(bits: int) -> tuple[Rule, Rule]:
    """The rule for colours, and the rule for an alpha that varies.

    bits: the fewer of the bits of the network's weights and of its activations. The noise of a network halves with each bit, and
    the error of the interpolation grows with the square of the bend. So with two more bits, interpolation is better only up to half
    the bend.
    """
    rough = round(32 * 2 ** ((4 - bits) / 2))
    smooth = rough * 3 // 8
    # An alpha equals that of the picture, to the last level, where the interpolation sees one value only.
    return Rule(smooth, rough, near=2, blur=2), Rule(smooth, rough, near=1, blur=0)


@dataclass(frozen=True)
class Smooth:
    """How far a part of a picture is interpolated.

    place: the part. shares: the share of the interpolation in each of its pixels and in those next to it, int16 [height + 2,
    width + 2] in 0..rule.full.
    """

    place: Rect
    shares: np.ndarray
    rule: Rule

    def computed(self) -> Rect | None:
        """A rectangle that holds all pixels whose output is not wholly interpolated; None where there are none."""
        rest = _spread(self.shares < self.rule.full)
        y, x = np.flatnonzero(rest.any(1)), np.flatnonzero(rest.any(0))
        if not len(y):
            return None
        return Rect(*map(int, (y[0], y[-1] + 1, x[0], x[-1] + 1))).moved(self.place.top, self.place.left)


def interpolate_reference(smooth: Smooth, x: np.ndarray, top: int, left: int, y: np.ndarray) -> None:
    """Interpolates a part of a picture over the results in y. This function defines what the kernels compute.

    x: the picture, [H, W, C] of uint8, uint16 or float32; beyond its ends it repeats its outermost pixels. top, left: where in x
    the part begins. y: the results, [scale*h, scale*w, C] of the type of x. They become (v - y) * w + y, computed in float32, where
    v is the interpolation and w its share in 0..1, and v where w is 1. Integers are clamped and rounded with halves up, because
    halves rounded to even would leave stripes on slopes.
    """
    height, width = smooth.shares.shape[0] - 2, smooth.shares.shape[1] - 2
    scale = y.shape[0] // height
    for first in range(0, height, _ROWS):
        last = min(first + _ROWS, height)
        rows = np.arange(top + first - REACH, top + last + REACH).clip(0, len(x) - 1)
        columns = np.arange(left - REACH, left + width + REACH).clip(0, x.shape[1] - 1)
        value = enlarge(x[rows][:, columns], scale, phases(scale, "cubic"))
        weights = smooth.shares[first : last + 2] / np.float32(smooth.rule.full)
        weights = enlarge(weights, scale, phases(scale, "linear"))[..., None]
        there = y[scale * first : scale * last]
        value = np.where(weights >= 1, value, (value - there) * weights + there)
        if y.dtype.kind == "u":
            value = np.floor(np.clip(value, 0, np.iinfo(y.dtype).max) + np.float32(0.5))
        there[...] = np.where(weights > 0, value, there)


def find_smooth(pixels: np.ndarray, kept: Rect, seen: Rect, rule: Rule, unit: int = 1) -> Smooth | None:
    """How far a window is interpolated; None where no pixel is.

    pixels: the pixels [height, width, C] of the rectangle `seen`, in units of which `unit` make a level of 255. Beyond this
    rectangle the picture is taken to repeat its outermost pixels. kept: the part that the window keeps.
    """
    wide = Rect(kept.top - 1, kept.bottom + 1, kept.left - 1, kept.right + 1)
    around = rule.context
    cut = Rect(wide.top - around, wide.bottom + around, wide.left - around, wide.right + around).overlap(seen)
    found = _shares(pixels[cut.top - seen.top : cut.bottom - seen.top, cut.left - seen.left : cut.right - seen.left], rule, unit)
    inner = wide.overlap(cut)
    found = found[inner.top - cut.top : inner.bottom - cut.top, inner.left - cut.left : inner.right - cut.left]
    if not found.any():
        return None
    missing = (inner.top - wide.top, wide.bottom - inner.bottom), (inner.left - wide.left, wide.right - inner.right)
    return Smooth(kept, np.pad(found, missing, mode="edge"), rule)


def _spread(marked: np.ndarray) -> np.ndarray:
    """Which pixels are marked or have a marked neighbour, [H, W], from marks [H + 2, W + 2]. Neighbours count because shares are
    interpolated between pixels."""
    rows = marked[:-2] | marked[1:-1] | marked[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def _shares(pixels: np.ndarray, rule: Rule, unit: int) -> np.ndarray:
    """The share of the interpolation in each of the pixels [H, W, C]: int16 [H, W] in 0..rule.full."""
    bend = np.empty(pixels.shape[:2], np.int16)
    for first in range(0, len(bend), _ROWS):
        rows = pixels[max(first - 1, 0) : first + _ROWS + 1]
        above, below = first > 0, first + _ROWS < len(bend)
        bend[first : first + _ROWS] = bends(rows, unit)[above : len(rows) - below]
    bend = _around(_around(bend, rule.near, np.maximum).T, rule.near, np.maximum).T
    found = np.clip(rule.rough - bend, 0, rule.rough - rule.smooth)
    return _around(_around(found, rule.blur, np.add).T, rule.blur, np.add).T


def bends(rows: np.ndarray, unit: int) -> np.ndarray:
    """How much pixels [H, W, C] bend: int16 [H, W], their largest second difference along rows or columns in any channel, in levels
    of 255 rounded up. `unit` units of the pixels make a level."""
    found = np.zeros(rows.shape[:2], np.int16)
    for channel in range(rows.shape[2]):
        values = rows[..., channel].astype(np.int32) if unit > 1 else rows[..., channel].astype(np.int16)
        for axis in (0, 1):
            change = _second_differences(values, axis)
            if unit > 1:
                change = -(-change // unit)
            np.maximum(found, change.astype(np.int16, copy=False), out=found)
    return found


def _second_differences(values: np.ndarray, axis: int) -> np.ndarray:
    """The magnitudes of the second differences along an axis. Beyond its ends it repeats its outermost values."""
    values = values.T if axis else values
    step = np.zeros((len(values) + 1, values.shape[1]), values.dtype)
    np.subtract(values[1:], values[:-1], out=step[1:-1])
    change = np.abs(step[1:] - step[:-1])
    return change.T if axis else change


def _around(values: np.ndarray, reach: int, combine: np.ufunc) -> np.ndarray:
    """The maximum or the sum, as `combine` says, of each of the values [H, W] and those up to `reach` rows above and below it.
    Beyond the ends the outermost rows are repeated."""
    values = np.pad(values, ((reach, reach), (0, 0)), mode="edge")
    size = len(values) - 2 * reach
    total = values[:size].copy()
    for shift in range(1, 2 * reach + 1):
        combine(total, values[shift : shift + size], out=total)
    return total


def enlarge(values: np.ndarray, scale: int, kernel: np.ndarray) -> np.ndarray:
    """Interpolated values, float32 [scale*(H - 2*r), scale*(W - 2*r), ...], from values [H, W, ...]. The outermost r =
    kernel.shape[1] // 2 values on each side are read but not enlarged.

    kernel: the weights for each phase, float32 [scale, 2*r + 1], as `phases` makes them. A result depends on nothing but the values
    around it, to the last bit.
    """
    taps = kernel.shape[1]
    for axis in (1, 0):
        values = np.asarray(values, np.float32)
        size = values.shape[axis] - taps + 1
        shape = list(values.shape)
        shape[axis] = scale * size
        out = np.empty(shape, np.float32)
        for phase, weights in enumerate(kernel):
            total = None
            for tap, weight in enumerate(weights):
                if weight:
                    part = values[tap : tap + size] if axis == 0 else values[:, tap : tap + size]
                    term = part * weight
                    total = term if total is None else np.add(total, term, out=total)
            out[(slice(None),) * axis + (slice(phase, None, scale),)] = total
        values = out
    return values


@cache
def phases(scale: int, kind: str) -> np.ndarray:
    """The weights of "cubic" (Keys, a = -0.5, as in MATLAB) or "linear" interpolation for each phase, float32 [scale, taps]."""
    reach = REACH if kind == "cubic" else 1
    offset = (np.arange(scale) + 0.5) / scale - 0.5  # the distance of an output pixel from the centre of the input pixel it lies in
    distance = np.abs(offset[:, None] - np.arange(-reach, reach + 1))
    weights = cubic(distance) if kind == "cubic" else np.maximum(1 - distance, 0)
    return weights.astype(np.float32)
