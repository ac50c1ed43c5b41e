"""The arguments of the commands: their types, and the groups of options that several commands have."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..backends import CHOICES as BACKEND_CHOICES
from ..models import DEFAULT_MODEL
from .common import STDOUT

BITS = ("auto", *map(str, range(2, 9)))
DEPTHS = ("auto", "full")  # a depth may also be a number of blocks
MAX_PIXELS = 178_956_970  # equals images.MAX_PIXELS; importing that module would load numpy
_STANDARD_INPUT = ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")  # other names of "-"
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_WHOLE = re.compile(r"[0-9]{1,19}")  # at most as many digits as 64 bits hold
_NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")
_STANDARD_OUTPUT = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def add_windows(
    parser: argparse.ArgumentParser, tile: str = "48 radii of the receptive field, less where memory asks for it"
) -> None:
    """Adds the options about cutting a picture into windows. tile: the default size of windows, in words."""
    add = parser.add_argument
    add(
        "--window",
        "--tile",
        dest="tile",
        metavar="N",
        type=integer(0),
        help=f"pixels a side of the windows that a picture is cut into; 0 for the whole (default: {tile})",
    )
    add(
        "--halo",
        metavar="N",
        type=integer(0),
        help="pixels around each window that are computed too, so that windows join (default: as many as leave no seam)",
    )
    add(
        "--protocol",
        choices=("halo", "paper"),
        default="halo",
        help="how a picture is cut: windows with a halo, or AdaBM's 96x96 patches without one (default: %(default)s)",
    )
    add(
        "--smooth",
        choices=("auto", "interpolate", "network"),
        default="auto",
        help="how smooth areas are made, where few bits draw stripes: by cubic interpolation or by the network; auto "
        "interpolates if the network leaves colours as they are (default: %(default)s)",
    )
    add(
        "--max-memory",
        metavar="SIZE",
        type=memory,
        default="2G",
        help="what the process may hold, such as 1.5G or 800M (default: %(default)s)",
    )


def add_model(parser: argparse.ArgumentParser, others: str, device: bool = True) -> None:
    """Adds the options that choose a model, and how and where it is computed.

    others: what --model takes beside the name of a built-in model, in words. device: whether to add --device.
    """
    parser.add_argument(
        "--model",
        metavar="NAME|PATH",
        default=DEFAULT_MODEL,
        help=f"built-in model (`adabm models` lists them){others} (default: %(default)s)",
    )
    parser.add_argument(
        "--bits",
        metavar="auto|2..8",
        default="auto",
        type=bits,
        help="bit-width of the adaptive layers: decided per image and layer, or one for all (default: auto)",
    )
    parser.add_argument(
        "--depth",
        metavar="auto|full|N",
        default="auto",
        type=depth,
        help="residual blocks that are computed: auto leaves them out in easy tiles of the picture, where the model has an exit "
        "for these; full computes all everywhere, 0 none (default: auto)",
    )
    parser.add_argument("--backend", choices=BACKEND_CHOICES, default="auto", help="where to compute (default: %(default)s)")
    if device:
        parser.add_argument("--device", metavar="NAME", help="torch's name of the device, such as cpu or cuda:1 (default: cpu)")
    parser.add_argument("--threads", metavar="N", type=integer(1), help="CPU threads (default: as many as torch would use)")
    parser.add_argument(
        "--graph",
        action=argparse.BooleanOptionalAction,
        help="on a CUDA device, record forward passes and replay them (default: a shape that comes three times, where it can be)",
    )


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Adds the options for properties of a network that its float weights do not tell (weights.py)."""
    group = parser.add_argument_group("float weights, where they do not tell it themselves")
    add = group.add_argument
    add("--res-scale", metavar="R", type=number(0), help="residual scale: 0.1 for the largest EDSR (default: 1)")
    add(
        "--rgb-range",
        type=int,
        choices=(1, 255),
        help="of the pixels that they are for, 0..1 or 0..255 (default: as weights and layout say, else 255)",
    )
    add(
        "--mean-shift",
        metavar="none|div2k|R,G,B",
        type=mean_shift,
        help="colour that an EDSR subtracts and adds again, in parts of the range (default: as weights and layout say)",
    )
    add("--channel-order", choices=("rgb", "bgr"), help="bgr for a network trained on pictures as OpenCV reads them (default: rgb)")
    add("--weights-key", metavar="KEY", help="which of several networks in the file, such as params_ema")
    add(
        "--no-check",
        action="store_true",
        help="leave out the check that the float network upscales some of the pictures, shrunk, as a network should",
    )


def add_existing(parser: argparse.ArgumentParser) -> None:
    """Adds the option that says what to do about an output that exists already, for commands with one output."""
    parser.add_argument(
        "--existing",
        choices=("replace", "refuse"),
        default="refuse",
        help="what to do about an output that exists (default: %(default)s)",
    )
    parser.add_argument(
        "--overwrite", action="store_const", dest="existing", const="replace", help="the same as --existing replace"
    )


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --json to a command that writes no report into a file."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def add_json_file(parser: argparse.ArgumentParser) -> None:
    """Adds --json to a command whose report can be written into a file."""
    parser.add_argument(
        "--json",
        metavar="F",
        nargs="?",
        const=STDOUT,
        type=path,
        help=f"print one JSON object instead of a table; with a file, write it there beside the table ('{STDOUT}' prints it too)",
    )


class Output(argparse.Action):
    """Stores a path as `output`, or a URI as its text, and in `output_is_folder` whether it was written with a slash at its end,
    which a Path does not keep."""

    def __call__(self, parser: argparse.ArgumentParser, args: argparse.Namespace, value: Any, option: str | None = None) -> None:
        args.output = value if is_uri(value) else STDOUT if value in _STANDARD_OUTPUT else Path(value)
        args.output_is_folder = value.endswith(("/", os.sep)) and args.output != STDOUT


def input_path(text: str) -> Path:
    """The type of a path that is read. It is `STDOUT`, "-", for every name of standard input."""
    return STDOUT if text in _STANDARD_INPUT else path(text)


def place(text: str) -> Path | str:
    """The type of a path that is read as `input_path` has it, or of a URI, which stays a text."""
    return text if is_uri(text) else input_path(text)


def is_uri(place: Any) -> bool:
    """Tells whether a place is a URI such as s3://bucket/folder."""
    return isinstance(place, str) and _URI.match(place) is not None


def path(text: str) -> Path:
    """The type of a path. An empty text is refused."""
    return Path(named(text))


def named(text: str) -> str:
    """The type of a text that must not be empty."""
    if not text:  # an unset shell variable gives an empty text, which Path would take for the current folder
        raise argparse.ArgumentTypeError("must name a file or a folder, got ''")
    return text


def bits(text: str) -> str | int:
    """The type of a bit-width: "auto" or an integer in 2..8."""
    if text not in BITS:
        raise argparse.ArgumentTypeError(f"must be 'auto' or an integer from 2 to 8, got '{text}'")
    return text if text == "auto" else int(text)


def depth(text: str) -> str | int:
    """The type of a depth: "auto", "full" or a number of blocks."""
    if text not in DEPTHS and not _WHOLE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"must be 'auto', 'full' or a number of blocks, got '{text}'")
    return text if text in DEPTHS else int(text)


def memory(text: str) -> int:
    """The type of a size such as 1.5G or 800M, which becomes a number of bytes."""
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"must be a size such as 1.5G or 800M, got '{text}'")
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))


def size(text: str) -> tuple[int, int]:
    """The type of a size WIDTHxHEIGHT in pixels, which becomes (width, height)."""
    # No picture has sides with more digits than these. Smaller sides that are too large are refused later.
    found = re.fullmatch(r"([1-9][0-9]{0,11})x([1-9][0-9]{0,11})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT such as 1920x1080, got '{text}'")
    return int(found[1]), int(found[2])


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an integer in least..most, where None means no upper limit."""
    rule = f"of at least {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        if not _WHOLE.fullmatch(text) or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"must be an integer {rule}, got '{text}'")
        return int(text)

    return parse


def number(least: float, most: float = math.inf) -> Callable[[str], float]:
    """The type of a finite number in least..most."""
    rule = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"

    def parse(text: str) -> float:
        value = float(text) if _NUMBER.fullmatch(text) else math.nan
        if not (math.isfinite(value) and least <= value <= most):
            raise argparse.ArgumentTypeError(f"must be a number {rule}, got '{text}'")
        return value

    return parse


def mean_shift(text: str) -> str | tuple[float, ...]:
    """The type of a mean colour: "none", "div2k" or three numbers in 0..1."""
    if text in ("none", "div2k"):
        return text
    colour = tuple(float(part) if _NUMBER.fullmatch(part) else math.nan for part in text.split(","))
    if len(colour) != 3 or not all(0 <= value <= 1 for value in colour):
        raise argparse.ArgumentTypeError(f"must be 'none', 'div2k' or three numbers in 0..1 such as 0.45,0.44,0.4, got '{text}'")
    return colour


def share(text: str) -> float:
    """The type of a number of at least 0 and below 1."""
    value = number(0)(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0 and below 1, got '{text}'")
    return value
