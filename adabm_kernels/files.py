"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def check_target(path: str | os.PathLike) -> Path:
    """Raise now the OSError that writing `path` would raise after the work: it is a folder, or in one that cannot be written."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"cannot write '{path}': it is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write '{path}': the folder '{path.parent}' does not exist")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write '{path}': the folder '{path.parent}' is not writable")
    return path


def write_file(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` under a temporary name beside `path` and rename it; an existing file is replaced.

    The temporary file is removed on any failure, an interruption included. Raises OSError naming the path when the file
    system refuses.
    """
    path = Path(path)
    partial = path.with_name(f".adabm-{secrets.token_hex(8)}.tmp")
    try:
        # Mode "x" never follows or replaces another file, and gives the permissions the user's umask asks for.
        with open(partial, "xb") as file:
            file.write(data)
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise type(error)(f"cannot write '{path}': {error.strerror or error}") from error
        raise
