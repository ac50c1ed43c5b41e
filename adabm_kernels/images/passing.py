"""What libvips writes into a file and reads from a stream, passed on by Python, which remembers what went wrong on the way.

libvips does not always tell of a failed write: a TIFF with a hole in it would count as written. An exception that leaves a callback
would only be printed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from .vips import vips


class FileTarget:
    """A file that libvips writes. error: the first exception, None as long as there was none.

    begin: takes each piece before it is written and gives what is to be written in its place.
    """

    def __init__(self, file: BinaryIO, begin: Callable[[bytes], bytes] | None = None):
        self._file, self._begin = file, begin
        self.error: BaseException | None = None

    def target(self) -> Any:
        """The target for libvips, to be held as long as libvips writes."""
        target = vips().TargetCustom()
        target.on_write(self._write)
        target.on_read(self._read)
        target.on_seek(self._seek)
        return target

    def _write(self, piece: Any) -> int:
        try:
            data = bytes(piece)
            self._file.write(data if self._begin is None else self._begin(data))
            return len(data)
        except BaseException as error:  # noqa: BLE001 - it is raised again by whoever writes
            return self._failed(error)

    def _read(self, size: int) -> bytes | None:
        try:
            return self._file.read(size) or None
        except BaseException as error:  # noqa: BLE001
            self._failed(error)
            return None

    def _seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except BaseException as error:  # noqa: BLE001
            return self._failed(error)

    def _failed(self, error: BaseException) -> int:
        self.error = self.error or error
        return -1


class StreamSource:
    """Pieces of bytes that libvips reads. error: the exception with which they ended, None as long as there was
    none."""

    def __init__(self, pieces: Iterator[bytes]):
        self._pieces, self._held = pieces, memoryview(b"")
        self.error: BaseException | None = None

    def source(self) -> Any:
        """The source for libvips, to be held as long as libvips reads."""
        source = vips().SourceCustom()
        source.on_read(self._read)
        return source

    def _read(self, size: int) -> bytes:
        """Up to so many bytes; nothing at the end."""
        try:
            self._held = self._held or memoryview(next(self._pieces, b""))
            part, self._held = self._held[:size], self._held[size:]
            return bytes(part)
        except BaseException as error:  # noqa: BLE001 - it is raised again by whoever reads
            self.error = self.error or error
            return b""
