"""The command line: the parser of `adabm`, and the treatment of errors. The commands are in `commands/`.

The exit status is 0 where all was done, 1 where the command failed while it ran, 2 for wrong usage or bad input, where nothing was
computed, and 130 after an interruption. An error is one sentence on stderr. Only the commands import torch, so that `adabm --help`
answers at once.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from .commands import bench, calibrate, completion, evaluate, export, info, models, report, serve, tune, upscale
from .commands.common import FAILED, CommandError, check_address_space, one_line
from .machine import lacks_memory, version
from .models import did_you_mean

_WITHOUT_TORCH = (completion.execute,)
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)

COMMANDS: dict[str, Any] = {
    "upscale": upscale,
    "serve": serve,
    "report": report,
    "eval": evaluate,
    "calibrate": calibrate,
    "export": export,
    "bench": bench,
    "tune": tune,
    "info": info,
    "models": models,
    "completion": completion,
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    if argv is None:
        argv = sys.argv[1:]
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM then cleans up like Ctrl-C
        _occupy_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold characters that the encoding lacks
    parser = _parser()
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    args = parser.parse_args(argv, argparse.Namespace(argv=argv, quiet=False))
    try:
        with _plain_warnings(args.quiet):
            if args.execute not in _WITHOUT_TORCH:
                check_address_space()
            args.execute(args)
        return _flushed()
    except KeyboardInterrupt as stop:
        print(f"adabm: interrupted{f': {one_line(str(stop))}' if str(stop) else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; without this the interpreter complains once more while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.traceback:
            traceback.print_exc()
        status = error.status if isinstance(error, CommandError) else FAILED
        if isinstance(error, CommandError):
            message = str(error)
        elif isinstance(error, OSError) and error.errno in _UNWRITABLE and error.filename is None:  # output cannot be printed
            return _unwritten(error)
        elif lacks_memory(error):
            message = "not enough memory"
        else:
            message = f"unexpected {type(error).__name__}: {error} (--traceback shows where)"
        print(f"adabm: error: {one_line(message)}", file=sys.stderr)
        return status


def _occupy_closed_streams() -> None:
    """Opens the null device on those of the descriptors 0 to 2 that are closed, as a shell's >&- or cron leaves them.

    Otherwise the next file that is opened would take such a number, and whatever libraries print would go into it. Text that is
    printed to a closed stream is lost.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # this takes the lowest free number
    if sys.stderr is None:  # print would write to standard output in its place
        sys.stderr = open(os.devnull, "w")


def _flushed() -> int:
    """Writes out all of standard output and returns the exit status: 0, or 1 after printing a sentence where it cannot be
    written."""
    if sys.stdout is None:
        return 0
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        return _unwritten(error)
    return 0


def _unwritten(error: OSError) -> int:
    """Prints a sentence that standard output cannot be written, and returns the exit status for this."""
    print(f"adabm: error: cannot write standard output: {error.strerror or error}", file=sys.stderr)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise the interpreter would try to write once more
    return FAILED


@contextmanager
def _plain_warnings(quiet: bool) -> Iterator[None]:
    """Inside the context a warning is one sentence, without the line of source that Python shows. With `quiet` there are no
    warnings."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"adabm: warning: {one_line(str(message))}\n"
    try:
        with warnings.catch_warnings():
            if quiet:
                warnings.simplefilter("ignore")
            yield
    finally:
        warnings.formatwarning = before


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        hint = did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2])) if choice else ""
        self.exit(2, f"adabm: error: {one_line(message)}{hint} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="adabm", description="Super-resolution in integers, with bit-widths decided per image and layer.")
    parser.add_argument("--version", action="version", version=f"adabm {version('adabm-kernels')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    for name, module in COMMANDS.items():
        added = commands.add_parser(name, help=module.SUMMARY, description=module.execute.__doc__)
        added.set_defaults(execute=module.execute, parser=parser)
        added.add_argument("--traceback", action="store_true", help="show where in the program an error arose")
        module.add_arguments(added)
    return parser


if __name__ == "__main__":
    sys.exit(main())
