"""Files that appear whole or not at all, the reading of JSON, and the place of this user's own files."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

_DESCRIPTORS = ("/dev/fd", "/proc/self/fd")
_PARTIAL = re.compile(r"\.adabm-[0-9a-f]{16}\.tmp")
_OPEN_FILE = "/proc/self/fd/{}"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM)  # a file system that has no place, or fails, whatever is tried
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
    """A file without a name, which becomes `path` when the block ends without an exception.

    `file` is the open binary file, for reading and writing. Only an existing regular file is replaced: OSError where `path` is
    something else. Where `path` is a symbolic link, the file that it points to is replaced, and the link stays. On any exception,
    an interruption included, nothing is left. The contents are on the disk before the name is.

    Where the system knows files without a name (Linux, on most file systems), nothing is left either where the process is killed.
    Elsewhere the file has a temporary name beside `path`, and is locked while its writer lives. Where the file system knows locks,
    the next writer into the same folder removes what a killed writer has left.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.partial: Path | None = None  # the temporary name, while there is one

    def __enter__(self) -> PartialFile:
        self.path = _replaced(self.path)
        _remove_abandoned(self.path.parent)
        self.file = _nameless(self.path.parent) or self._named()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
                if self.partial is None:
                    self._link()
                assert self.partial is not None
                if os.name != "posix":
                    self.file.close()  # Windows renames no open file. Elsewhere its lock is kept until it has its name.
                os.replace(self.partial, self.path)
                self.partial = None
        finally:
            try:
                with suppress(OSError) if kind is not None else nullcontext():  # what is thrown away need not fit the disk
                    self.file.close()
            finally:
                if self.partial is not None:
                    self.partial.unlink(missing_ok=True)

    def _named(self) -> BinaryIO:
        """A new file with a temporary name, locked."""
        while True:
            self.partial = self._temporary()
            try:
                # Mode "x" never follows or replaces another file, and gives the permissions that the user's umask asks for.
                file = open(self.partial, "x+b")
                if _lock(file) is not False and self.partial.exists():
                    return file
            except BaseException:
                self.partial.unlink(missing_ok=True)
                raise
            file.close()  # another process took it for abandoned before it was locked, and removes it

    def _link(self) -> None:
        """Gives the file without a name a temporary one."""
        _lock(self.file)
        self.partial = self._temporary()
        try:
            # The descriptor of a folder has no effect on an absolute path. It makes Python follow the link to the open file.
            os.link(_OPEN_FILE.format(self.file.fileno()), self.partial, src_dir_fd=self.file.fileno())
        except OSError as error:
            if error.errno in _FULL:
                raise
            nameless = self.file  # the file system has files without a name and cannot give them one
            self.file = self._named()
            with nameless:
                nameless.seek(0)
                shutil.copyfileobj(nameless, self.file)
            self.file.flush()
            os.fsync(self.file.fileno())

    def _temporary(self) -> Path:
        return self.path.with_name(f".adabm-{secrets.token_hex(8)}.tmp")


def _nameless(folder: Path) -> BinaryIO | None:
    """A new file in this folder without a name, for reading and writing. None where the system or the file system has no such
    files, or offers no way to name them."""
    if sys.platform != "linux":
        return None
    try:
        # The permissions are those that the user's umask asks for.
        descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666)
    except OSError:  # which the caller meets again where it is not about files without a name
        return None
    try:
        file = open(descriptor, "w+b")
    except BaseException:
        os.close(descriptor)
        raise
    if os.path.exists(_OPEN_FILE.format(descriptor)):
        return file
    file.close()
    return None


def _lock(file: BinaryIO) -> bool | None:
    """Takes the lock by which other processes see that this file has a living writer. Returns False where another process has it,
    and None where there are no locks."""
    if os.name != "posix":
        return None
    import fcntl

    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
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


@contextmanager
def alone(folder: str | os.PathLike) -> Iterator[None]:
    """A block in which only one process or thread at a time is, of all that lock the same folder. Where the system or the file
    system knows no locks there may be several."""
    if os.name != "posix":
        yield
        return
    import fcntl

    with ExitStack() as stack:
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


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
