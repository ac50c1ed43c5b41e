"""Places of files that all nodes of a cluster reach: folders, and object stores through pyarrow or fsspec."""

from __future__ import annotations

import io
import os
import posixpath
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ..files import PartialFile, naming

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # a letter alone would be a drive of Windows
# Object stores, by pyarrow's names: an object appears there whole, when its upload is complete. Those of fsspec are not among them,
# as it also completes an upload that failed in the middle.
_WHOLE = ("s3", "gcs", "abfs")
_REFUSED = re.compile(
    r"ACCESS_DENIED|FORBIDDEN|UNAUTHORIZED|INVALID_ACCESS_KEY|SIGNATURE|credential|HTTP status 40[13]|\b403\b", re.I
)
_ATTEMPTS = 4
_PAUSE = 0.5  # seconds before the second attempt; each further pause is twice as long
_COPIED = 16 << 20  # the bytes of a file that are handed to a store at a time
_DELAYED = "allow_delayed_open=true"  # an object of S3 below 10 MiB takes one request with this, and three without
_Result = TypeVar("_Result")


def is_uri(text: str) -> bool:
    """Tells whether a text is a URI such as s3://bucket/folder, and no path of this machine."""
    return _SCHEME.match(text) is not None


@dataclass(frozen=True)
class Store:
    """A folder of a file system. files: a file system of pyarrow. root: the folder's path there. shown: how messages call it."""

    files: Any
    root: str
    shown: str

    @classmethod
    def of(cls, place: str | os.PathLike, filesystem: Any = None) -> Store:
        """The folder at a path or a URI. filesystem: a file system of pyarrow or fsspec; None for the one that the URI names.

        Raises ValueError for a URI of a kind that nothing installed reads.
        """
        import pyarrow.fs

        text = os.fspath(place)
        if filesystem is not None:
            files = filesystem if isinstance(filesystem, pyarrow.fs.FileSystem) else _of_fsspec(filesystem)
            return cls(files, _SCHEME.sub("", text).rstrip("/"), text)
        if not is_uri(text):
            return cls(pyarrow.fs.LocalFileSystem(), os.path.abspath(text), text)
        try:
            files, root = _by_pyarrow(text)
        except (pyarrow.ArrowInvalid, NotImplementedError):
            files, root = _by_fsspec(text)
        return cls(files, root.rstrip("/"), text.partition("?")[0].rstrip("/"))

    def called(self, shown: str) -> Store:
        """The same folder under another name in messages."""
        return replace(self, shown=shown)

    @property
    def local(self) -> bool:
        """Whether the folder is one of the machine's own file system, which may be shared with other machines."""
        return self.files.type_name == "local"

    @property
    def appears_whole(self) -> bool:
        """Whether a file appears under its name only when all of it is written."""
        return self.files.type_name in _WHOLE

    def path(self, name: str) -> str:
        """The path of a file of the folder in its file system."""
        return posixpath.join(self.root, name) if name else self.root

    def uri(self, name: str) -> str:
        """How messages call a file of the folder."""
        return posixpath.join(self.shown, name) if name else self.shown

    def names(self) -> list[str]:
        """The files of the folder and of the folders in it, relative to it and sorted. A place that is a file gives one empty name,
        and a place that does not exist gives none."""
        import pyarrow.fs

        def listed() -> list[str]:
            if self.files.get_file_info(self.root).type == pyarrow.fs.FileType.File:
                return [""]
            found = self.files.get_file_info(pyarrow.fs.FileSelector(self.root, recursive=True, allow_not_found=True))
            # Some file systems begin their paths with a slash, and are asked for without it too.
            begin = len(self.root.strip("/"))
            paths = (info.path.strip("/") for info in found if info.type == pyarrow.fs.FileType.File)
            return sorted(path[begin:].lstrip("/") for path in paths)

        return _again(listed, f"cannot list '{self.shown}'")

    def exists(self, name: str) -> bool:
        import pyarrow.fs

        info = _again(lambda: self.files.get_file_info(self.path(name)), f"cannot look for '{self.uri(name)}'")
        return info.type == pyarrow.fs.FileType.File

    def read(self, name: str) -> bytes:
        """All bytes of a file."""

        def whole() -> bytes:
            with self.files.open_input_stream(self.path(name), compression=None) as file:
                return file.read()

        return _again(whole, f"cannot read '{self.uri(name)}'")

    def open(self, name: str) -> Any:
        """A file that can be read at any place, as pyarrow gives it."""
        return _again(lambda: self.files.open_input_file(self.path(name)), f"cannot read '{self.uri(name)}'")

    def write(self, name: str, data: bytes | BinaryIO) -> None:
        """Writes a file that appears whole or not at all, from bytes or from an open file, which is copied from its beginning.

        On a file system whose files appear while they are written, it is written under another name beside its own.
        """
        if self.local:
            path = Path(self.path(name))
            with naming(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with PartialFile(path) as partial:
                    _copy(_opened(data), partial.file)
            return
        _again(lambda: self._upload(name, data), f"cannot write '{self.uri(name)}'")

    def _upload(self, name: str, data: bytes | BinaryIO) -> None:
        path = self.path(name)
        folder = path.rpartition("/")[0]
        if self.appears_whole:
            with self.files.open_output_stream(path) as file:
                _copy(_opened(data), file)
            return
        self.files.create_dir(folder, recursive=True)
        partial = f"{folder}/.adabm-{secrets.token_hex(8)}.tmp"
        try:
            with self.files.open_output_stream(partial) as file:
                _copy(_opened(data), file)
            self.files.move(partial, path)
        except BaseException:
            with suppress(OSError):
                self.files.delete_file(partial)
            raise


def _of_fsspec(filesystem: Any) -> Any:
    import pyarrow.fs

    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))


def _by_pyarrow(uri: str) -> tuple[Any, str]:
    """The file system of pyarrow that a URI names, and the path in it."""
    import pyarrow.fs

    if uri.startswith("s3://") and _DELAYED not in uri:
        try:
            return pyarrow.fs.FileSystem.from_uri(f"{uri}{'&' if '?' in uri else '?'}{_DELAYED}")
        except pyarrow.ArrowInvalid:  # releases before 18 do not know it
            pass
    return pyarrow.fs.FileSystem.from_uri(uri)


def _by_fsspec(uri: str) -> tuple[Any, str]:
    """The file system of fsspec that a URI names, for pyarrow, and the path in it."""
    try:
        import fsspec

        files, root = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise ValueError(f"'{uri}' cannot be reached: neither pyarrow nor fsspec reads such a URI here ({error})") from error
    return _of_fsspec(files), root


def _opened(data: bytes | BinaryIO) -> BinaryIO:
    if isinstance(data, bytes):
        return io.BytesIO(data)
    data.seek(0)
    return data


def _copy(source: BinaryIO, target: Any) -> None:
    while chunk := source.read(_COPIED):
        target.write(chunk)


def _again(attempt: Callable[[], _Result], words: str) -> _Result:
    """The result of an attempt, repeated where a network or a store fails for a moment. Raises OSError, which begins with these
    words."""
    for number in range(_ATTEMPTS):
        try:
            return attempt()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
            raise type(error)(f"{words}: {_reason(error)}") from error
        except OSError as error:
            if number == _ATTEMPTS - 1 or _REFUSED.search(str(error)):
                raise OSError(f"{words}: {_reason(error)}") from error
            time.sleep(_PAUSE * 2**number)
        except Exception as error:  # libraries below fsspec raise errors of their own, mostly about credentials
            raise OSError(f"{words}: {_reason(error)}") from error
    raise AssertionError("the last attempt returns or raises")


def _reason(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    if _REFUSED.search(f"{type(error).__name__} {reason}"):
        reason += "; the store refuses access: every node needs its credentials, in the environment or in the store's own settings"
    return reason
