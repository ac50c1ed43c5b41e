"""The parts that commands share: failures with an exit status, tables, and JSON."""

from __future__ import annotations

import gc
import json
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ..files import check_target, write_file
from ..machine import lacks_memory

_BAR = "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left]"
BAD_INPUT, FAILED = 2, 1  # exit statuses
STDOUT = Path("-")  # the file name in --json that stands for standard output
# Arguments of functions, by the names that their errors use, that are options of the commands.
_ARGUMENTS = re.compile(
    r"^(?:max_memory|depth|graph|scale|width and height|width|height|fit)(?= must )"
    r"|(?<= where )(?:scale|width|height|fit)(?= is given)"
)
_TORCH_BYTES = 640 << 20  # the address space that torch for CPUs needs to be imported and to compute a little
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all control characters except tab and line feed


class CommandError(Exception):
    """A failure that the user sees as one sentence, with the exit status of the command."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Interrupted(KeyboardInterrupt):
    """An interruption, with one sentence that the user should know about it."""


@contextmanager
def stage(status: int, memory: str = "not enough memory", *, bad_input: int | None = None) -> Iterator[None]:
    """Inside the context a failure that users can cause becomes one sentence and this exit status.

    memory: the sentence where memory does not suffice. bad_input: the status of a ValueError or an unreadable file, where it
    differs from `status`.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of the output has gone, so there is nobody to tell
        raise
    except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
        out_of_memory = lacks_memory(error)
        if isinstance(error, ImportError) and not out_of_memory:
            raise
        if out_of_memory:
            status = FAILED
        elif bad_input is not None and isinstance(error, ValueError | FileNotFoundError | PermissionError):
            status = bad_input
        raise CommandError(memory if out_of_memory else as_options(str(error)), status) from error


def check_address_space() -> None:
    """Raises MemoryError where the limit on address space leaves less than torch's libraries take. Their loader would abort the
    process."""
    if os.name != "posix":
        return
    import mmap
    import resource

    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return
    try:
        mmap.mmap(-1, _TORCH_BYTES).close()
    except OSError as error:
        raise MemoryError("not enough address space for torch") from error


def as_options(message: str) -> str:
    """The message of an error, where options such as "--max-memory" stand in place of the arguments of functions."""
    return _ARGUMENTS.sub(lambda found: " and ".join(map(option, found[0].split(" and "))), message)


def option(name: str) -> str:
    """The option that sets an argument: "--rgb-range" for "rgb_range"."""
    return f"--{name.replace('_', '-')}"


class Progress:
    """A progress bar on stderr with the remaining time; there is none where stderr is no terminal. It is called with the number of
    finished steps, the number of all steps, and words for the work."""

    def __init__(self, quiet: bool = False) -> None:
        self._bar: Any = None
        self._off = True if quiet or sys.stderr is None else None  # stderr is None where a shell's 2>&- closed it

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, total: int | None, what: str) -> None:
        if self._bar is None:
            from tqdm import tqdm

            # Steps before the first call do not count for the speed: a continued run starts far from zero.
            self._bar = tqdm(desc=what, total=total, initial=done, leave=False, disable=self._off, bar_format=_BAR)
        self._bar.set_description_str(what, refresh=False)
        self._bar.total = total
        self._bar.update(done - self._bar.n)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Makes a call and returns two values: its result, and the seconds that it took."""
    start = time.perf_counter()
    value = call()
    return value, time.perf_counter() - start


def one_line(text: str) -> str:
    """The text with every run of white space as one space, after `printable`."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """The text with control characters as escapes, so that text from a file cannot steer a terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def print_table(rows: Sequence[tuple[str, str]], indent: str = "", file: TextIO | None = None) -> None:
    """Prints names and values in two columns, on standard output or into a file."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(printable(f"{indent}{name:<{width}}  {value}".rstrip()), file=file)


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Prints any number of columns, the first aligned left and the others right. Headings are rows like any other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [f"{first:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))]
        print(printable("  ".join(cells).rstrip()))


@contextmanager
def keeping_imports() -> Iterator[None]:
    """A context for importing torch. The garbage collector never searches objects that are made inside, which saves a tenth of the
    time of the import."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def command_line(argv: Sequence[str]) -> str:
    """The command as a user types it into a shell."""
    return shlex.join(["adabm", *argv])


def check_json(path: Path | None, *others: str | os.PathLike | None) -> None:
    """Raises an OSError now that would otherwise come when the report is written, after all work. Raises ValueError where the path
    is one of `others`, the files that the command reads or writes otherwise."""
    if path in (None, STDOUT):
        return
    check_target(path)
    for other in others:
        if other is not None and path.resolve() == Path(other).resolve():
            raise ValueError(f"--json must not be a file that the command reads or writes otherwise, got '{path}'")


def to_json(report: dict[str, Any]) -> str:
    """The report as indented JSON. Infinite and undefined numbers, which JSON does not know, become null."""
    return json.dumps(_finite(report), indent=2, allow_nan=False)


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Writes `to_json` of a report into a file, which changes as a whole or not at all."""
    write_file(path, f"{to_json(report)}\n".encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
