"""Pictures of any size through a network: cut into windows, computed in batches of one bit-width, put together row by row."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .machine import resident_bytes
from .nn.lanes import Lane, lanes
from .windows import Span, patches, spans

if TYPE_CHECKING:
    from .images import Layout

Progress = Callable[[int, int, str], None]  # called with (done, in all, doing what)

PROTOCOLS = ("halo", "paper")
# Of the receptive field's radius: as halo, windows and the whole picture are 70 dB apart and more at 3 bits (docs/images.md).
HALO_SHARE = 0.9
TILE_HALOS = 48  # tile by halo: (1 + 2 / 48)^2 is 1.085, so that overlapping costs 9 % at most
SMALLEST_TILE = 16
TILES = (4096, 2048, 1024, 768, 512, 384, 256, 192, 128, 96, 64, 48, 32, SMALLEST_TILE)  # to fall back to when memory is short
BATCH_PIXELS = {"cpu": 1 << 16, "cuda": 1 << 20}  # low-resolution pixels that a batch of small windows may have
JOINED_PIXELS = 1 << 20  # low-resolution pixels that windows computed as one may have
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_BLOCK = 16  # output rows that are clamped and rounded at a time, so that they stay in the cache
_RESERVE = 64 << 20  # bytes for what the codecs hold


@dataclass(frozen=True)
class Patch:
    """One window as it was computed: what it keeps, in low-resolution pixels from the top left, and at what cost.

    offset: bits more or less that its picture got. mean_bits: over the adaptive convolutions. seconds: its share of what it was
    computed with.
    """

    y: int
    x: int
    height: int
    width: int
    offset: int
    mean_bits: float
    seconds: float


class Patchwise:
    """A converted network that takes pictures of any size in bounded memory.

    tile: low-resolution pixels a side that a window keeps; 0 for the whole picture as one, None for TILE_HALOS halos or less
    where max_memory asks for it. halo: pixels around them that are computed too; None for the measured default, `spec.radius` for
    windows that join without any difference. protocol: "halo", or "paper" for AdaBM's 96x96 patches without one.
    tta: the mean over the eight flips and turns of every window (self-ensemble; Timofte et al., CVPR 2016), eight times the work.
    max_memory: bytes that the process may hold; None for no bound.

    Every window decides about its bits by what it keeps, not by its halo. Windows of a row that got the same bits are computed
    together: on a CPU neighbours as one wider window, so that the halo between them is not computed, else in batches. Threads may
    share it. Raises ValueError naming the argument, the rule and the value.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        tile: int | None = None,
        halo: int | None = None,
        protocol: str = "halo",
        tta: bool = False,
        max_memory: int | None = None,
    ):
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(map(repr, PROTOCOLS))}, got {protocol!r}")
        for name, value in (("tile", tile), ("halo", halo)):
            if value is not None and protocol == "paper":
                raise ValueError(
                    f"{name} must be left out with protocol 'paper', whose patches are 96x96 without halo, got {value}"
                )
        _check_integer("tile", tile, 0)
        _check_integer("halo", halo, 0)
        _check_integer("max_memory", max_memory, 1)
        if tile and tile < SMALLEST_TILE:
            raise ValueError(f"tile must be 0 for the whole picture or at least {SMALLEST_TILE}, got {tile}")
        self.model, self.scale, self.tile, self.protocol, self.tta = model, model.scale, tile, protocol, tta
        self.halo = default_halo(model.spec) if halo is None else halo
        self.max_memory = max_memory

    # ---- where to cut

    def windows(self, height: int, width: int, layout: Layout | None = None) -> tuple[list[Span], list[Span]]:
        """Rows and columns of the windows. layout: of the picture, for a tile that max_memory allows."""
        if self.protocol == "paper":
            found = patches(height), patches(width)
        else:
            tile = self.tile
            if tile is None:
                tile = default_tile(self.halo)
                smaller = iter([t for t in TILES if t < tile])
                while self._too_much(self._cut(height, width, tile), layout) and (following := next(smaller, None)):
                    tile = following
            found = self._cut(height, width, tile)
        if needed := self._too_much(found, layout):
            window = "x".join(str(max(span.stop - span.start for span in axis)) for axis in reversed(found))
            raise ValueError(
                f"max_memory must be at least {format_bytes(needed)} for {width}x{height} pixels in windows of {window}, "
                f"got {format_bytes(self.max_memory)}"
            )
        return found

    def _cut(self, height: int, width: int, tile: int) -> tuple[list[Span], list[Span]]:
        return spans(height, tile, self.halo), spans(width, tile, self.halo)

    def _too_much(self, found: tuple[list[Span], list[Span]], layout: Layout | None) -> int:
        """The bytes that these windows need, 0 where they are allowed."""
        if self.max_memory is None or layout is None:
            return 0
        needed = self._bytes(*found, layout)
        return needed if needed > self.max_memory else 0

    def _bytes(self, rows: list[Span], columns: list[Span], layout: Layout) -> int:
        """What the process will hold at most: `_bytes_beside` and one batch."""
        largest = math.prod(max(span.stop - span.start for span in axis) for axis in (rows, columns))
        batch = max(largest, min(self._batch_pixels(), layout.width * layout.height))
        return self._bytes_beside(rows, layout) + batch * bytes_per_pixel(self.model, self.tta)

    def _bytes_beside(self, rows: list[Span], layout: Layout) -> int:
        """What the process holds now, two bands of output and the rows they are made from."""
        largest = max(span.stop - span.start for span in rows)
        kept = max(span.last - span.first for span in rows)
        bands = min(2, len(rows)) * kept * self.scale**2 * layout.row_bytes
        return resident_bytes() + _RESERVE + bands + 2 * largest * layout.row_bytes

    def _joined_pixels(self, rows: list[Span], layout: Layout | None = None) -> int:
        """The most pixels that windows of a row may have as one; 0 where they stay apart."""
        if self.protocol == "paper" or self._device().type != "cpu":  # elsewhere windows of one shape make batches
            return 0
        if self.max_memory is None or layout is None:
            return JOINED_PIXELS
        return min(JOINED_PIXELS, (self.max_memory - self._bytes_beside(rows, layout)) // bytes_per_pixel(self.model, self.tta))

    def _batch_pixels(self) -> int:
        return BATCH_PIXELS.get(self._device().type, BATCH_PIXELS["cpu"])

    def _device(self) -> torch.device:
        tensor = next(self.model.buffers(), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def lanes(self, in_flight: int | None) -> list[Lane]:
        """Lanes for so many pictures at once; for None two on a CUDA device, where nothing asks for one after the other."""
        running = getattr(self.model, "running_thresholds", None) is not None
        if in_flight is None:
            in_flight = 2 if self._device().type == "cuda" and self.max_memory is None and not running else 1
        if running and in_flight != 1:
            raise ValueError(f"in_flight must be 1 while thresholds follow the images in their order, got {in_flight}")
        return lanes(self._device(), in_flight)

    # ---- pictures

    def picture(
        self,
        read: Callable[[int], np.ndarray],
        layout: Layout,
        *,
        record: list[Patch] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[np.ndarray]:
        """The upscaled picture in bands from the top, [rows, scale*W, channels] of the layout's type.

        read: gives the next n rows of the picture, [n, W, channels]. record: is given every window. progress: called after every
        batch with the windows done.
        Colours with transparency are computed as they are seen, multiplied by their alpha, and so is alpha itself, both by the
        network; what is fully transparent has no colour. Grey is the luma of the network's output. Of 16 bits per channel a
        fully quantised network sees the upper eight; its output has sixteen.
        """
        rows, columns = self.windows(layout.height, layout.width, layout)
        held = np.empty((0, layout.width, layout.channels), layout.dtype)
        top, done, joined = 0, 0, self._joined_pixels(rows, layout)
        for row in rows:
            held, top = held[row.start - top :], row.start
            held = np.concatenate([held, read(row.stop - top - len(held))])
            kept, s = row.last - row.first, self.scale
            out = np.empty((kept * s, layout.width * s, layout.channels), layout.dtype)
            for finished in self._band(held, row, columns, layout, out, record, joined):
                done += finished
                if progress is not None:
                    progress(done, len(rows) * len(columns), "upscaling")
            yield out

    def array(self, rows: np.ndarray, layout: Layout, **options: Any) -> np.ndarray:
        """`picture` for rows in memory, [H, W, channels]: [scale*H, scale*W, channels]."""
        top = 0

        def read(count: int) -> np.ndarray:
            nonlocal top
            top += count
            return rows[top - count : top]

        bands = list(self.picture(read, layout, **options))
        return bands[0] if len(bands) == 1 else np.concatenate(bands)

    def _band(
        self,
        held: np.ndarray,
        row: Span,
        columns: list[Span],
        layout: Layout,
        out: np.ndarray,
        record: list[Patch] | None,
        joined: int,
    ) -> Iterator[int]:
        """Compute the windows of a row from its pixels into `out`; yields how many were finished. joined: see `_joined_pixels`."""
        windows: list[_Window] = []
        empty = 0
        for column in columns:
            planes, alpha = _planes(held[:, column.start : column.stop], layout)
            if alpha is not None and not alpha.any():
                out[:, self.scale * column.first : self.scale * column.last] = 0
                empty += 1
                continue
            varies = alpha is not None and alpha.min() < alpha.max()
            images = [planes * alpha, np.repeat(alpha * 255, 3, 0)] if varies else [planes]
            offsets = [self._offset(image, row, column) for image in images]
            window = _Window(column, [column], offsets[0], alpha, [_Job(*job) for job in zip(images, offsets, strict=True)])
            if not windows or not windows[-1].take(window, joined // planes.shape[1]):
                windows.append(window)
        if empty:
            yield empty
        for window in windows:
            if len(window.columns) > 1:
                window.jobs[0].image, _ = _planes(held[:, window.column.start : window.column.stop], layout)
        lending = getattr(self.model, "lending_output", nullcontext)
        forward = self.forward_pixels if self._finishes(layout) else self.forward
        for batch in self._batches([(window, job) for window in windows for job in window.jobs]):
            start, finished = time.perf_counter(), 0
            x = torch.from_numpy(np.stack([job.image for _, job in batch])).to(self._device())
            with lending():
                y = forward(x, torch.cat([job.offset for _, job in batch])).permute(0, 2, 3, 1).cpu().numpy()
            seconds = (time.perf_counter() - start) / len(batch)
            for (window, job), result in zip(batch, y, strict=True):
                job.result = result
                if record is not None and job is window.jobs[0]:
                    record += self._patches(row, window, seconds)
                if all(part.result is not None for part in window.jobs):
                    self._store(window, row, layout, out)
                    for part in window.jobs:
                        part.result = None
                    finished += len(window.columns)
            for _, job in batch:
                if job.result is not None:  # the next batch may overwrite what is lent
                    job.result = job.result.copy()
            if finished:
                yield finished

    def _offset(self, image: np.ndarray, row: Span, column: Span) -> torch.Tensor:
        """int32 [1]: the bits more or less of a window, by what it keeps."""
        kept = image[:, row.first - row.start : row.last - row.start, column.first - column.start : column.last - column.start]
        return self._decide(torch.from_numpy(kept)[None].to(self._device()))

    def _decide(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.image_offsets(x, learn=True)

    def _batches(self, jobs: list[tuple[_Window, _Job]]) -> Iterator[list[tuple[_Window, _Job]]]:
        """Jobs of the same shape and bits, in batches."""
        groups: dict[tuple, list[tuple[_Window, _Job]]] = {}
        for window, job in jobs:
            groups.setdefault((job.image.shape, int(job.offset)), []).append((window, job))
        for (shape, _), members in groups.items():
            size = max(self._batch_pixels() // (shape[1] * shape[2]), 1)
            for first in range(0, len(members), size):
                yield members[first : first + size]

    def _patches(self, row: Span, window: _Window, seconds: float) -> Iterator[Patch]:
        """The windows that one was made of."""
        mean_bits = float(self.model.mean_bits(None, offset=window.offset)[0])
        height, all_width = row.last - row.first, window.column.last - window.column.first
        for column in window.columns:
            width = column.last - column.first
            yield Patch(row.first, column.first, height, width, int(window.offset), mean_bits, seconds * width / all_width)

    def _store(self, window: _Window, row: Span, layout: Layout, out: np.ndarray) -> None:
        """What a window keeps, rounded into its place."""
        s, column, alpha, results = self.scale, window.column, window.alpha, [job.result for job in window.jobs]
        top, bottom = s * (row.first - row.start), s * (row.last - row.start)
        left, right = s * (column.first - column.start), s * (column.last - column.start)
        target = out[:, s * column.first : s * column.last]
        factor = np.float32(1 if layout.depth == 8 else 257)
        for first in range(top, bottom, _BLOCK):
            part = slice(first, min(first + _BLOCK, bottom)), slice(left, right)
            place = target[first - top : part[0].stop - top]
            colours = results[0][part]
            if colours.dtype == np.uint8:
                place[...] = colours
                continue
            if alpha is not None:
                opacity = np.clip(results[1][part] @ LUMA, 0, 255) if len(results) == 2 else alpha.flat[0] * np.float32(255)
                place[..., -1] = np.rint(opacity * factor)
                if len(results) == 2:
                    seen = opacity > 0.5 / 257  # as little alpha as 16 bits tell from none
                    colours = np.where(seen[..., None], colours * 255 / np.where(seen, opacity, 1)[..., None], 0)
            colours = np.clip(colours @ LUMA[:, None] if layout.grey else colours, 0, 255)
            colours *= factor
            place[..., : colours.shape[2]] = np.rint(colours, out=colours)

    # ---- tensors

    def tensor(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, 3, H, W] in 0..255 -> float32 [N, 3, scale*H, scale*W] on the same device, not clamped."""
        rows, columns = self.windows(*x.shape[2:])
        if len(rows) == len(columns) == 1:
            return self.forward(x, self._decide(x))
        joined = self._joined_pixels(rows)
        if joined and len(x) > 1:  # each has neighbours of its own with the same bits
            return torch.cat([self.tensor(image) for image in x.split(1)])
        n, s = x.shape[0], self.scale
        y = x.new_empty(n, 3, s * x.shape[2], s * x.shape[3])
        for row in rows:
            windows: list[_Window] = []
            for column in columns:
                window = _Window(column, [column], self._decide(x[:, :, row.first : row.last, column.first : column.last]))
                if not windows or not windows[-1].take(window, joined // (row.stop - row.start)):
                    windows.append(window)
            for window in windows:
                column = window.column
                result = self.forward(x[:, :, row.start : row.stop, column.start : column.stop].clone(), window.offset)
                part = result[:, :, s * (row.first - row.start) :, s * (column.first - column.start) :]
                place = y[:, :, s * row.first : s * row.last, s * column.first : s * column.last]
                place.copy_(part[:, :, : place.shape[2], : place.shape[3]])
        return y

    def picture_tensor(self, rows: np.ndarray, layout: Layout) -> torch.Tensor:
        """float32 [1, 3, H, W] in 0..255 of a picture's rows, colours multiplied by their alpha, on the model's device."""
        planes, alpha = _planes(rows, layout)
        return torch.from_numpy((planes if alpha is None else planes * alpha)[None]).to(self._device())

    def forward(self, x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """One batch of windows with the bits they got, int32 [N]."""
        with torch.no_grad():
            return self._ensemble(x, offset) if self.tta else self.model(x, offset)

    def forward_pixels(self, x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """The same as pixels of 8 bits, uint8; not the mean of a self-ensemble."""
        with torch.no_grad():
            return self.model.pixels(x, offset)

    def _finishes(self, layout: Layout) -> bool:
        """Whether the network writes the pixels of a picture itself: colours of 8 bits that nothing is computed with afterwards.

        Where its last convolution is one of torch, on a CPU `_store` makes pixels of the floats and looks at each value once.
        """
        plain = layout.depth == 8 and not layout.alpha and not layout.grey
        return plain and not self.tta and (self._device().type != "cpu" or getattr(self.model, "full", False))

    def _ensemble(self, x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        total = None
        for turned in (False, True):
            for axes in ((), (2,), (3,), (2, 3)):
                seen = x.flip(axes) if axes else x
                y = self.model((seen.transpose(2, 3) if turned else seen).contiguous(), offset)
                y = y.transpose(2, 3) if turned else y
                y = y.flip(axes) if axes else y
                # A copy: the network's output may be a view of a buffer with other strides.
                total = y.contiguous(memory_format=torch.channels_last).clone() if total is None else total.add_(y)
        return total.div_(8)


class FloatPatchwise(Patchwise):
    """A float network in the windows of a converted one, in channels_last, which torch computes fastest on a CPU."""

    def __init__(self, network: torch.nn.Module, converted: Patchwise):
        self.__dict__ |= converted.__dict__
        self.model = network.eval().to(self._device(), memory_format=torch.channels_last)

    def tensor(self, x: torch.Tensor) -> torch.Tensor:
        return super().tensor(x.contiguous(memory_format=torch.channels_last))

    def _device(self) -> torch.device:
        return next(iter(self.model.parameters()), torch.empty(0)).device

    def _decide(self, x: torch.Tensor) -> torch.Tensor | None:
        return None

    def _finishes(self, layout: Layout) -> bool:
        return False

    def forward(self, x: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad():
            return self.model(x)


@dataclass
class _Job:
    """One picture for the network. image: float32 [3, h, w]. offset: int32 [1]. result: [scale*h, scale*w, 3] when it is there,
    uint8 where finished."""

    image: np.ndarray
    offset: torch.Tensor
    result: np.ndarray | None = None


@dataclass
class _Window:
    """columns: the windows of a row that `column` spans. offset: int32 [N] of its colours, None where there is none. alpha: float32
    [1, h, w] in 0..1 or None. jobs: its colours and, where it varies, its alpha.
    """

    column: Span
    columns: list[Span]
    offset: torch.Tensor | None
    alpha: np.ndarray | None = None
    jobs: list[_Job] = field(default_factory=list)

    def take(self, other: _Window, widest: int) -> bool:
        """Span the next window too, if it got the same bits and both are not wider than that; the job then needs a new image."""
        if other.column.stop - self.column.start > widest or self.column.last != other.column.first:
            return False
        if self.offset is not None and not torch.equal(self.offset, other.offset):
            return False
        if len(self.jobs) == 2 or len(other.jobs) == 2:  # a varying alpha has bits of its own
            return False
        if self.alpha is not None and self.alpha.flat[0] != other.alpha.flat[0]:
            return False
        self.column = Span(self.column.start, other.column.stop, self.column.first, other.column.last)
        self.columns += other.columns
        return True


def _planes(pixels: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray | None]:
    """float32 [3, h, w] of colours in 0..255, and [1, h, w] of alpha in 0..1 or None."""
    values = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
    if layout.depth == 16:
        values /= 257
    alpha = values[-1:] / np.float32(255) if layout.alpha else None
    return (np.repeat(values[:1], 3, 0) if layout.grey else values[:3]), alpha


def default_halo(spec: Any) -> int:
    """Pixels around a window by which it joins its neighbours without a seam one could see: 70 dB, as measured."""
    return math.ceil(HALO_SHARE * spec.radius)


def default_tile(halo: int) -> int:
    """Pixels a side that a window keeps, so that its halo costs at most 9 % more pixels."""
    return max(TILE_HALOS * halo, 256)


def bytes_per_pixel(model: Any, tta: bool = False) -> int:
    """About what a forward pass holds for each low-resolution pixel: features, codes, input and output."""
    spec, s = model.spec, model.scale
    channels = spec.channels
    held = 2 * 4 * channels + 3 * channels  # float features and their codes
    if hasattr(spec, "growth"):  # RDN: two wide buffers, the codes of one, and those of all blocks
        wide = channels + spec.layers * spec.growth
        held += 2 * 4 * wide + wide + spec.blocks * channels
        if getattr(model, "quantizes_early", False):  # a buffer of codes for each layer
            held += sum(channels + layer * spec.growth for layer in range(1, spec.layers))
    if getattr(model, "collapsed", None) is None:
        held += 2 * channels * s**2 * (1 if getattr(model, "full", True) else 4)  # the stages of the upsampler
    return held + 12 + 12 * s**2 * (3 if tta else 1)


def format_bytes(count: float) -> str:
    """A number of bytes in words: "1.5 GB"."""
    for unit, size in (("GB", 1 << 30), ("MB", 1 << 20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def _check_integer(name: str, value: int | None, least: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
