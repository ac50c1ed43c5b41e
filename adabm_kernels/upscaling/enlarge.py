"""Enlarges pictures of any size to any size: the network computes them as often as it takes, and a filter does the rest."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..images import MAX_PIXELS
from .cutting import SMALLEST_TILE, Beside
from .patchwise import Patchwise, Progress
from .resampling import Resampler, resample
from .sizes import Size, Steps
from .windows import spans

if TYPE_CHECKING:
    from ..images import Layout
    from ..nn.lanes import Lane
    from .picture import Patch

_BAND_BYTES = 8 << 20  # the bytes of a picture that go to the filter at once, where no pass of a network comes before it


class Enlarger:
    """Makes pictures of the size that is asked for, row by row in bounded memory, with a network that computes in windows.

    network: the network, which enlarges each side `scale` times. size: the size that is asked for, by default the network's own.
    max_pixels: the most pixels of a picture. Its output, and each picture that the network makes on the way to it, may have scale^2
    times as many.
    Several threads may share one Enlarger.
    """

    def __init__(self, network: Patchwise, size: Size | None = None, *, max_pixels: int = MAX_PIXELS):
        self.network, self.size, self.max_pixels = network, size or Size(), max_pixels

    def steps(self, width: int, height: int) -> Steps:
        """The steps by which a picture of this width and height gets its size. Raises ValueError where the result would have too
        many pixels."""
        steps = self.size.steps(width, height, self.network.scale)
        limit = self.max_pixels * self.network.scale**2
        if not self.size.own and max(steps.made[0] * steps.made[1], steps.size[0] * steps.size[1]) > limit:
            way = f", resized from {_words(steps.made)}" if steps.resized else ""
            raise ValueError(
                f"{self.size.name} must ask for at most {limit} pixels ({self.network.scale**2} times --max-pixels), "
                f"got {_words(steps.size)}{way}, for a picture of {_words((width, height))}"
            )
        return steps

    def output(self, layout: Layout) -> Layout:
        """The layout of the output for a picture of this layout. Raises as `steps` does."""
        width, height = self.steps(layout.width, layout.height).size
        return replace(layout, width=width, height=height)

    def check(self, layout: Layout) -> Layout:
        """The layout of the output. Raises as `steps` does, and ValueError where the windows of a pass do not fit max_memory."""
        for network, each in self._stages(layout):
            network.windows(each.height, each.width, each)
        return self.output(layout)

    def lanes(self, in_flight: int | None) -> list[Lane]:
        """Lanes for `in_flight` pictures at once (`Patchwise.lanes`)."""
        return self.network.lanes(in_flight)

    def picture(
        self,
        read: Callable[[int], np.ndarray],
        layout: Layout,
        *,
        record: list[Patch] | None = None,
        progress: Progress | None = None,
    ) -> Generator[np.ndarray, None, None]:
        """The picture in its new size, in bands from the top: [rows, width, channels] of the layout's type, where rows may be 0.

        read, progress: as for `Patchwise.picture`. record: a list to which the windows of the network's first pass are appended.
        """
        steps = self.steps(layout.width, layout.height)
        stages = self._stages(layout)
        counted = _Counted(progress, stages) if progress is not None and len(stages) > 1 else None
        bands = _pieces(read, layout)  # this reads nothing where a pass takes its place
        for number, (network, each) in enumerate(stages):
            source = _reader(bands, each) if number else read
            told = progress if counted is None else counted.of(number)
            bands = network.picture(source, each, record=None if number else record, progress=told)
        return self._resized(bands, replace(layout, width=steps.made[0], height=steps.made[1]), steps) if steps.resized else bands

    def array(self, rows: np.ndarray, layout: Layout, **options: Any) -> np.ndarray:
        """The picture in its new size, [height, width, channels], of rows in memory, [H, W, channels]. options: see `picture`."""
        bands = list(self.picture(_reader(iter([rows]), layout), layout, **options))
        return bands[0] if len(bands) == 1 else np.concatenate(bands)

    def pictures(self, rows: Sequence[np.ndarray], layout: Layout, records: Sequence[list[Patch]]) -> list[list[np.ndarray]]:
        """The bands that `picture` gives for each of several pictures of one layout, [H, W, channels] each. A single pass of the
        network computes their windows together where it can (`Patchwise.pictures`).

        records: a list for each picture, to which the windows of its first pass are appended.
        """
        steps, stages = self.steps(layout.width, layout.height), self._stages(layout)
        if len(stages) != 1:
            each = zip(rows, records, strict=True)
            return [list(self.picture(_reader(iter([one]), layout), layout, record=record)) for one, record in each]
        network, like = stages[0]
        made = network.pictures(rows, like, records)
        if not steps.resized:
            return made
        like = replace(layout, width=steps.made[0], height=steps.made[1])
        return [list(self._resized(iter(bands), like, steps)) for bands in made]

    def tensor(self, x: torch.Tensor, progress: Progress | None = None) -> torch.Tensor:
        """Images in their new size, float32 [N, 3, height, width], of x, float32 [N, 3, H, W] in 0..255. They are on the device of
        x and not clamped. progress: as for `Patchwise.picture`, with the windows of all images and passes."""
        steps = self.steps(x.shape[3], x.shape[2])
        factors = [self.network.scale**number for number in range(steps.passes)]
        cut = (self.network.windows(x.shape[2] * factor, x.shape[3] * factor) for factor in factors)
        total = len(x) * sum(len(rows) * len(columns) for rows, columns in cut)
        done = 0

        def finished(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, total, "upscaling")

        for number in range(steps.passes):
            x = self.network.tensor(x.clamp(0, 255) if number else x, finished)
        return resample(x.clamp(0, 255), *steps.size) if steps.resized else x

    def _resized(self, bands: Iterator[np.ndarray], made: Layout, steps: Steps) -> Generator[np.ndarray, None, None]:
        with ThreadPoolExecutor(self.network.threads, "adabm resample") as pool:
            resampler = Resampler(made, *steps.size, pool.map)
            for band in bands:
                yield resampler.rows(band)

    def _stages(self, layout: Layout) -> list[tuple[Patchwise, Layout]]:
        """The passes of the network, each with the layout of the picture that it is given."""
        steps, scale = self.steps(layout.width, layout.height), self.network.scale
        if self.network.max_memory is None or (steps.passes == 1 and not steps.resized):
            return [(self.network, enlarged(layout, scale**number)) for number in range(steps.passes)]
        share, fixed = 0.0, 0
        if steps.resized:
            made = enlarged(layout, scale**steps.passes)
            share = (steps.size[0] * steps.size[1]) / (made.width * made.height)
            fixed = Resampler.held_bytes(made, *steps.size)
        stages: list[tuple[Patchwise, Layout]] = []
        for number in range(steps.passes):
            last = number == steps.passes - 1
            later = sum(self._least_bytes(enlarged(layout, scale**other)) for other in range(number + 1, steps.passes))
            each = enlarged(layout, scale**number)
            network = self.network.with_beside(Beside(fixed + later, share if last else 0.0))
            stages.append((network, each))
            if not last:
                fixed += network.held_bytes(network.windows(each.height, each.width, each)[0], each)
        return stages

    def _least_bytes(self, layout: Layout) -> int:
        return self.network.held_bytes(spans(layout.height, SMALLEST_TILE, self.network.halo), layout)


class _Counted:
    """Reports the progress of several passes as one: the windows done, and the windows in all passes."""

    def __init__(self, progress: Progress, stages: list[tuple[Patchwise, Layout]]):
        self._progress, self._done = progress, [0] * len(stages)
        cut = (network.windows(each.height, each.width, each) for network, each in stages)
        self._total = sum(len(rows) * len(columns) for rows, columns in cut)

    def of(self, number: int) -> Progress:
        def progress(done: int, total: int, what: str) -> None:
            self._done[number] = done
            self._progress(sum(self._done), self._total, what)

        return progress


def enlarged(layout: Layout, scale: int) -> Layout:
    """The layout of a picture `scale` times as large."""
    return replace(layout, width=layout.width * scale, height=layout.height * scale)


def _reader(bands: Iterator[np.ndarray], layout: Layout) -> Callable[[int], np.ndarray]:
    """A function that returns the next n rows of a picture that comes in bands."""
    held = np.empty((0, layout.width, layout.channels), layout.dtype)

    def read(count: int) -> np.ndarray:
        nonlocal held
        parts = [held]
        while sum(map(len, parts)) < count and (band := next(bands, None)) is not None:
            parts = [*parts, band] if len(parts[0]) else [band]
        found = parts[0] if len(parts) == 1 else np.concatenate(parts)
        held = found[count:]
        return found[:count]

    return read


def _pieces(read: Callable[[int], np.ndarray], layout: Layout) -> Generator[np.ndarray, None, None]:
    """Yields the unchanged picture in bands from the top."""
    step = max(_BAND_BYTES // layout.row_bytes, 1)
    for first in range(0, layout.height, step):
        yield read(min(step, layout.height - first))


def _words(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
