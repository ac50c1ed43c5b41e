"""Finds the pictures of a folder, and the files in it that are not pictures or cannot be read."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from .formats import EXTENSIONS, READ_ONLY, UNREAD, missing_package, sniff

_PLAIN = ("PNG", "JPEG")  # the formats in which pictures for measuring and calibrating are kept
_START_BYTES = 32


@dataclass(frozen=True)
class PassedOver:
    """A file that looks like a picture and is not read. reason: why not, as a clause."""

    path: Path
    reason: str


@dataclass
class Listing:
    """The contents of a folder. pictures: the files to read. passed_over: other files that look like pictures. others: the number
    of all other files."""

    pictures: list[Path] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)
    others: int = 0


def find_pictures(folder: Path, left_out: Path | None = None) -> Listing:
    """Everything in a folder and in the folders within it, sorted by path. Hidden files and folders are left out, and links to
    folders are not followed.

    left_out: a folder within it that is not searched; None where all are searched.
    """
    found = Listing()

    def cannot_open(error: OSError) -> None:
        found.passed_over.append(PassedOver(Path(error.filename), f"it cannot be opened: {error.strerror}"))

    for place, folders, files in os.walk(folder, onerror=cannot_open):
        folders[:] = [name for name in folders if not name.startswith(".") and not _is(Path(place, name), left_out)]
        links = [path for name in folders if (path := Path(place, name)).is_symlink()]
        found.passed_over += [PassedOver(path, "it is a link to a folder, which is not followed") for path in links]
        for path in (Path(place, name) for name in files if not name.startswith(".")):
            _sort_in(path, found)
    found.pictures.sort()
    found.passed_over.sort(key=lambda passed: passed.path)
    return found


def _is(path: Path, other: Path | None) -> bool:
    return other is not None and os.path.realpath(path) == os.path.realpath(other)


def _sort_in(path: Path, found: Listing) -> None:
    suffix = path.suffix.lower()
    format = EXTENSIONS.get(suffix) or READ_ONLY.get(suffix)
    if format is not None:
        missing = missing_package(format)
        reason = _no_file(path) or (missing and f"{format} is {missing}")
    elif suffix in UNREAD:
        reason = f"it is {UNREAD[suffix]}, which is not read"
    elif (format := _content(path)) is None:
        found.others += 1
        return
    else:
        reason = f"it is a {format} file whose name does not say so"
    if reason is None:
        found.pictures.append(path)
    else:
        found.passed_over.append(PassedOver(path, reason))


def _no_file(path: Path) -> str | None:
    """The reason why a path does not lead to a file, as a clause; None where it does."""
    try:
        return None if stat.S_ISREG(os.stat(path).st_mode) else "it is no file"
    except OSError as error:  # a folder may allow listing but not opening its files
        return "it is a link that leads nowhere" if os.path.islink(path) else f"it cannot be opened: {error.strerror}"


def _content(path: Path) -> str | None:
    """The format of a file by its content; None where the file is not a picture or cannot be read."""
    if _no_file(path):
        return None
    try:
        with open(path, "rb") as file:
            return sniff(file.read(_START_BYTES))
    except OSError:
        return None


def list_images(folder: str | os.PathLike, argument: str = "folder") -> list[Path]:
    """The PNG and JPEG files of a folder (not of the folders in it), by name. Hidden files are left out.

    argument: what the caller calls the folder, for messages. Raises ValueError for a path that is not a folder, for a folder
    without such files, and for one that holds pictures in other formats or links that lead nowhere: figures for the rest would be
    mistaken for figures for all pictures.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{argument} must be a folder of pictures, got '{folder}', which {_instead_of_folder(folder)}")
    found = Listing()
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and not os.path.isdir(path):
            _sort_in(path, found)
    others = [path for path in found.pictures if EXTENSIONS.get(path.suffix.lower()) not in _PLAIN]
    if others:
        raise ValueError(
            f"{argument} must hold PNG or JPEG pictures only, and '{folder}' has {len(others)} of another format, such as "
            f"'{others[0].name}'"
        )
    if found.passed_over:
        first = found.passed_over[0]
        raise ValueError(
            f"{argument} must hold PNG or JPEG pictures only, and of '{folder}' {len(found.passed_over)} cannot be read, such as "
            f"'{first.path.name}': {first.reason}"
        )
    if not found.pictures:
        inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.upper() in ("HR", "LR", "GT")]
        hint = f" (did you mean '{inside[0]}'?)" if inside else ""
        raise ValueError(f"{argument} must hold at least one PNG or JPEG picture, got none in '{folder}'{hint}")
    return found.pictures


def _instead_of_folder(path: Path) -> str:
    return "is a file" if path.exists() else "does not exist"
