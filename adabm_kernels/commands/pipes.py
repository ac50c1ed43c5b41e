"""Pipes as inputs and outputs of `adabm upscale` and `adabm report`: standard input and output, "-", and any other."""

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
    """Whether an input or an output is a pipe: "-" or any other."""
    return path is not None and (path == STDOUT or is_pipe(path))


def shown(path: Path, pipe: str = "standard input") -> str:
    """The name that messages give to an input, or to an output where "-" is another `pipe`."""
    return pipe if path == STDOUT else str(path)


def to_stdout(args: argparse.Namespace) -> bool:
    """Whether OUT is standard output: by its name, or because a pipe has no folder to write beside."""
    return args.output == STDOUT or (args.output is None and len(args.inputs) == 1 and piped(args.inputs[0]))


def refuse_terminal(path: Path) -> None:
    """ValueError where the output of an input would fill a terminal."""
    if sys.stdout is not None and sys.stdout.isatty():
        raise ValueError(f"OUT must be given for {shown(path)} (-o FILE), as standard output is a terminal")


@contextmanager
def open_target(path: Path) -> Iterator[BinaryIO]:
    """Standard output or another pipe as an open binary file. OSError naming it where it cannot be written."""
    if path == STDOUT:
        if sys.stdout is None:
            raise OSError("cannot write standard output: it is closed")
        yield sys.stdout.buffer
        return
    with naming(path), open(path, "wb") as file:
        yield file


@contextmanager
def open_source(path: Path) -> Iterator[BinaryIO]:
    """Standard input, another pipe or a file as an open binary file. OSError naming it where it cannot be read."""
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
    """The picture that comes from a pipe. ValueError where it begins as none does, OSError where it cannot be read."""
    from ..images import read_whole

    with open_source(path) as file:
        return read_whole(file, shown(path))
