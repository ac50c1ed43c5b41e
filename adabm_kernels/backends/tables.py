"""Tables of what was measured on cards, {key: entry}: one comes with the package, and this user's own takes precedence over it.

Every entry says where it comes from. Files are replaced whole, so processes may read and write at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import alone, check_target, naming, parse_json, write_file

Entries = dict[str, dict[str, Any]]


def read(path: Path, whole: Callable[[dict[str, Any]], bool]) -> Entries:
    """The entries of a table that are complete. It is {} for a file that does not exist or is no table.

    whole: tells whether an entry is complete. An entry for which it raises KeyError, TypeError, ValueError or AttributeError is
    not.
    """
    try:
        table = parse_json(path.read_text()).items()
    except (OSError, ValueError, AttributeError):
        return {}
    return {key: entry for key, entry in table if _holds(whole, entry)}


def _holds(whole: Callable[[dict[str, Any]], bool], entry: dict[str, Any]) -> bool:
    try:
        return whole(entry)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, IndexError):
        return False


def check(path: Path) -> None:
    """Raises the OSError, naming the path, that `add` would raise, so that it comes before anything is measured. Makes the
    folder."""
    _make_folder(path)
    check_target(path)


def _make_folder(path: Path) -> None:
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def add(path: Path, entries: Entries, whole: Callable[[dict[str, Any]], bool]) -> None:
    """Adds entries to a table. Readers see the whole old table or the whole new one, and of processes that write at once each keeps
    what the others have written. Raises OSError naming the path."""
    _make_folder(path)
    with alone(path.parent):
        table = read(path, whole) | entries
        write_file(path, (json.dumps(table, indent=1, sort_keys=True) + "\n").encode())
