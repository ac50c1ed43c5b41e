"""One picture in memory."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from .reader import MAX_PIXELS, read_8_bit


@dataclass(frozen=True, eq=False)
class Image:
    """One picture: rgb uint8 [H, W, 3], alpha uint8 [H, W] or None, grey: rgb holds one channel three times."""

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False

    def __post_init__(self) -> None:
        if self.rgb.dtype != np.uint8 or self.rgb.ndim != 3 or self.rgb.shape[2] != 3 or 0 in self.rgb.shape:
            raise ValueError(f"image must be uint8 [H, W, 3] with at least one pixel, got {self.rgb.dtype} {list(self.rgb.shape)}")
        if self.alpha is not None and (self.alpha.dtype != np.uint8 or self.alpha.shape != self.rgb.shape[:2]):
            raise ValueError(
                f"alpha must be uint8 {list(self.rgb.shape[:2])} like the image, got {self.alpha.dtype} {list(self.alpha.shape)}"
            )

    @classmethod
    def of(cls, array: np.ndarray) -> Image:
        """From uint8 [H, W, channels]: grey, grey and alpha, RGB or RGBA."""
        channels = array.shape[2]
        colours = array[..., :1].repeat(3, 2) if channels < 3 else np.ascontiguousarray(array[..., :3])
        return cls(colours, np.ascontiguousarray(array[..., -1]) if channels in (2, 4) else None, channels < 3)

    @property
    def channels(self) -> np.ndarray:
        """uint8 [H, W, 1, 2, 3 or 4], as `of` takes it."""
        colours = self.rgb[..., :1] if self.grey else self.rgb
        return colours if self.alpha is None else np.concatenate([colours, self.alpha[..., None]], 2)

    @property
    def transparent(self) -> bool:
        """True when at least one pixel is not fully opaque."""
        return self.alpha is not None and int(self.alpha.min()) < 255


def read_image(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Read a whole file of 8 bits per channel (`open_picture`), turned upright as its EXIF orientation says.

    Grey and palette pictures become RGB (grey is remembered), transparency is kept apart. Raises as `open_picture` does, and
    ValueError for 16 bits per channel.
    """
    return Image.of(read_8_bit(path, max_pixels=max_pixels)[0])
