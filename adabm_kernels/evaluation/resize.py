"""Bicubic resampling with the conventions of MATLAB's `imresize`, with which super-resolution benchmarks are made."""

from __future__ import annotations

import numpy as np


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel, a = -0.5 (Keys, IEEE ASSP 1981, eq. 15)."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def taps(outputs: np.ndarray, size: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The source indices and weights, [outputs, taps] each, of some output samples. outputs: the numbers of the samples from 0,
    int64 [outputs]. size: the length of the source axis.

    The middle of the source stays in the middle, the kernel widens when shrinking, and the source is mirrored at its ends.
    """
    stretch = min(scale, 1.0)
    width = 4.0 / stretch
    centre = (outputs + 0.5) / scale - 0.5
    first = np.floor(centre - width / 2).astype(np.int64) + 1
    index = first[:, None] + np.arange(int(np.ceil(width)) + 1)
    weight = stretch * cubic(stretch * (centre[:, None] - index))
    weight /= weight.sum(1, keepdims=True)
    mirror = np.concatenate([np.arange(size), np.arange(size)[::-1]])
    return mirror[index % (2 * size)], weight


def imresize(image: np.ndarray, scale: float) -> np.ndarray:
    """Resizes [H, W] or [H, W, C] by `scale` to [ceil(H*scale), ceil(W*scale)(, C)], antialiased and with mirrored borders.

    uint8 stays uint8, and is rounded half up and clipped after each of the two passes (rows first); any other type gives float64.
    Raises ValueError unless scale > 0 and the image has at least one pixel.
    """
    if not scale > 0:
        raise ValueError(f"imresize: scale must be positive, got {scale}")
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(f"imresize: image must be [H, W] or [H, W, C] and not empty, got shape {image.shape}")
    out = image.astype(np.float64)
    for axis in (0, 1):
        size = image.shape[axis]
        index, weight = taps(np.arange(int(np.ceil(size * scale))), size, scale)
        moved = np.moveaxis(out, axis, 0)
        acc = np.zeros((len(index), *moved.shape[1:]))
        for t in range(index.shape[1]):
            acc += weight[:, t].reshape(-1, *[1] * (moved.ndim - 1)) * moved[index[:, t]]
        out = np.moveaxis(acc, 0, axis)
        if image.dtype == np.uint8:
            # MATLAB keeps uint8 between the two passes.
            out = np.clip(np.floor(out + 0.5), 0, 255)
    return out.astype(np.uint8) if image.dtype == np.uint8 else out
