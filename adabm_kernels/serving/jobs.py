"""A picture on its way through the service: what was asked for, what it is by then, and what has become of it."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ..images import Layout, PictureWriter
from ..upscaling.enlarge import Enlarger
from ..upscaling.sizes import Size

if TYPE_CHECKING:
    from ..upscaling.picture import Patch


@dataclass(frozen=True)
class Order:
    """One picture to upscale. data: the bytes of its file. format: the format of the result, one of FORMATS, or "keep" for its own
    where that is written and else PNG. quality, metadata, strict: as for `upscale_file`."""

    data: bytes
    format: str = "PNG"
    size: Size = field(default_factory=Size)
    quality: int = 95
    metadata: str = "keep"
    strict: bool = False


@dataclass(frozen=True)
class Result:
    """An encoded picture. file: its bytes, from the start. seconds: the time that computing its batch took. warnings: what was
    wrong with the picture, or is lost in the result."""

    file: BinaryIO
    bytes: int
    format: str
    size: tuple[int, int]
    mean_bits: float | None
    seconds: float
    warnings: list[str]


class LetGo(Exception):
    """Nobody waits for a picture any more."""


@dataclass(frozen=True)
class Opened:
    """What opening a picture gives: how it is enlarged, its kind, its pixels [H, W, channels], and where its result goes."""

    enlarger: Enlarger
    layout: Layout
    rows: np.ndarray
    writer: PictureWriter
    file: BinaryIO
    warnings: list[str]

    @property
    def pixels(self) -> int:
        return self.layout.width * self.layout.height

    @property
    def kind(self) -> tuple:
        """Pictures of one kind may be computed together."""
        layout = self.layout
        return layout.width, layout.height, layout.channels, layout.depth, self.enlarger.size


@dataclass(eq=False)
class Job:
    """A picture on its way. future: gets the Result, or the Problem with which it is refused. stage: what is being done, "read",
    "compute" or "write". holders: who asked for it, and who works on it; both must have let go of it before another picture takes
    its place."""

    order: Order | None
    arrived: float = field(default_factory=time.monotonic)
    future: Future[Result] = field(default_factory=Future)
    stage: str = "read"
    given_up: bool = False
    holders: int = 2
    held: Opened | None = None
    patches: list[Patch] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def opened(self) -> Opened:
        assert self.held is not None, "the picture is open"
        return self.held

    def progress(self, done: int, total: int, what: str) -> None:
        if self.given_up:
            raise LetGo
