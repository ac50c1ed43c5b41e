"""Pictures from files, read from the top by rows."""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..files import is_pipe
from .formats import QUARTER_TURNS, Layout, sniff
from .png import says_resolution
from .vips import reason, vips

MAX_PIXELS = 178_956_970  # 2^29 / 3, about where Pillow too refuses a picture as a decompression bomb
_AHEAD_BYTES = 8 << 20
_MM_PER_INCH = 25.4
_BMP_CORE_HEADER = struct.pack("<I", 12)  # of OS/2, with sizes of 16 bits
_KNOWN = ("b-w", "srgb", "rgb", "grey16", "rgb16")


class PictureReader:
    """A picture as rows from the top, turned upright. layout: its kind. format: of the file.

    Palettes become RGB, 1 to 7 bits become 8, a transparent colour becomes alpha. Of several pictures in a file it is the first,
    with a warning when it is read.
    Decoding goes along with `read` and keeps no more than it must: all of it where the file is BMP, WebP, an interlaced PNG or a
    progressive JPEG, and, above 100 MB in a temporary file, where EXIF turns the picture.
    """

    def __init__(self, image: Any, layout: Layout, format: str, name: str):
        self._image, self.layout, self.format, self._name = image, layout, format, name
        self._row = 0
        paged = not isinstance(image, np.ndarray) and image.get_typeof("n-pages")
        self._pages = image.get("n-pages") if paged else 1

    def read(self, rows: int) -> np.ndarray:
        """The next rows, at most as many as are left: [rows, W, channels]. ValueError where the file turns out damaged."""
        rows = min(rows, self.layout.height - self._row)
        if not rows:
            return self._none()
        if self._pages > 1:
            warnings.warn(f"'{self._name}' holds {self._pages} pictures, of which only the first is read", stacklevel=2)
            self._pages = 1  # said once
        top, self._row = self._row, self._row + rows
        if isinstance(self._image, np.ndarray):
            return self._image[top : self._row]
        pyvips = vips()
        try:
            data = pyvips.Region.new(self._image).fetch(0, top, self.layout.width, rows)
        except pyvips.Error as error:
            raise ValueError(f"cannot read '{self._name}': the file is truncated or damaged ({reason(error)})") from error
        return np.frombuffer(data, self.layout.dtype).reshape(rows, self.layout.width, self.layout.channels)

    def ahead(self, pool: ThreadPoolExecutor) -> Callable[[int], np.ndarray]:
        """`read`, with the next rows decoded in a thread of the pool before they are asked for, beginning now."""
        rows = max(_AHEAD_BYTES // self.layout.row_bytes, 1)
        held, coming = self._none(), pool.submit(self.read, rows)

        def read(count: int) -> np.ndarray:
            nonlocal held, coming
            parts, missing = [held], min(count, self.layout.height) - len(held)
            while missing > 0 and len(following := coming.result()):
                coming = pool.submit(self.read, rows)
                parts.append(following)
                missing -= len(following)
            found = np.concatenate(parts) if len(parts) > 1 else held
            held = found[count:]
            return found[:count]

        return read

    def _none(self) -> np.ndarray:
        return np.empty((0, self.layout.width, self.layout.channels), self.layout.dtype)


def open_picture(source: str | os.PathLike | bytes, *, max_pixels: int = MAX_PIXELS, name: str | None = None) -> PictureReader:
    """Open a PNG, JPEG, WebP, TIFF or BMP file, or its bytes; the format is told by the content. Of a pipe all is read at once.

    max_pixels: refuse larger pictures before decoding them. name: what messages call it.
    Raises OSError (FileNotFoundError, PermissionError, ...) when the file cannot be opened and ValueError when it is empty,
    damaged, truncated, without pixels, too large, of another format, or of pixels that are not 8 or 16 bits of grey or RGB.
    """
    name = name or (os.fspath(source) if not isinstance(source, bytes) else "the data")
    try:
        if not isinstance(source, bytes) and is_pipe(source):
            with open(source, "rb") as file:
                source = read_whole(file, name)
        start = source[:32] if isinstance(source, bytes) else _start(Path(source))
    except OSError as error:
        raise type(error)(f"cannot read '{name}': {error.strerror or error}") from error
    try:
        format = _format(start)
        image, layout = (_open_bmp if format == "BMP" else _open_vips)(source, format, max_pixels)
    except ValueError as error:
        raise ValueError(f"cannot read '{name}': {error}") from error
    return PictureReader(image, layout, format, name)


def read_whole(file: BinaryIO, name: str) -> bytes:
    """All bytes of a picture from a stream that can be read only once. ValueError, before it ends, where it begins as none does."""
    start = file.read(32)
    try:
        _format(start)
    except ValueError as error:
        raise ValueError(f"cannot read '{name}': {error}") from error
    return start + file.read()


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(32)


def _format(start: bytes) -> str:
    if not start:
        raise ValueError("the file is empty (0 bytes)")
    format = sniff(start)
    if format is None:
        raise ValueError("it is no PNG, JPEG, WebP, TIFF or BMP file")
    if format == "PNG" and len(start) >= 24:
        _check_size(*struct.unpack(">II", start[16:24]), max_pixels=None)  # libpng reports a width of 0 as a damaged header
    return format


def _check_size(width: int, height: int, max_pixels: int | None) -> None:
    if not width or not height:
        raise ValueError(f"it must have at least one pixel, its size is {width}x{height}")
    if max_pixels is not None and width * height > max_pixels:
        raise ValueError(f"it has {width}x{height} = {width * height} pixels, more than the limit of {max_pixels} (--max-pixels)")


def _open_vips(source: str | os.PathLike | bytes, format: str, max_pixels: int) -> tuple[Any, Layout]:
    pyvips = vips()
    load = getattr(pyvips.Image, f"{format.lower()}load_{'buffer' if isinstance(source, bytes) else 'source'}")

    def loader(source: str | os.PathLike | bytes, **options: Any) -> Any:
        if isinstance(source, bytes):
            return load(source, **options)
        with open(source, "rb") as file:  # libvips takes no names that are not UTF-8; it duplicates the descriptor
            return load(pyvips.Source.new_from_descriptor(file.fileno()), **options)

    # Beyond a truncated file, "error" also refuses a wrong checksum.
    options = {"fail_on": "error"} | ({"unlimited": True} if format in ("PNG", "JPEG", "TIFF") else {})
    try:
        image = loader(source, access="sequential", **options)
        _check_size(image.width, image.height, max_pixels)
        icc = image.get("icc-profile-data") if image.get_typeof("icc-profile-data") else None
        orientation = image.get("orientation") if image.get_typeof("orientation") else 1
        if orientation > 1:
            image = loader(source, access="random", **options).autorot()
    except pyvips.Error as error:
        raise ValueError(f"its header is truncated or damaged ({reason(error)})") from error
    _check_kind(image)
    dpi = (image.xres * _MM_PER_INCH, image.yres * _MM_PER_INCH) if _says_resolution(source, format, image) else None
    if dpi is not None and orientation in QUARTER_TURNS:
        dpi = dpi[::-1]
    depth = 8 if image.format == "uchar" else 16
    return image, Layout(image.width, image.height, image.bands, depth, icc, dpi)


def _says_resolution(source: str | os.PathLike | bytes, format: str, image: Any) -> bool:
    if format != "WebP" and image.get_typeof("resolution-unit"):  # of the file itself or its EXIF, which is not read from WebP
        return True
    if format != "PNG":
        return False
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        return says_resolution(file)


def _check_kind(image: Any) -> None:
    if image.interpretation == "cmyk":
        raise ValueError("mode CMYK is not supported (supported: grey and RGB); convert it to RGB first")
    if image.format not in ("uchar", "ushort"):
        raise ValueError(f"its pixels are of type {image.format}; 8 and 16 bits per channel are supported")
    if image.interpretation not in _KNOWN:
        raise ValueError(f"its colour space is {image.interpretation}; grey and RGB are supported: convert it first")
    if image.bands > 4 or (image.interpretation in ("b-w", "grey16") and image.bands > 2):
        raise ValueError(f"it has {image.bands} channels; grey and RGB with or without alpha are supported")


def _open_bmp(source: str | os.PathLike | bytes, format: str, max_pixels: int) -> tuple[np.ndarray, Layout]:
    import PIL.BmpImagePlugin

    from .pillow import layout_of, to_array

    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        width, height = struct.unpack_from("<HH" if data[14:18] == _BMP_CORE_HEADER else "<ii", data, 18)
        _check_size(width, abs(height), max_pixels)  # rows from the top have a negative height
        image = PIL.BmpImagePlugin.BmpImageFile(io.BytesIO(data))  # PIL.Image.open has a limit of its own
        image.load()
    except (OSError, SyntaxError, EOFError, struct.error, IndexError) as error:
        raise ValueError(f"the file is truncated or damaged ({error})") from error
    array = to_array(image)
    return array, layout_of(image, array)


def read_8_bit(path: str | os.PathLike) -> tuple[np.ndarray, Layout]:
    """A whole file of 8 bits per channel: uint8 [H, W, channels] and its kind. Raises as `open_picture` does, and ValueError for 16
    bits."""
    reader = open_picture(path)
    if reader.layout.depth != 8:
        raise ValueError(f"cannot read '{path}': it has 16 bits per channel and only 8 are supported; convert it to 8 bits first")
    return reader.read(reader.layout.height), reader.layout


def read_image(path: str | os.PathLike) -> np.ndarray:
    """A whole file of 8 bits per channel as RGB, uint8 [H, W, 3]: grey three times, no transparency. Raises as `read_8_bit`."""
    rows, layout = read_8_bit(path)
    return rows[..., :1].repeat(3, 2) if layout.grey else np.ascontiguousarray(rows[..., :3])
