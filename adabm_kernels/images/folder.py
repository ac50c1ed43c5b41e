"""The pictures of a folder."""

from __future__ import annotations

import os
from pathlib import Path

_EXTENSIONS = (".png", ".jpg", ".jpeg")
_OTHERS = (".bmp", ".gif", ".jp2", ".pbm", ".pgm", ".ppm", ".tga", ".tif", ".tiff", ".webp")


def list_images(folder: str | os.PathLike, argument: str = "folder") -> list[Path]:
    """The PNG and JPEG files of a folder (not of the folders in it), by name; hidden files are left out.

    argument: what the caller calls the folder, for messages. Raises ValueError when it is no folder, holds no such file, or
    holds pictures in other formats: figures over the rest would pass for figures over all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{argument} must be a folder of pictures, got '{folder}', which {_instead_of_folder(folder)}")
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.is_file()]
    others = [path.name for path in files if path.suffix.lower() in _OTHERS]
    if others:
        raise ValueError(
            f"{argument} must hold PNG or JPEG pictures only, and '{folder}' has {len(others)} of another format, such as "
            f"'{others[0]}'"
        )
    images = [path for path in files if path.suffix.lower() in _EXTENSIONS]
    if not images:
        inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.upper() in ("HR", "LR", "GT")]
        hint = f" (did you mean '{inside[0]}'?)" if inside else ""
        raise ValueError(f"{argument} must hold at least one PNG or JPEG picture, got none in '{folder}'{hint}")
    return images


def _instead_of_folder(path: Path) -> str:
    return "is a file" if path.exists() else "does not exist"
