"""What a client may ask of the service, and the sentence where the packages of its extra are missing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MOST_SECONDS = 86_400.0


@dataclass(frozen=True)
class Limits:
    """What a client may ask for. Raises ValueError or TypeError naming the field, its rule and the value.

    queue: how many pictures may be under way at once, from when they are received until their result is sent, at least 1. Further
        ones are answered 429.
    timeout: seconds, above 0. A body may take so long to come (else 408), a picture to be computed, waiting included (else 504),
        and its result to be taken (else the connection is closed).
    max_pixels: the most pixels of a picture, at least 1 (else 413). A result may have scale^2 times as many.
    max_body: the most bytes of a body, at least 1 (else 413). All bodies that are being received may have `queue` times as many.
    """

    queue: int = 16
    timeout: float = 60.0
    max_pixels: int = 1 << 22
    max_body: int = 32 << 20

    def __post_init__(self) -> None:
        for name in ("queue", "max_pixels", "max_body"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, int | float):
            raise TypeError(f"timeout must be a number of seconds, got {type(self.timeout).__name__}")
        if not (math.isfinite(self.timeout) and 0 < self.timeout <= MOST_SECONDS):
            raise ValueError(f"timeout must be above 0 and at most {MOST_SECONDS:g} seconds, got {self.timeout}")


@contextmanager
def needing_extra() -> Iterator[None]:
    """Inside the context a package that is missing is an ImportError that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "adabm_kernels":
            raise
        raise ImportError(
            f"the service needs packages that are not installed: pip install 'adabm-kernels[serve]' ({error})"
        ) from error
