"""The file formats by name, and what each of them can hold."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import numpy as np

from .colour import Colour, rgb_profile
from .metadata import Metadata

# The formats that are written, by suffix.
EXTENSIONS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WebP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
# Further formats that are read, by suffix.
READ_ONLY = {
    ".gif": "GIF",
    ".avif": "AVIF",
    ".heic": "HEIC",
    ".heif": "HEIC",
    ".hif": "HEIC",
    ".jxl": "JPEG XL",
    ".jp2": "JPEG 2000",
    ".j2k": "JPEG 2000",
    ".jpx": "JPEG 2000",
    ".pbm": "PNM",
    ".pgm": "PNM",
    ".ppm": "PNM",
    ".pnm": "PNM",
}
# Kinds of pictures that are not read, by suffix. Where a folder holds one, a message names it.
RAW = "a raw picture of a camera"
UNREAD = {
    **dict.fromkeys((".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".nrw", ".3fr"), RAW),
    ".psd": "a Photoshop document",
    ".psb": "a Photoshop document",
    ".xcf": "a GIMP document",
    ".kra": "a Krita document",
    ".svg": "a vector graphic",
    ".eps": "a vector graphic",
    ".pdf": "a PDF document",
    ".exr": "an OpenEXR picture",
    ".hdr": "a Radiance picture",
    ".tga": "a TGA picture",
    ".dds": "a DDS texture",
    ".ico": "an icon",
    ".icns": "an icon",
    ".qoi": "a QOI picture",
    ".jxr": "a JPEG XR picture",
    ".pcx": "a PCX picture",
}
# for each format, the package's name for import, and its name for installation
_PACKAGES = {"HEIC": ("pillow_heif", "pillow-heif"), "JPEG XL": ("pillow_jxl", "pillow-jxl-plugin")}
READ = "PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF, HEIC, JPEG XL, JPEG 2000 and PNM"
MAX_SIDE = {"JPEG": 65500, "WebP": 16383}  # the limits of libjpeg and of the WebP format
DEEP = ("PNG", "TIFF")  # formats that hold 16 bits per channel
TRANSPARENT = ("PNG", "WebP", "TIFF")
QUARTER_TURNS = range(5, 9)  # EXIF orientations that turn rows into columns
WHOLE = ("WebP", "BMP")  # formats that are encoded from the whole picture in memory, not row by row
_LEAST_DPI, _MOST_DPI = 0.01, 1e6
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_UNREAD_STARTS = {
    b"8BPS": "a Photoshop document",
    b"%PDF": "a PDF document",
    b"v/1\x01": "an OpenEXR picture",
    b"FUJIFILM": RAW,
    b"IIRO": RAW,
    b"IIRS": RAW,
    b"IIU\0": RAW,
    b"#?RADIANCE": "a Radiance picture",
    b"DDS ": "a DDS texture",
    b"\0\0\1\0": "an icon",
    b"qoif": "a QOI picture",
    b"<svg": "a vector graphic",
}


@dataclass(frozen=True)
class Layout:
    """The kind of a picture. channels: 1 is grey, 2 grey with alpha, 3 RGB, 4 RGBA. depth: 8 or 16 bits per channel.

    icc: the colour profile, or None. dpi: the horizontal and vertical resolution; None where the picture has none. colour: what a
    PNG says of its colours without a profile; None where it says nothing. metadata: EXIF and similar; None where there is none.
    """

    width: int
    height: int
    channels: int
    depth: int = 8
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    colour: Colour | None = None
    metadata: Metadata | None = None

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

    @property
    def profile(self) -> bytes | None:
        """The colour profile for a format that describes colours only by profiles: `icc`, or a profile made from `colour` where
        that has precedence."""
        return self._made_profile(self.grey) or self.icc

    @property
    def rgb_profile(self) -> bytes | None:
        """The colour profile for a format that stores grey as RGB. It is None, too, where a grey profile has no tone curve to take
        over."""
        if self.icc is None or not self.grey:
            return self._made_profile(False) or self.icc
        return self._made_profile(False) or rgb_profile(self.icc)

    def _made_profile(self, grey: bool) -> bytes | None:
        """The profile made from `colour`, where that has precedence over `icc`."""
        if self.colour is None or (self.icc is not None and self.colour.cicp is None):
            return None
        return self.colour.profile(grey)


def missing_package(format: str) -> str | None:
    """The package that is missing to read a format, as a clause that follows "it is" or "which is"; None where nothing is
    missing."""
    module, package = _PACKAGES.get(format, (None, None))
    if module is None or importlib.util.find_spec(module) is not None:
        return None
    return f"read where the package {package} is installed (pip install {package})"


def plausible(dpi: tuple[float, float] | None) -> tuple[float, float] | None:
    """The resolution; None where no real resolution can have such a value."""
    return dpi if dpi is not None and all(_LEAST_DPI <= value <= _MOST_DPI for value in dpi) else None


def sniff(start: bytes) -> str | None:
    """The format of a file by its first 32 bytes; None for a format that is not read here."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if start[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if start[4:8] == b"ftyp":
        brands = [start[place : place + 4] for place in range(8, min(len(start), int.from_bytes(start[:4], "big")), 4)]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        return "HEIC" if any(brand in _HEIC_BRANDS for brand in brands) else None
    if start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")):
        return "JPEG XL"
    if start.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "JPEG 2000"
    if start[:1] == b"P" and start[1:2] in b"123456" and start[2:3] in b" \t\r\n#":
        return "PNM"
    return "BMP" if start[:2] == b"BM" else None


def unread(start: bytes) -> str | None:
    """The kind of a file that is not read here, by its first 32 bytes, with its article; None where that is not known."""
    if start[4:12] == b"ftypcrx ":
        return RAW
    return next((kind for begin, kind in _UNREAD_STARTS.items() if start.startswith(begin)), None)
