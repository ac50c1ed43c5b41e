"""Converts video frames between planes of luma and chroma, and RGB: levels, matrices, and the places of chroma samples."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from .streams import Stream


def to_rgb(planes: list[np.ndarray], stream: Stream) -> np.ndarray:
    """Converts YCbCr planes to RGB [H, W, 3] of 8 bits, or of 16 bits where the stream has more than 8; with alpha to [H, W, 4].

    Chroma is interpolated linearly between its samples. Beyond the outermost samples it is repeated.
    """
    import numpy as np

    black, luma_span, chroma_span = _levels(stream)
    most, dtype = (255, np.uint8) if stream.depth == 8 else (65535, np.uint16)
    y = planes[0].astype(np.float32)
    y -= black
    y *= most / luma_span
    rgb = np.empty((stream.height, stream.width, 4 if stream.alpha else 3), dtype)
    if stream.alpha:
        rgb[..., 3] = planes[3]
    if len(planes) == 1:
        rgb[...] = _codes(y, most)[..., None]
        return rgb
    (k_r, k_b), k_g = stream.luma, 1 - sum(stream.luma)
    cb, cr = (_chroma(plane, stream, most / chroma_span) for plane in planes[1:3])
    # Where both cb and cr are 0, the three channels are equal to the last bit, so that grey stays grey.
    rgb[..., 0] = _codes(y + 2 * (1 - k_r) * cr, most)
    rgb[..., 2] = _codes(y + 2 * (1 - k_b) * cb, most)
    cb *= -2 * (1 - k_b) * k_b / k_g
    cr *= -2 * (1 - k_r) * k_r / k_g
    cb += cr
    cb += y
    rgb[..., 1] = _codes(cb, most)
    return rgb


def from_rgb(rgb: np.ndarray, stream: Stream) -> list[np.ndarray]:
    """Converts RGB [H, W, 3], or with alpha [H, W, 4], to the planes of a stream.

    A chroma sample is the mean over an area around its place.
    """
    import numpy as np

    black, luma_span, chroma_span = _levels(stream)
    most = np.iinfo(rgb.dtype).max
    (k_r, k_b), k_g = stream.luma, 1 - sum(stream.luma)
    y = _mixed([rgb[..., channel] for channel in range(3)], [k * luma_span / most for k in (k_r, k_g, k_b)], black)
    planes = [y]
    assert stream.subsampling is not None, "frames of y4m have luma"
    (down, across), (top, left) = stream.subsampling, stream.siting
    if down:
        # These are sums of integers, so that the mean of equal pixels is exact.
        means, rows = _summed(rgb.astype(np.uint16 if most == 255 else np.int32), down, top, 0)
        channels = [_summed(means[..., channel], across, left, 1) for channel in range(3)]
        unit = chroma_span / (most * rows * channels[0][1])
        sums = [channel for channel, _ in channels]
        middle = 2 ** (stream.depth - 1)
        blue, red = unit / (2 * (1 - k_b)), unit / (2 * (1 - k_r))
        planes.append(_mixed(sums, (-k_r * blue, -k_g * blue, (1 - k_b) * blue), middle))
        planes.append(_mixed(sums, ((1 - k_r) * red, -k_g * red, -k_b * red), middle))
    codes = [_codes(plane, 2**stream.depth - 1).astype(stream.dtype) for plane in planes]
    return [*codes, rgb[..., 3]] if stream.alpha else codes


def _codes(values: np.ndarray, most: int) -> np.ndarray:
    """The values rounded to integers and clamped to 0..most. They are written over `values`."""
    import numpy as np

    np.rint(values, out=values)
    return np.clip(values, 0, most, out=values)


def _mixed(channels: list[np.ndarray], weights: Sequence[float], offset: float) -> np.ndarray:
    """The weighted sum of three channels plus an offset, in float32."""
    import numpy as np

    total = np.multiply(channels[0], np.float32(weights[0]), dtype=np.float32)
    for channel, weight in zip(channels[1:], weights[1:], strict=True):
        total += np.multiply(channel, np.float32(weight), dtype=np.float32)
    total += np.float32(offset)
    return total


def _chroma(plane: np.ndarray, stream: Stream, scale: float) -> np.ndarray:
    """The chroma at every luma sample, float32 [H, W]; 0 where the plane has no colour."""
    import numpy as np

    assert stream.subsampling is not None, "frames of y4m have luma"
    (down, across), (top, left) = stream.subsampling, stream.siting
    # These are integers of at most 22 bits, which float32 holds exactly, so that equal samples stay equal.
    sums = plane.astype(np.uint16 if stream.depth == 8 else np.int32)
    sums, rows = _interpolated(sums, down, top, stream.height, 0)
    sums, columns = _interpolated(sums, across, left, stream.width, 1)
    values = sums.astype(np.float32)
    values -= 2 ** (stream.depth - 1) * rows * columns
    values *= scale / (rows * columns)
    return values


def _interpolated(plane: np.ndarray, factor: int, siting: int, size: int, axis: int) -> tuple[np.ndarray, int]:
    """Enlarges a plane along one axis by an integer factor, and cuts it to a size. Returns the larger plane, whose values are too
    large by a factor, and this factor.

    siting: where the first sample of the plane lies, in half luma samples from the first luma sample.
    """
    import numpy as np

    if factor == 1:
        return plane, 1
    count, unit = plane.shape[axis], 2 * factor
    padded = np.moveaxis(np.pad(plane, [(1, 1) if axis == i else (0, 0) for i in range(2)], mode="edge"), axis, 0)
    larger = np.empty([length * factor if axis == i else length for i, length in enumerate(plane.shape)], plane.dtype)
    phases = np.moveaxis(larger, axis, 0)
    for phase in range(factor):
        first, part = divmod(2 * phase - siting, unit)
        before, after = padded[first + 1 : first + 1 + count], padded[first + 2 : first + 2 + count]
        phases[phase::factor] = before * (unit - part) + after * part if part else before * unit
    return (larger[:size] if axis == 0 else larger[:, :size]), unit


def _summed(plane: np.ndarray, factor: int, siting: int, axis: int) -> tuple[np.ndarray, int]:
    """Shrinks a plane along one axis by an integer factor. Returns the weighted sum over the area of every sample, and the sum of
    the weights.

    The area is as long as `factor` luma samples and lies around the sample. siting: the same as for `_interpolated`.
    """
    import numpy as np

    if factor == 1:
        return plane, 1
    size = plane.shape[axis]
    count = -(-size // factor)
    # In half luma samples, the area reaches from siting - factor to siting + factor, and luma sample i from 2 * i - 1 to 2 * i + 1.
    covered = range((siting - factor + 1) // 2, (siting + factor + 1) // 2 + 1)
    weights = {i: min(2 * i + 1, siting + factor) - max(2 * i - 1, siting - factor) for i in covered}
    weights = {i: weight for i, weight in weights.items() if weight > 0}
    before, after = -min(weights), (count - 1) * factor + max(weights) - (size - 1)
    if before or after > 0:
        plane = np.pad(plane, [(before, max(after, 0)) if axis == i else (0, 0) for i in range(plane.ndim)], mode="edge")
    samples = np.moveaxis(plane, axis, 0)
    least = min(weights.values())
    parts = ((samples[before + i :: factor][:count], weight // least) for i, weight in weights.items())
    total = functools.reduce(np.add, (some if times == 1 else some * times for some, times in parts))
    return np.moveaxis(total, 0, axis), sum(weights.values()) // least


def _levels(stream: Stream) -> tuple[float, float, float]:
    """Black, the span of luma and the span of chroma, as codes of the stream's depth (ITU-R BT.601, BT.2100)."""
    if stream.full_range:
        most = 2**stream.depth - 1
        return 0.0, float(most), float(most)
    unit = 2.0 ** (stream.depth - 8)
    return 16 * unit, 219 * unit, 224 * unit
