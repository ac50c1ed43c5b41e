"""The file formats by name, and what each can hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EXTENSIONS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WebP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
MAX_SIDE = {"JPEG": 65500, "WebP": 16383}  # of libjpeg and of the WebP format
DEEP = ("PNG", "TIFF")  # hold 16 bits per channel
TRANSPARENT = ("PNG", "WebP", "TIFF")
QUARTER_TURNS = range(5, 9)  # EXIF orientations that make columns of rows
WHOLE = ("WebP", "BMP")  # are encoded from the whole picture in memory, not row by row


@dataclass(frozen=True)
class Layout:
    """The kind of a picture. channels: 1 grey, 2 grey with alpha, 3 RGB, 4 RGBA. depth: 8 or 16 bits per channel.

    icc: its colour profile or None. dpi: horizontal and vertical resolution, None where it has none.
    """

    width: int
    height: int
    channels: int
    depth: int = 8
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None

    @property
    def grey(self) -> bool:
        return self.channels < 3

    @property
    def alpha(self) -> bool:
        return self.channels in (2, 4)

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        return np.uint8 if self.depth == 8 else np.uint16

    @property
    def row_bytes(self) -> int:
        return self.width * self.channels * self.depth // 8


def sniff(start: bytes) -> str | None:
    """The format of a file by its first 16 bytes, None for one that is not read here."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    return "BMP" if start[:2] == b"BM" else None
