"""Pillow images in and out."""

from __future__ import annotations

import numpy as np
import PIL.Image
import PIL.ImageOps
from PIL import ExifTags

from .formats import QUARTER_TURNS, Layout

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


def layout_of(image: PIL.Image.Image, array: np.ndarray) -> Layout:
    """The kind of the array that `to_array` made of a Pillow image, with the image's colour profile and resolution."""
    dpi = tuple(map(float, image.info.get("dpi", (0, 0))))  # 0 is a BMP's word for none
    if image.getexif().get(ExifTags.Base.Orientation) in QUARTER_TURNS:
        dpi = dpi[::-1]
    height, width, channels = array.shape
    return Layout(width, height, channels, icc=image.info.get("icc_profile"), dpi=dpi if min(dpi) > 0 else None)


def from_array(array: np.ndarray, like: Layout | None = None) -> PIL.Image.Image:
    """uint8 [H, W, 1, 2, 3 or 4] -> Pillow image of mode L, LA, RGB or RGBA, with the colour profile and resolution of a layout."""
    image = PIL.Image.fromarray(array[..., 0] if array.shape[2] == 1 else np.ascontiguousarray(array))
    if like is not None:
        kept = {"icc_profile": like.icc, "dpi": like.dpi}
        image.info |= {name: value for name, value in kept.items() if value is not None}
    return image
