"""Reads pictures from files by rows, from the top."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np

from ..files import is_pipe
from .formats import Layout
from .openers import Findings, Opening, TooManyPixels, format_of, open_image, opened
from .vips import clear_errors, reason, vips

MAX_PIXELS = 178_956_970  # 2^29 / 3, about where Pillow too refuses a picture as a decompression bomb
_AHEAD_BYTES = 8 << 20
_START_BYTES = 32  # the number of first bytes of a file that tell its format


class PictureReader:
    """A picture as rows from the top, turned upright. layout: the kind of its pixels. format: the format of the file. warnings: the
    warnings that were given about it.

    Palettes become RGB, 1 to 7 bits become 8, a transparent colour becomes alpha, and CMYK and Lab become sRGB. Where a file holds
    several pictures, the first is read, with a warning when reading begins; in a TIFF it is the first that is not a smaller form of
    another.
    Rows are decoded as `read` asks for them, and no more of the picture is kept than necessary. All of it is kept where the file is
    BMP, WebP, GIF, AVIF, HEIC, JPEG XL, JPEG 2000, PNM, an 8-bit Lab TIFF, an interlaced PNG or a progressive JPEG. It is also
    kept, above 100 MB in a temporary file, where EXIF turns the picture.
    """

    def __init__(self, image: Any, layout: Layout, format: str, name: str, findings: Findings):
        self._image, self.layout, self.format, self._name = image, layout, format, name
        self._row = 0
        self._notes = [f"'{name}' {note}" for note in findings.notes]
        self._faults = [f"'{name}' is damaged, and read nevertheless: {fault}" for fault in findings.faults]
        self.warnings: list[str] = []

    def read(self, rows: int) -> np.ndarray:
        """The next `rows` rows, or as many as are left: [rows, W, channels]. Raises ValueError where the file turns out to be
        damaged."""
        rows = min(rows, self.layout.height - self._row)
        if not rows:
            return self._none()
        self._say(self._notes)
        top, self._row = self._row, self._row + rows
        found = self._fetched(top, rows)
        if self._row == self.layout.height:  # until then it may still turn out to be damaged beyond reading
            self._say(self._faults)
        return found

    def _fetched(self, top: int, rows: int) -> np.ndarray:
        if isinstance(self._image, np.ndarray):
            return self._image[top : top + rows]
        pyvips = vips()
        clear_errors()  # messages about an earlier file would be taken for messages about this one
        try:
            data = pyvips.Region.new(self._image).fetch(0, top, self.layout.width, rows)
        except pyvips.Error as error:
            raise ValueError(f"cannot read '{self._name}': the file is truncated or damaged ({reason(error)})") from error
        return np.frombuffer(data, self.layout.dtype).reshape(rows, self.layout.width, self.layout.channels)

    def _say(self, sentences: list[str]) -> None:
        """Warns of each sentence once."""
        while sentences:
            self.warnings.append(sentences.pop(0))
            warnings.warn(self.warnings[-1], stacklevel=3)

    def ahead(self, pool: ThreadPoolExecutor) -> Callable[[int], np.ndarray]:
        """A function like `read` that decodes the next rows in a thread of the pool before they are asked for, beginning now."""
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


def open_picture(
    source: str | os.PathLike | bytes, *, max_pixels: int = MAX_PIXELS, name: str | None = None, strict: bool = False
) -> PictureReader:
    """Opens a picture file (formats.READ), or its bytes. The content tells the format. A pipe is read to its end at once.

    max_pixels: larger pictures are refused before they are decoded. name: what messages call the picture. strict: true to refuse
    damage that spoils no row; otherwise a warning tells of it when rows are read.
    Raises OSError (FileNotFoundError, PermissionError, ...) when the file cannot be opened; TooManyPixels, a ValueError, when it is
    too large; and ValueError when it is empty, damaged so that rows are missing, without pixels, of another format, a camera's raw
    picture, or has pixels that are not 8 or 16 bits of grey, RGB, CMYK or Lab.
    """
    name = name or (os.fspath(source) if not isinstance(source, bytes) else "the data")
    try:
        if not isinstance(source, bytes) and is_pipe(source):
            with open(source, "rb") as file:
                source = read_whole(file, name)
        with opened(source) as file:
            start = file.read(_START_BYTES)
    except OSError as error:
        raise type(error)(f"cannot read '{name}': {error.strerror or error}") from error
    findings = Findings(thorough=strict)
    try:
        format = format_of(start)
        image, layout = open_image(Opening(source, format, max_pixels, findings))
        if strict and findings.faults:
            raise ValueError(f"the file is damaged: {findings.faults[0]} (--strict)")
    except ValueError as error:
        kind = TooManyPixels if isinstance(error, TooManyPixels) else ValueError
        raise kind(f"cannot read '{name}': {error}") from error
    return PictureReader(image, layout, format, name, findings)


def read_whole(file: BinaryIO, name: str) -> bytes:
    """All bytes of a picture from a stream that can be read only once. Raises ValueError, before the stream ends, where it does not
    begin like a picture."""
    start = file.read(_START_BYTES)
    try:
        format_of(start)
    except ValueError as error:
        raise ValueError(f"cannot read '{name}': {error}") from error
    return start + file.read()


def read_8_bit(path: str | os.PathLike) -> tuple[np.ndarray, Layout]:
    """Reads a whole file of 8 bits per channel. Returns uint8 [H, W, channels] and the kind of the picture. Raises as
    `open_picture` does, and ValueError for 16 bits."""
    reader = open_picture(path)
    if reader.layout.depth != 8:
        raise ValueError(f"cannot read '{path}': it has 16 bits per channel and only 8 are supported; convert it to 8 bits first")
    return reader.read(reader.layout.height), reader.layout


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads a whole file of 8 bits per channel as RGB, uint8 [H, W, 3]. Grey becomes three equal channels, and transparency is
    dropped. Raises as `read_8_bit` does."""
    rows, layout = read_8_bit(path)
    return rows[..., :1].repeat(3, 2) if layout.grey else np.ascontiguousarray(rows[..., :3])
