"""Turns the pixels of a picture into images for the network, and the network's results into the pixels of a larger picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..images import Layout

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_BLOCK = 16  # output rows that are clamped and rounded at a time, so that they stay in the cache


def colour_channels(layout: Layout) -> int:
    """The number of channels of a picture without its alpha."""
    return layout.channels - layout.alpha


def luma(colours: np.ndarray) -> np.ndarray:
    """The luma, float32 [...], of colours [..., 3]. It is no product of matrices, whose rounding would depend on the shape of the
    whole, and so on how a picture is cut."""
    red, green, blue = (colours[..., i] * weight for i, weight in enumerate(_LUMA))
    return red + green + blue


def network_images(pixels: np.ndarray, layout: Layout, varies: bool) -> list[np.ndarray]:
    """The images that the network computes, float32 [3, h, w] in 0..255 each: one of the colours or, where alpha varies, one of the
    colours times alpha and one of alpha."""
    seen, alpha = network_planes(pixels, layout)
    return [seen * alpha, np.repeat(alpha * 255, 3, 0)] if varies and alpha is not None else [seen]


def network_planes(pixels: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray | None]:
    """Two values: the colours, float32 [3, h, w] in 0..255, and the alpha, [1, h, w] in 0..1, or None without alpha."""
    values = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
    if layout.depth == 16:
        values /= 257
    alpha = values[-1:] / np.float32(255) if layout.alpha else None
    return (np.repeat(values[:1], 3, 0) if layout.grey else values[:3]), alpha


def write_pixels(colours: np.ndarray, opacity: np.ndarray | np.unsignedinteger | None, target: np.ndarray, layout: Layout) -> None:
    """Writes the network's result for a place, clamped and rounded, into the place of a larger picture."""
    if colours.dtype == np.uint8:
        target[...] = colours
        return
    factor = np.float32(1 if layout.depth == 8 else 257)
    for first in range(0, len(target), _BLOCK):
        rows = slice(first, first + _BLOCK)
        place, part = target[rows], colours[rows]
        if isinstance(opacity, np.ndarray):
            alpha = np.clip(luma(opacity[rows]), 0, 255)
            place[..., -1] = np.rint(alpha * factor)
            seen = alpha * factor > 0.5  # elsewhere alpha is rounded to zero, and there is no colour
            part = np.where(seen[..., None], part * 255 / np.where(seen, alpha, 1)[..., None], 0)
        elif opacity is not None:
            place[..., -1] = opacity
        part = np.clip(luma(part)[..., None] if layout.grey else part, 0, 255)
        part *= factor
        place[..., : part.shape[2]] = np.rint(part, out=part)
