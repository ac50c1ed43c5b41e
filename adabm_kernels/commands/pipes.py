"""Pipes as inputs and outputs of `adabm upscale` and `adabm report`: standard input and output, "-", and all others."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..files import is_pipe, naming
from .common import STDOUT


def piped(path: Path | None) -> bool:
    """Tells whether an input or an output is a pipe, "-" or any other."""
    return path is not None and (path == STDOUT or is_pipe(path))


def shown(path: Path, pipe: str = "standard input") -> str:
    """The name of an input or an output in messages. pipe: the words for "-"."""
    return pipe if path == STDOUT else str(path)


def to_stdout(args: argparse.Namespace) -> bool:
    """Tells whether OUT is standard output, either by its name or because the input is a pipe and OUT was not given."""
    return args.output == STDOUT or (args.output is None and len(args.inputs) == 1 and piped(args.inputs[0]))


def refuse_terminal(path: Path) -> None:
    """Raises ValueError where the output of an input would fill a terminal."""
    if sys.stdout is not None and sys.stdout.isatty():
        raise ValueError(f"OUT must be given for {shown(path)} (-o FILE), as standard output is a terminal")


@contextmanager
def open_target(path: Path) -> Iterator[BinaryIO]:
    """Opens standard output or another pipe as a binary file. Raises an OSError that names it where it cannot be written."""
    if path == STDOUT:
        if sys.stdout is None:
            raise OSError("cannot write standard output: it is closed")
        yield sys.stdout.buffer
        return
    with naming(path), open(path, "wb") as file:
        yield file


@contextmanager
def open_source(path: Path) -> Iterator[BinaryIO]:
    """Opens standard input, another pipe or a file as a binary file. Raises an OSError that names it where it cannot be read."""
    if path == STDOUT:
        if sys.stdin is None:
            raise OSError("cannot read standard input: it is closed")
        yield sys.stdin.buffer
        return
    try:
        file = open(path, "rb")
    except OSError as error:
        raise type(error)(f"cannot read '{path}': {error.strerror or error}") from error
    with file:
        yield file


def read_pipe(path: Path) -> bytes:
    """Reads a picture from a pipe. Raises ValueError where its first bytes are those of no picture, OSError where it cannot be
    read."""
    from ..images import read_whole

    with open_source(path) as file:
        return read_whole(file, shown(path))
