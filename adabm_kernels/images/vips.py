"""Sets up libvips when it is first needed. libvips decodes and encodes by rows in constant memory, also with 16 bits per
channel."""

from __future__ import annotations

import functools
import re
from typing import Any


@functools.cache
def vips() -> Any:
    """The pyvips module with its cache of results turned off, because a file that has changed must be read again.

    Its pipelines get one thread each: they only decode and encode, and more threads would take cores from the network.
    """
    import pyvips

    # pyvips takes messages of libvips for UTF-8, and fails or prints a traceback where a damaged file made them something else.
    pyvips._to_string = pyvips.error._to_string = functools.partial(_text, pyvips.ffi)
    pyvips.cache_set_max(0)
    pyvips.concurrency_set(1)
    return pyvips


_LINES, _LINE = 4, 200  # of a message: how many, and how many characters of each


def _text(ffi: Any, words: Any) -> str:
    """A string from C, whatever bytes it holds."""
    found = "NULL" if words == ffi.NULL else ffi.string(words)
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else found


def clear_errors() -> None:
    """Forgets earlier messages of libvips, which keeps the warnings of its decoders and would give them as the reason of a later
    error."""
    vips().vips_lib.vips_error_clear()


def reason(error: Exception) -> str:
    """The message of a libvips error, as one line without the name of the operation. Of many lines, as of a directory full of tags
    that nobody knows, it has the last ones, which say what stopped the reading."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = list(dict.fromkeys(line[:_LINE] for line in lines if line and not line.startswith("unable to ")))
    return "; ".join(lines[-_LINES:]) or "no reason given"


def system_error(error: Exception) -> str | None:
    """The operating system's words in an error of libvips; None where it contains none."""
    found = re.search(r"(?:unix|system) error: (.+)", str(error))
    return found[1].strip() if found else None
