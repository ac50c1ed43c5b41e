"""Files that appear whole or not at all, and where this user's own lie."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

_DESCRIPTORS = ("/dev/fd", "/proc/self/fd")


def check_target(path: str | os.PathLike) -> Path:
    """Raise now the OSError that writing `path` would raise after the work: it is a folder, a device or a pipe, or in a folder that
    cannot be written. Of a link what it points to is looked at."""
    path = Path(path)
    with naming(path):
        file = _replaced(path)
        if not file.parent.is_dir():
            raise FileNotFoundError(f"the folder '{file.parent}' does not exist")
        if not os.access(file.parent, os.W_OK | os.X_OK):
            raise PermissionError(f"the folder '{file.parent}' is not writable")
    return path


def _replaced(path: Path) -> Path:
    """The file that writing `path` replaces or makes: of a link what it points to. OSError where that is no file."""
    if path.is_dir():
        raise IsADirectoryError("it is a folder")
    if path.exists() and not path.is_file():
        raise OSError("it is a device or a pipe, which a file would replace")
    if not path.is_symlink():
        return path
    file = Path(os.path.realpath(path))
    if file.is_symlink():  # links in a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return file


def is_pipe(path: str | os.PathLike) -> bool:
    """Whether a path is read once from front to end, and gives its file no name: a pipe, a socket, a device, an open descriptor."""
    if os.path.dirname(os.path.abspath(path)) in _DESCRIPTORS:
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)


@contextmanager
def utf8_name(path: str | os.PathLike) -> Iterator[str]:
    """A name of an existing file for libraries that know only UTF-8: where its own is not, that of an open descriptor."""
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        with open(path, "rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield os.fspath(path)


class PartialFile:
    """A file under a temporary name beside `path`, which takes that name when the block ends without an exception.

    `file` is the open binary file, for reading and writing. An existing file is replaced, and nothing else: OSError where `path` is
    no regular file. Where it is a symbolic link, that is the file which it points to: the link stays. On any exception, an
    interruption included, the temporary file is removed. The contents are on the disk before the name is.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def __enter__(self) -> PartialFile:
        self.path = _replaced(self.path)
        self.partial = self.path.with_name(f".adabm-{secrets.token_hex(8)}.tmp")
        try:
            # Mode "x" never follows or replaces another file, and gives the permissions the user's umask asks for.
            self.file = open(self.partial, "x+b")
        except BaseException:
            self.partial.unlink(missing_ok=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
            self.file.close()
            if kind is None:
                os.replace(self.partial, self.path)
        finally:
            self.partial.unlink(missing_ok=True)


def write_file(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` to a file that appears whole or not at all (PartialFile).

    Raises OSError naming the path when the file system refuses.
    """
    with naming(path), PartialFile(path) as partial:
        partial.file.write(data)


class naming:
    """A block whose OSErrors say that this file could not be written."""

    def __init__(self, path: str | os.PathLike):
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise type(error)(f"cannot write '{self.path}': {error.strerror or error}") from error


def user_path(name: str) -> Path:
    """The file of that name of this user: adabm_kernels/NAME in $XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adabm_kernels" / name
