"""Writes pictures into files by rows, from the top. A file appears as a whole or not at all."""

from __future__ import annotations

import os
import queue
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from ..files import PartialFile, check_target, naming
from . import jpeg, tiff
from .formats import DEEP, EXTENSIONS, MAX_SIDE, TRANSPARENT, WHOLE, Layout
from .metadata import Metadata
from .passing import FileTarget, StreamSource
from .png import PngStream
from .vips import clear_errors, reason, system_error, vips

DEFAULT_QUALITY = 95  # quality of JPEG and WebP
_BIG_TIFF = 3 << 30  # with more bytes of pixels than this, a file may not fit the 4 GB of plain TIFF
_MM_PER_INCH = 25.4
_DPI_OF_NONE = 72.0  # a TIFF must have a resolution, and this stands for a picture without one


class PictureWriter:
    """Writes a picture row by row: `with PictureWriter(...) as out: out.write(rows)`, until all rows are written.

    path: the file that appears when the picture is complete, replacing an existing one; its folder is made where there is none. Or
    a binary stream, which then receives the picture. format: one of EXTENSIONS' values. layout: the kind of the rows that are
    written. quality: 1..100, for JPEG and WebP. Where the format cannot hold 16 bits, 8 are kept; where it holds no alpha, an
    opaque alpha channel is dropped.
    Encoding runs in a thread of its own while further rows are made. WebP and BMP are encoded from the whole picture in memory. An
    exception in the block leaves no file behind. warnings: what the output loses; each is warned of at once.
    Raises ValueError for a picture that the format cannot hold and for another quality, and OSError that names the path when the
    file system refuses.
    """

    def __init__(self, path: str | os.PathLike | BinaryIO, format: str, layout: Layout, *, quality: int = DEFAULT_QUALITY):
        self.name = os.fspath(path) if isinstance(path, str | os.PathLike) else "the output"
        self._path, self.format, self._quality, self._given = path, format, quality, layout
        check_quality(quality)
        check_format(self.name, format, layout)
        keeps_alpha = not layout.alpha or format in TRANSPARENT
        self.layout = replace(
            layout,
            depth=layout.depth if format in DEEP else 8,
            channels=layout.channels if keeps_alpha else layout.channels - 1,
        )
        self._metadata = Metadata() if layout.metadata is None else layout.metadata.upright(layout.width, layout.height, layout.dpi)
        self.warnings = self._losses()
        for words in self.warnings:
            warnings.warn(words, stacklevel=2)
        self._rows = 0
        self._bands: list[np.ndarray] = []
        self._encoder: _Encoder | None = None
        self._stack = ExitStack()
        self._ending = threading.Lock()  # which the first call of `__exit__` takes for good

    def __enter__(self) -> PictureWriter:
        with ExitStack() as stack:
            if isinstance(self._path, str | os.PathLike):
                stack.enter_context(naming(self._path))
                with suppress(FileExistsError):  # where a file has the folder's name, the next line raises an error that says so
                    Path(self._path).parent.mkdir(parents=True)
                self._file = stack.enter_context(PartialFile(self._path)).file
            else:
                self._file = stack.enter_context(tempfile.TemporaryFile())
            self._stack = stack.pop_all()
        return self

    def write(self, rows: np.ndarray) -> None:
        """Writes the next rows, [n, W, channels] of the layout's type."""
        rows = self._held(rows)
        self._rows += len(rows)
        if self._encoder is None and (len(rows) == self.layout.height or self.format in WHOLE):
            self._bands.append(rows)
            return
        if self._encoder is None:
            self._encoder = _Encoder(self)
        self._encoder.put(rows)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._ending.acquire(blocking=False):  # An interruption may come just when another thread was asked to end it.
            return
        with self._stack as stack:
            if kind is not None:
                if self._encoder is not None:
                    self._encoder.abort()
                stack.__exit__(kind, error, trace)
                return
            assert self._rows == self.layout.height, "every row is written"
            if self._encoder is not None:
                self._encoder.finish()
            else:
                self._save_whole(self._bands[0] if len(self._bands) == 1 else np.concatenate(self._bands))
            if not isinstance(self._path, str | os.PathLike):
                self._send(self._path)

    def _losses(self) -> list[str]:
        layout = self.layout
        unsaid = layout.colour is not None and layout.icc is None and not layout.colour.named
        held = {"BMP": None, "WebP": layout.rgb_profile}.get(self.format, layout.profile)
        if self.format == "PNG" or not (unsaid or (held is None and layout.profile is not None)):
            return []
        return [f"'{self.name}' will show other colours: {self.format} has no place for what the picture says of them; use .png"]

    def _held(self, rows: np.ndarray) -> np.ndarray:
        """The rows in the form that the format holds."""
        if self._given.channels != self.layout.channels:
            full = 255 if self._given.depth == 8 else 65535
            if int(rows[..., -1].min()) < full:
                raise ValueError(f"cannot write '{self.name}': {self.format} has no transparency and the picture has; use .png")
            rows = rows[..., :-1]
        if self._given.depth != self.layout.depth:
            rows = ((rows.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.ascontiguousarray(rows)

    def _save_whole(self, rows: np.ndarray) -> None:
        if self.format in WHOLE:
            self._save_pillow(rows)
            return
        if self.format == "PNG":
            self._save_png(iter([rows]))
            return
        pyvips = vips()
        layout = self.layout
        image = pyvips.Image.new_from_memory(rows.data, layout.width, layout.height, layout.channels, _FORMATS[layout.depth])
        self._save(image.copy(interpretation=_INTERPRETATIONS[layout.grey, layout.depth]))

    def _save_pillow(self, rows: np.ndarray) -> None:
        from .pillow import from_array

        image = from_array(rows)
        if self.format == "BMP":
            image.save(self._file, "BMP", dpi=self.layout.dpi or (0, 0))
            return
        described = {"exif": self._metadata.exif, "xmp": self._metadata.xmp, "icc_profile": self.layout.rgb_profile}
        described = {name: value for name, value in described.items() if value is not None}
        image.save(self._file, "WEBP", quality=self._quality, **described)

    def _save_png(self, pieces: Iterator[np.ndarray]) -> None:
        png = PngStream(self.layout)
        self._file.write(png.start())
        for rows in pieces:
            for chunk in png.rows(rows):
                self._file.write(chunk)
        self._file.write(png.end())

    def _save(self, image: Any) -> None:
        """Encodes a libvips image into the file."""
        pyvips, layout = vips(), self.layout
        across, down = layout.dpi or (_DPI_OF_NONE, _DPI_OF_NONE)
        image = image.copy(xres=across / _MM_PER_INCH, yres=down / _MM_PER_INCH)
        iptc = self._metadata.iptc if self.format == "JPEG" else None
        blobs = {"icc-profile": layout.profile, "xmp": self._metadata.xmp, "iptc": iptc}
        for name, blob in blobs.items():
            if blob is not None:
                image.set_type(pyvips.GValue.blob_type, f"{name}-data", blob)
        exif = self._metadata.exif
        segments = jpeg.segments(exif, layout.dpi) if self.format == "JPEG" else None
        # libvips states the resolution of a JPEG in EXIF that it makes itself, which can hold fractions of dots.
        own_exif = layout.dpi is not None and segments is None
        options: dict[str, Any] = {"keep": "icc:xmp:iptc" + (":exif" if own_exif else "")}
        big = layout.row_bytes * layout.height > _BIG_TIFF
        if self.format == "JPEG":
            # Optimal codes save 4 % of the file and take as long again (docs/images.md), and libjpeg then keeps the whole picture.
            options |= {"Q": self._quality, "subsample_mode": "off", "optimize_coding": False}
        else:
            options |= {"compression": "deflate", "predictor": "horizontal", "level": 1, "bigtiff": big, "resunit": "inch"}
        clear_errors()
        passed = FileTarget(self._file, None if segments is None else jpeg.Inserting(segments))
        target = passed.target()
        try:
            getattr(image, f"{self.format.lower()}save_target")(target, **options)
        except pyvips.Error as error:
            if passed.error is None:
                words = system_error(error)
                if words is not None:
                    raise OSError(words) from error
                raise RuntimeError(f"cannot write '{self.name}': {reason(error)}") from error
        if passed.error is not None:  # of which libvips does not always tell
            raise passed.error
        if self.format == "TIFF" and exif is not None and not big:
            tiff.add_exif(self._file, exif)

    def _send(self, stream: BinaryIO) -> None:
        self._file.seek(0)
        while chunk := self._file.read(1 << 20):
            stream.write(chunk)
        stream.flush()


_FORMATS = {8: "uchar", 16: "ushort"}
_INTERPRETATIONS = {(False, 8): "srgb", (False, 16): "rgb16", (True, 8): "b-w", (True, 16): "grey16"}


class _Encoder:
    """A thread that encodes rows while more rows are made.

    libvips pulls rows and does not take them when they come. So they reach it as a PNG without compression, which it reads from
    this class like a file.
    """

    PIECE = 8 << 20  # bytes that are handed over at a time

    def __init__(self, writer: PictureWriter):
        self._writer = writer
        self._waiting: queue.Queue[np.ndarray | None] = queue.Queue()
        self._taken = threading.Event()
        self._aborted = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="adabm encoder", daemon=True)
        self._thread.start()

    def put(self, rows: np.ndarray | None) -> None:
        """Hands rows over once those before them are taken; None marks the end. Raises the exception with which encoding has
        failed."""
        while self._error is None and not self._waiting.empty():
            self._taken.wait(0.1)
            self._taken.clear()
        if self._error is not None:
            raise self._error
        if rows is None:
            self._waiting.put(None)
            return
        step = max(self.PIECE // self._writer.layout.row_bytes, 1)
        for first in range(0, len(rows), step):
            self._waiting.put(rows[first : first + step])

    def finish(self) -> None:
        self.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def abort(self) -> None:
        self._aborted = True
        self._thread.join()

    def _run(self) -> None:
        try:
            if self._writer.format == "PNG":
                self._writer._save_png(self._pieces())
                return
            pixels = StreamSource(self._stream())
            source = pixels.source()
            try:
                self._writer._save(vips().Image.pngload_source(source, access="sequential", unlimited=True))
            finally:
                if pixels.error is not None:
                    raise pixels.error
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that writes
            self._error = error
            self._taken.set()

    def _stream(self) -> Iterator[bytes]:
        png = PngStream(self._writer.layout, plain=True)
        yield png.start()
        for rows in self._pieces():
            yield from png.rows(rows)
        if not self._aborted:
            yield png.end()

    def _pieces(self) -> Iterator[np.ndarray]:
        """The pieces that are handed over, until the end or until writing is aborted."""
        while not self._aborted:
            try:
                rows = self._waiting.get(timeout=0.1)
            except queue.Empty:
                continue
            self._taken.set()
            if rows is None:
                return
            yield rows


def check_quality(quality: int) -> None:
    """Raises ValueError for a quality that JPEG and WebP do not have."""
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
        raise ValueError(f"quality must be an integer from 1 to 100, got {quality!r}")


def check_format(name: str, format: str, layout: Layout) -> None:
    """Raises ValueError where a format cannot hold a picture of this size."""
    most = MAX_SIDE.get(format)
    if most is not None and max(layout.width, layout.height) > most:
        size = f"{layout.width}x{layout.height}"
        raise ValueError(f"cannot write '{name}': {format} holds at most {most} pixels a side, got {size}; use .png or .tif")


def check_output(path: str | os.PathLike) -> Path:
    """Raises at once what writing would raise after the work: for a wrong suffix, or for a folder that cannot be written to."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in EXTENSIONS:
        raise ValueError(f"cannot write '{path}': its suffix must be one of {', '.join(EXTENSIONS)}, got '{path.suffix}'")
    return check_target(path)
