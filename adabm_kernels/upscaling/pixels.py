"""From the pixels of a picture to what the network gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..images import Layout

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def colour_channels(layout: Layout) -> int:
    """Channels of a picture without its alpha."""
    return layout.channels - layout.alpha


def luma(colours: np.ndarray) -> np.ndarray:
    """float32 [...] of [..., 3]. A product of matrices would round by the shape of the whole, and so by how a picture is cut."""
    red, green, blue = (colours[..., i] * weight for i, weight in enumerate(_LUMA))
    return red + green + blue


def network_images(pixels: np.ndarray, layout: Layout, varies: bool) -> list[np.ndarray]:
    """What the network gets, float32 [3, h, w] in 0..255 each: the colours, or where alpha varies these times alpha, and alpha."""
    seen, alpha = network_planes(pixels, layout)
    return [seen * alpha, np.repeat(alpha * 255, 3, 0)] if varies else [seen]


def network_planes(pixels: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray | None]:
    """float32 [3, h, w] of colours in 0..255, and [1, h, w] of alpha in 0..1 or None."""
    values = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
    if layout.depth == 16:
        values /= 257
    alpha = values[-1:] / np.float32(255) if layout.alpha else None
    return (np.repeat(values[:1], 3, 0) if layout.grey else values[:3]), alpha
