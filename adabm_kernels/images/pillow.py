"""Pillow images in and out."""

from __future__ import annotations

import numpy as np
import PIL.Image
import PIL.ImageOps

from .image import Image

# 8 bits per channel, or fewer. Everything else would lose something on the way to RGB and is refused by name.
_GREY_MODES = ("1", "L", "LA")
_MODES = (*_GREY_MODES, "P", "PA", "RGB", "RGBA")


def to_array(image: PIL.Image.Image) -> np.ndarray:
    """Pillow image of mode 1, L, LA, P, PA, RGB or RGBA -> uint8 [H, W, 1, 2, 3 or 4], upright; ValueError for any other mode."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(f"mode {image.mode} has more than 8 bits per channel; convert it to 8 bits first")
    if image.mode not in _MODES:
        known = ", ".join(_MODES)
        raise ValueError(f"mode {image.mode} is not supported (supported: {known}); convert it to RGB first")
    if 0 in image.size:
        raise ValueError(f"it must have at least one pixel, its size is {image.width}x{image.height}")
    mode = ("L" if image.mode in _GREY_MODES else "RGB") + ("A" if image.has_transparency_data else "")
    array = np.array(PIL.ImageOps.exif_transpose(image).convert(mode))
    return array if array.ndim == 3 else array[..., None]


def from_array(array: np.ndarray) -> PIL.Image.Image:
    """uint8 [H, W, 1, 2, 3 or 4] -> Pillow image of mode L, LA, RGB or RGBA."""
    return PIL.Image.fromarray(array[..., 0] if array.shape[2] == 1 else np.ascontiguousarray(array))


def from_pil(image: PIL.Image.Image) -> Image:
    """Pillow image of mode 1, L, LA, P, PA, RGB or RGBA -> Image, turned upright; ValueError for any other mode."""
    return Image.of(to_array(image))


def to_pil(image: Image) -> PIL.Image.Image:
    """Image -> Pillow image of mode L, LA, RGB or RGBA."""
    return from_array(image.channels)
