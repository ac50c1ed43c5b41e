"""Converts Pillow images to arrays, and arrays to Pillow images."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
from PIL import ExifTags

from .colour import Colour, fitting_profile
from .formats import QUARTER_TURNS, Layout, missing_package, plausible
from .metadata import metadata_of

# These modes have at most 8 bits per channel. All others would lose something on the way to RGB, and a message refuses them.
_GREY_MODES = ("1", "L", "LA")
_MODES = (*_GREY_MODES, "P", "PA", "RGB", "RGBA")
# The place of each format's reader in Pillow, or in a package that extends it.
_READERS = {
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "JPEG 2000": ("PIL.Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    "PNM": ("PIL.PpmImagePlugin", "PpmImageFile"),
    "HEIC": ("pillow_heif", "HeifImageFile"),
    "JPEG XL": ("pillow_jxl.JpegXLImagePlugin", "JXLImageFile"),
}


def opener(format: str) -> Callable[[Any], PIL.Image.Image]:
    """Pillow's reader of a format, which takes an open file. Raises ValueError where the package that contains the reader is
    missing."""
    if (missing := missing_package(format)) is not None:
        raise ValueError(f"it is a {format} file, which is {missing}")
    module, name = _READERS[format]
    return getattr(importlib.import_module(module), name)


def to_array(image: PIL.Image.Image) -> np.ndarray:
    """Turns a Pillow image of mode 1, L, LA, P, PA, RGB or RGBA into uint8 [H, W, 1, 2, 3 or 4], upright. Raises ValueError for any
    other mode."""
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
    """The kind of the array that `to_array` made of a Pillow image, with the image's colours, resolution, EXIF and XMP."""
    across, down = map(float, image.info.get("dpi", (0, 0)))  # in a BMP, 0 means that there is none
    if image.getexif().get(ExifTags.Base.Orientation) in QUARTER_TURNS:
        across, down = down, across
    height, width, channels = array.shape
    info = image.info
    chromaticities = info.get("chromaticity")
    colour = Colour(info.get("gamma"), chromaticities and tuple(chromaticities), info.get("srgb"))
    xmp = info.get("xmp")
    metadata = metadata_of(info.get("exif"), xmp.encode() if isinstance(xmp, str) else xmp)
    return Layout(
        width,
        height,
        channels,
        icc=fitting_profile(info.get("icc_profile"), channels < 3)[0],
        dpi=plausible((across, down)),
        colour=None if colour == Colour() else colour,
        metadata=metadata,
    )


def from_array(array: np.ndarray, like: Layout | None = None) -> PIL.Image.Image:
    """Turns uint8 [H, W, 1, 2, 3 or 4] into a Pillow image of mode L, LA, RGB or RGBA. like: the layout whose profile, resolution,
    EXIF and XMP go into the image's `info`."""
    image = PIL.Image.fromarray(array[..., 0] if array.shape[2] == 1 else np.ascontiguousarray(array))
    if like is not None:
        metadata = like.metadata and like.metadata.upright(*image.size, like.dpi)
        exif = metadata and metadata.exif and b"Exif\0\0" + metadata.exif
        kept = {"icc_profile": like.profile, "dpi": like.dpi, "exif": exif, "xmp": metadata and metadata.xmp}
        image.info |= {name: value for name, value in kept.items() if value is not None}
    return image
