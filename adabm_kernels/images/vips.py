"""libvips, set up when it is first needed: it decodes and encodes by rows, in constant memory, 16 bits per channel included."""

from __future__ import annotations

import functools
import re
from typing import Any


@functools.cache
def vips() -> Any:
    """The pyvips module, without its cache of results: a file that changed must be read again.

    Its pipelines get one thread: they only decode and encode, and more of them would take the cores from the network.
    """
    import pyvips

    # It takes what libvips says for UTF-8, and fails or prints a traceback where a damaged file made it something else.
    pyvips._to_string = pyvips.error._to_string = functools.partial(_text, pyvips.ffi)
    pyvips.cache_set_max(0)
    pyvips.concurrency_set(1)
    return pyvips


def _text(ffi: Any, words: Any) -> str:
    """A string of C, whatever its bytes."""
    found = "NULL" if words == ffi.NULL else ffi.string(words)
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else found


def clear_errors() -> None:
    """Forget what libvips was told before: it keeps warnings of its decoders and would give them as the reason of a later error."""
    vips().vips_lib.vips_error_clear()


def reason(error: Exception) -> str:
    """The message of libvips, as one line without the name of the operation."""
    lines = [line.strip() for line in str(error).splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line and not line.startswith("unable to "))) or "no reason given"


def system_error(error: Exception) -> str | None:
    """The operating system's words in an error of libvips, None where there are none."""
    found = re.search(r"(?:unix|system) error: (.+)", str(error))
    return found[1].strip() if found else None
