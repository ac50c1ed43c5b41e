"""Upscales picture files one after the other: while one is computed, the next is decoded and the one before is encoded."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..images import Layout, PictureReader, PictureWriter, open_picture
from ..images.writer import DEFAULT_QUALITY
from .enlarge import Enlarger
from .patchwise import Progress
from .picture import Patch
from .sizes import Steps, in_figures

_WAITING = 2  # the most pictures whose encoding may be unfinished


@dataclass(frozen=True)
class Task:
    """One picture to upscale. source: a file, or the bytes of one. target: a file or a binary stream. format: the format of the
    target."""

    source: Path | bytes
    target: Path | BinaryIO
    format: str
    name: str


@dataclass
class Outcome:
    """The result of a task.

    layout: the layout of the picture that was read. steps: the steps by which it got its size. patches: the windows of the
    network's first pass. seconds: the time that computing took. error: the error of a task that failed, else None. stage: the stage
    that the task reached, "read", "compute" or "write". warnings: the warnings about the picture and about its output.
    """

    task: Task
    layout: Layout | None = None
    steps: Steps | None = None
    patches: list[Patch] = field(default_factory=list)
    seconds: float = 0.0
    error: BaseException | None = None
    stage: str = "read"
    warnings: list[str] = field(default_factory=list)

    @property
    def mean_bits(self) -> float | None:
        """The result of the function `mean_bits` for the patches of this task."""
        return mean_bits(self.patches)

    def made(self) -> tuple[Layout, Steps]:
        """The layout of a picture that was computed, and the steps by which it got its size."""
        assert self.layout is not None and self.steps is not None, "the picture was computed"
        return self.layout, self.steps

    @property
    def computed_share(self) -> float | None:
        """The result of the function `computed_share` for the patches of this task."""
        return computed_share(self.patches)

    @property
    def bits_with_zeros(self) -> float | None:
        """The result of the function `bits_with_zeros` for the patches of this task."""
        return bits_with_zeros(self.patches)

    @property
    def flat_pixels(self) -> int:
        """The number of low-resolution pixels that the network did not compute (`Patch.flat`)."""
        return sum(patch.flat for patch in self.patches)

    @property
    def costs(self) -> dict[str, float | None]:
        """The figures about bits and blocks; a figure that does not apply is None."""
        return {"mean_bits": self.mean_bits, "computed_share": self.computed_share, "bits_with_zeros": self.bits_with_zeros}

    def figures(self) -> dict[str, Any]:
        """All figures of a picture that was computed, for reports about many pictures."""
        layout, steps = self.made()
        sizes = in_figures(layout.width, layout.height, steps)
        return {**sizes, **self.costs, "flat_pixels": self.flat_pixels, "seconds": self.seconds, "warnings": self.warnings}


def check_metadata(metadata: str) -> None:
    """Raises ValueError unless `metadata`, which says what becomes of EXIF and the like, is "keep" or "strip"."""
    if metadata not in ("keep", "strip"):
        raise ValueError(f"metadata must be 'keep' or 'strip', got {metadata!r}")


def mean_bits(patches: list[Patch]) -> float | None:
    """The mean over the pixels of the bits that their patches decided on, whether the pixels are computed or not. None for a
    picture that is transparent everywhere."""
    return _mean([(patch.mean_bits, patch.height * patch.width) for patch in patches])


def computed_share(patches: list[Patch]) -> float | None:
    """The share of the pixels for which the network's blocks are computed, 0..1. Interpolated pixels are not among them.

    None where the network leaves out no blocks, and for a picture that is transparent everywhere.
    """
    return _mean([(patch.with_blocks / (patch.height * patch.width), patch.height * patch.width) for patch in _varying(patches)])


def bits_with_zeros(patches: list[Patch]) -> float | None:
    """The mean bits where a pixel without blocks counts as 0 bits; None where `computed_share` is None."""
    shares = [(patch, patch.with_blocks / (patch.height * patch.width)) for patch in _varying(patches)]
    return _mean([(patch.mean_bits * share, patch.height * patch.width) for patch, share in shares])


def _varying(patches: list[Patch]) -> list[Patch]:
    """The patches of a network that may leave out blocks."""
    return [patch for patch in patches if patch.deep is not None]


def _mean(values: list[tuple[float, int]]) -> float | None:
    """The mean of values with their weights; None where there are none."""
    total = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values) / total if total else None


def upscale_files(
    tasks: Iterable[Task],
    network: Enlarger,
    *,
    max_pixels: int,
    quality: int = DEFAULT_QUALITY,
    strict: bool = False,
    metadata: str = "keep",
    progress: Callable[[Task], Progress | None] | None = None,
) -> Iterator[Outcome]:
    """Upscales one picture after the other and yields the outcome of each in their order. A picture that fails stops no other.

    max_pixels, strict: as for `open_picture`. quality: the quality of JPEG and WebP. metadata: "keep" or "strip", whether EXIF and
    the like go into the outputs. progress: a function that gives for each task the function to call with the windows done.
    """
    check_metadata(metadata)
    opening = _Opening(max_pixels, strict, metadata == "strip")
    with ThreadPoolExecutor(1, "adabm decode") as decoder, ThreadPoolExecutor(1, "adabm encode") as encoder:
        waiting: deque[tuple[Outcome, Future | None]] = deque()
        opened = _ahead((task, decoder.submit(_open, task, decoder, opening)) for task in tasks)
        try:
            for task, reader in opened:
                waiting.append(_upscale(task, reader, network, quality, encoder, progress(task) if progress else None))
                while len(waiting) > _WAITING:
                    yield _settled(*waiting.popleft())
            while waiting:
                yield _settled(*waiting.popleft())
        finally:
            decoder.shutdown(cancel_futures=True)


def _ahead(items: Iterator) -> Iterator:
    """Yields the items. Each is made while the caller works on the one before it."""
    held: deque = deque()
    for item in items:
        held.append(item)
        if len(held) > 1:
            yield held.popleft()
    yield from held


@dataclass(frozen=True)
class _Opening:
    """The settings with which pictures are opened. strip: whether to leave out their metadata."""

    max_pixels: int
    strict: bool
    strip: bool


def _open(task: Task, decoder: ThreadPoolExecutor, opening: _Opening) -> tuple[PictureReader, Callable]:
    reader = open_picture(task.source, max_pixels=opening.max_pixels, name=task.name, strict=opening.strict)
    if opening.strip:
        reader.layout = replace(reader.layout, metadata=None)
    return reader, reader.ahead(decoder)


def _upscale(
    task: Task, opened: Future, network: Enlarger, quality: int, encoder: ThreadPoolExecutor, progress: Progress | None
) -> tuple[Outcome, Future | None]:
    outcome = Outcome(task)

    def reading(rows: int) -> np.ndarray:
        outcome.stage = "read"
        found = read(rows)
        outcome.stage = "compute"
        return found

    writer, bands = None, None
    try:
        reader, read = opened.result()
        outcome.layout, outcome.stage, outcome.warnings = reader.layout, "compute", reader.warnings
        outcome.steps = network.steps(reader.layout.width, reader.layout.height)
        writer = PictureWriter(task.target, task.format, network.output(reader.layout), quality=quality)
        outcome.warnings += writer.warnings
        network.check(reader.layout)
        bands = network.picture(reading, reader.layout, record=outcome.patches, progress=progress)
        outcome.stage = "write"
        writer.__enter__()
        while True:
            outcome.stage, start = "compute", time.perf_counter()
            band = next(bands, None)
            outcome.seconds += time.perf_counter() - start
            outcome.stage = "write"
            if band is None:
                break
            if len(band):
                writer.write(band)
        return outcome, encoder.submit(writer.__exit__, None, None, None)  # its thread may be one too many
    except BaseException as error:
        outcome.error = error
        try:
            if bands is not None:
                bands.close()  # its threads would otherwise live as long as the error
        finally:
            if writer is not None:
                try:
                    writer.__exit__(type(error), error, error.__traceback__)
                except Exception as renamed:
                    outcome.error = renamed
        if not isinstance(error, Exception):
            raise
        return outcome, None


def _settled(outcome: Outcome, encoding: Future | None) -> Outcome:
    if encoding is not None:
        outcome.error = encoding.exception()
    error: BaseException | None = outcome.error
    while error is not None:  # The frames of the error are cleared, because they hold the open picture and the error itself.
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    return outcome
