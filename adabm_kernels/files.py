"""Files that appear whole or not at all, the reading of JSON, and the place of this user's own files."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

_DESCRIPTORS = ("/dev/fd", "/proc/self/fd")
_PARTIAL = re.compile(r"\.adabm-[0-9a-f]{16}\.tmp")
_MOST_DIGITS = 19  # the most digits of a whole number in JSON: more than 64 bits hold, and few enough for every function of numbers
_tidied: set[Path] = set()


def check_target(path: str | os.PathLike) -> Path:
    """Raises now the OSError that writing `path` would raise after the work: where it is a folder, a device or a pipe, or lies in a
    folder that cannot be written. For a link, the file that it points to is checked."""
    path = Path(path)
    with naming(path):
        file = _replaced(path)
        if not file.parent.is_dir():
            raise FileNotFoundError(f"the folder '{file.parent}' does not exist")
        if not os.access(file.parent, os.W_OK | os.X_OK):
            raise PermissionError(f"the folder '{file.parent}' is not writable")
    return path


def _replaced(path: Path) -> Path:
    """The file that writing `path` replaces or makes; for a link, the file that it points to. Raises OSError where that is no
    file."""
    if path.is_dir():
        raise IsADirectoryError("it is a folder")
    if path.exists() and not path.is_file():
        raise OSError("it is a device or a pipe, which a file would replace")
    if not path.is_symlink():
        return path
    file = Path(os.path.realpath(path))
    if file.is_symlink():  # the links form a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return file


def is_pipe(path: str | os.PathLike) -> bool:
    """Whether a path can be read only once from front to end, and gives its file no name: a pipe, a socket, a device, an open
    descriptor."""
    if os.path.dirname(os.path.abspath(path)) in _DESCRIPTORS:
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)


@contextmanager
def utf8_name(path: str | os.PathLike) -> Iterator[str]:
    """A name of an existing file for libraries that know only UTF-8. Where the file's own name is not UTF-8, it is that of an open
    descriptor."""
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        with open(path, "rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield os.fspath(path)


class PartialFile:
    """A file under a temporary name beside `path`, which takes that name when the block ends without an exception.

    `file` is the open binary file, for reading and writing. Only an existing regular file is replaced: OSError where `path` is
    something else. Where `path` is a symbolic link, the file that it points to is replaced, and the link stays. On any exception,
    an interruption included, the temporary file is removed. The contents are on the disk before the name is.

    The temporary file is locked while its writer lives. Where the file system knows locks, the next writer into the same folder
    removes what a killed writer has left.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def __enter__(self) -> PartialFile:
        self.path = _replaced(self.path)
        _remove_abandoned(self.path.parent)
        while True:
            self.partial = self.path.with_name(f".adabm-{secrets.token_hex(8)}.tmp")
            try:
                # Mode "x" never follows or replaces another file, and gives the permissions that the user's umask asks for.
                self.file = open(self.partial, "x+b")
            except BaseException:
                self.partial.unlink(missing_ok=True)
                raise
            if not _lock(self.file) or self.partial.exists():
                return self
            self.file.close()  # another process removed it as abandoned before it was locked

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


def _lock(file: BinaryIO) -> bool:
    """Takes the lock by which other processes see that this file has a living writer. Returns False where another process has it,
    and where there are no locks."""
    if os.name != "posix":
        return False
    import fcntl

    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_abandoned(folder: Path) -> None:
    """Removes from a folder the temporary files of writers that are no longer alive, once in the life of this process."""
    place = Path(os.path.abspath(folder))
    if place in _tidied:
        return
    _tidied.add(place)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _PARTIAL.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError), open(entry.path, "r+b") as file:
                    if _lock(file):
                        os.unlink(entry.path)


def write_file(path: str | os.PathLike, data: bytes) -> None:
    """Writes `data` to a file that appears whole or not at all (PartialFile).

    Raises OSError naming the path when the file system refuses.
    """
    with naming(path), PartialFile(path) as partial:
        partial.file.write(data)


class naming:
    """A block in which every OSError is raised again with a message that this file could not be written."""

    def __init__(self, path: str | os.PathLike):
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise type(error)(f"cannot write '{self.path}': {error.strerror or error}") from error


def parse_json(text: str | bytes) -> Any:
    """The value of JSON text. NaN and Infinity, which Python writes, are read as floats.

    Raises ValueError in words for everything that cannot be read: text that is no JSON, nesting that is too deep, and whole numbers
    that no machine word holds.
    """
    try:
        return json.loads(text, parse_int=_whole_number)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error


def _whole_number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS + digits.startswith("-"):
        raise ValueError(f"its JSON has a whole number of {len(digits)} digits, where at most {_MOST_DIGITS} are read")
    return int(digits)


def user_path(name: str) -> Path:
    """The path of this user's file of that name: adabm_kernels/NAME in $XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adabm_kernels" / name
