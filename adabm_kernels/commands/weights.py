"""Float weights on the command line: the options that say how to read them, and a description of what was found in the file."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .common import option

if TYPE_CHECKING:
    from ..calibration.plausibility import WrongReading
    from ..networks.convention import Convention
    from ..networks.detect import Detected

READING_OPTIONS = ("res_scale", "rgb_range", "mean_shift", "channel_order", "weights_key")  # the names of arguments of `calibrate`


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The values of the options that were given, by the names of the arguments of `calibrate`."""
    return {name: value for name in READING_OPTIONS if (value := getattr(args, name)) is not None}


def convention(args: argparse.Namespace) -> Convention:
    """The convention that the options state: the range of pixels, the mean colour and the order of colours."""
    from ..networks.convention import Convention

    return Convention(args.rgb_range, args.mean_shift, args.channel_order or "rgb")


def misreading(error: WrongReading) -> str:
    """A sentence that says what is wrong with the reading, and which options would help."""
    suggested = {option(name): value for name, value in (error.suggested or {}).items()}
    given = " ".join(f"{name} {word(value)}" for name, value in suggested.items() if value is not None)
    left_out = " or ".join(name for name, value in suggested.items() if value is None)
    parts = [f"with {given}" if given else "", f"without {left_out}" if left_out else ""]
    return error.sentence(" ".join(filter(None, parts)), "--no-check")


@contextmanager
def misread(what: str) -> Iterator[None]:
    """Inside the context a WrongReading becomes a ValueError that names the file, and options in place of arguments. what: the
    file's name."""
    from ..calibration.plausibility import WrongReading

    try:
        yield
    except WrongReading as error:
        raise ValueError(f"{what}: {misreading(error)}") from error


@contextmanager
def in_options() -> Iterator[None]:
    """Inside the context an error of recognising weights becomes a ValueError that names options in place of arguments."""
    from ..calibration.plausibility import WrongReading

    try:
        yield
    except WrongReading:
        raise
    except (TypeError, ValueError) as error:
        names = "|".join(READING_OPTIONS)
        raise ValueError(re.sub(rf"\b({names})\b(?!=)", lambda m: option(m[1]), str(error))) from error


def source(found: Detected) -> str:
    """A phrase that says which part of a checkpoint was taken; "" where it was all of it."""
    if not found.source:
        return ""
    count = len(found.left_out)
    beside = f", {count} tensor{'s' if count > 1 else ''} beside it left out" if count else ""
    return f"'{found.source}' in the file{beside}"


def word(value: Any) -> str:
    """A value as it is written after its option."""
    if isinstance(value, list | tuple):
        return ",".join(f"{part:g}" for part in value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
