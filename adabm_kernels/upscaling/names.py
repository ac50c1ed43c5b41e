"""The names of output files."""

# The command line imports this when it starts, so nothing heavy may be imported here.
from __future__ import annotations

from pathlib import PurePath

from .sizes import Size

DEFAULT_SUFFIX = "_x{scale}"


def labelled(suffix: str, size: Size, scale: int) -> str:
    """What the name of an output adds to the name of its input. suffix: text in which "{scale}" stands for the scale; the default
    stands for the size in words. scale: the scale of the model."""
    return f"_{size.label(scale)}" if suffix == DEFAULT_SUFFIX else suffix.replace("{scale}", size.times(scale) or "")


def kept_extension(path: PurePath) -> str:
    """The extension, without its dot, of an output in the format of its input: "png" where that format is not written."""
    from ..images import EXTENSIONS

    suffix = path.suffix.lower()
    return suffix[1:] if suffix in EXTENSIONS else "png"


def output_name(source: PurePath, format: str | None, added: str) -> tuple[str, str]:
    """Returns two values: the file name of the output of a picture, and its format, a value of images.EXTENSIONS.

    format: an extension without its dot, "keep" for that of the picture, None for "png". added: what the name adds (`labelled`).
    """
    from ..images import EXTENSIONS

    extension = {None: "png", "keep": kept_extension(source)}.get(format, format)
    return f"{source.stem}{added}.{extension}", EXTENSIONS[f".{extension}"]
