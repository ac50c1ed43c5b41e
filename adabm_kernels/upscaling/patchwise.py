"""Computes pictures of any size with a network: it cuts them into windows, computes these in batches of one bit-width, and joins
the results row by row."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from ..nn import ConvertedModel
from ..nn.graph import recorded_by_default
from ..nn.lanes import Lane, lanes
from ..regions import Depths
from .blocks import Blocks
from .cutting import SMALLEST_TILE, Beside, Cutting
from .flat import patch_side, spread
from .interpolation import find_smooth_pixels, interpolate, interpolate_results, keeps_colours
from .picture import Band, Patch, Picture, Rows, Window, from_to, joined_windows, kept_by, part_of, reading
from .pixels import network_images, network_planes, write_pixels
from .smooth import rules
from .windows import Span

if TYPE_CHECKING:
    from ..images import Layout

Progress = Callable[[int, int, str], None]  # called with (done, in all, doing what)

PROTOCOLS = ("halo", "paper")
SMOOTH = ("auto", "interpolate", "network")
_PATCHES = 8  # the most results for patches of one colour that are kept


class Patchwise:
    """A converted network that takes pictures of any size in bounded memory.

    tile: the side of the square that a window keeps, in low-resolution pixels. 0 takes the whole picture as one window. None takes
        `cutting.default_tile`, or less where max_memory asks for it.
    halo: how many pixels around this square are computed too and thrown away. None takes as many as a pixel of the output sees
        (`reach`). The result is then the same as if the picture were not cut.
    protocol: "halo", or "paper" for AdaBM's patches of 96x96 pixels, which have no halo.
    tta: whether the result is the mean over the eight flips and turns of every window (self-ensemble; Timofte et al., CVPR 2016),
        which takes eight times the work.
    max_memory: the bytes that the process may hold; None for no bound.
    smooth: how the smooth areas of pictures are made. "interpolate" makes them by cubic interpolation, which lies there nearer to
        the float network than few bits do (smooth.py). "network" leaves them to the network. "auto" interpolates if the float
        network gives back flat colours unchanged, as networks do that only upscale. Tensors are always left to the network, and so
        are pictures with protocol "paper".

    Every window decides about its bits by the pixels that it keeps, not by its halo. Windows with the same bits are computed
    together: on a CPU neighbours form one larger window, so that the halo between them is not computed; elsewhere they form a
    batch. Areas that are wholly interpolated are not computed and, with smooth="network", neither are areas that depend on a single
    colour. To leave out only a part of a window needs a network that computes in integers throughout, a halo of at least `reach`,
    and a picture that is cut (tile is not 0). With such a halo none of this changes any pixel.
    Several threads may share one Patchwise. Raises ValueError naming the argument, the rule and the value.
    """

    def __init__(
        self,
        model: ConvertedModel,
        *,
        tile: int | None = None,
        halo: int | None = None,
        protocol: str = "halo",
        tta: bool = False,
        max_memory: int | None = None,
        smooth: str = "auto",
    ):
        if smooth not in SMOOTH:
            raise ValueError(f"smooth must be one of {', '.join(map(repr, SMOOTH))}, got {smooth!r}")
        if protocol == "paper":
            if smooth == "interpolate":
                raise ValueError("smooth must be 'auto' or 'network' with protocol 'paper', got 'interpolate'")
            smooth = "network"
        if not model.spec.takes_pixels:
            raise ValueError(
                "model must be a super-resolution network of pixels in 0..255, this one is a traced module: call it in Python, on "
                "tensors as it was calibrated with"
            )
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
        self.model = model
        self.scale: int = model.scale
        self._halo, self._radius = halo, model.spec.radius
        self.tile, self.protocol, self.tta = tile, protocol, tta
        self.max_memory, self.smooth = max_memory, smooth
        self.rules = rules(min(model.config.weight_bits, model.config.act_bits))
        self.beside = Beside()

    def with_beside(self, beside: Beside) -> Patchwise:
        """A copy with the same settings that takes this memory to be held besides the windows, which leaves less of max_memory to
        them."""
        other = copy.copy(self)
        other.beside = beside
        return other

    @property
    def grid(self) -> int:
        """The side in pixels of the depth tiles; 1 where all pixels have the same depth."""
        return tile_grid(self.model)

    @property
    def reach(self) -> int:
        """How far a pixel of the output sees, in low-resolution pixels: to the end of the receptive field and of the pixels that
        decide on the depth of the tiles in it."""
        return reach(self.model)

    @property
    def halo(self) -> int:
        """How many pixels around the kept part of a window are computed too, on each side."""
        phase = self.model.spec.grid
        if self._halo is not None:
            return -(-self._halo // phase) * phase
        # On a GPU the halo is whole tiles, so that windows begin at the same place in a tile and can be computed together.
        grid = math.lcm(self._alignment(), phase)
        return -(-self.reach // grid) * grid

    def _alignment(self) -> int:
        return 1 if self._device().type == "cpu" else self.grid

    # ---- where to cut

    @property
    def cutting(self) -> Cutting:
        """How pictures are cut for the network on its present device."""
        return Cutting(
            scale=self.scale,
            radius=self._radius,
            tile=self.tile,
            halo=self.halo,
            grid=self._alignment(),
            phase=self.model.spec.grid,
            paper=self.protocol == "paper",
            device=self._device().type,
            # A self-ensemble holds a sum and a turned output in addition to the network's output.
            bytes_per_pixel=self._bytes_per_pixel() + (24 * self.scale**2 if self.tta else 0),
            max_memory=self.max_memory,
            beside=self.beside,
        )

    def windows(self, height: int, width: int, layout: Layout | None = None) -> tuple[list[Span], list[Span]]:
        """The rows and the columns of the windows of a picture (`Cutting.windows`)."""
        return self.cutting.windows(height, width, layout)

    def held_bytes(self, rows: list[Span], layout: Layout) -> int:
        """The bytes that these rows of windows hold besides a batch (`Cutting.held_bytes`)."""
        return self.cutting.held_bytes(rows, layout)

    def _bytes_per_pixel(self) -> int:
        """Bytes that a forward pass holds for each low-resolution pixel."""
        return self.model.bytes_per_pixel()

    def _device(self) -> torch.device:
        tensor = next(self.model.buffers(), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def _learns(self) -> bool:
        """Whether the thresholds change with each image, so that the order of the images counts."""
        return self.model.running_thresholds is not None

    def _in_integers(self) -> bool:
        """Whether all pixels are computed in integers. Those of a "body" network are not, and depend on the order of its sums."""
        return self.model.full

    def _lending_output(self) -> AbstractContextManager[None]:
        """Inside the block, the result of a forward pass may be overwritten by the next one."""
        return self.model.lending_output()

    @property
    def threads(self) -> int:
        """How many threads compute on a CPU."""
        return self.model.threads

    def lanes(self, in_flight: int | None) -> list[Lane]:
        """Lanes for `in_flight` pictures at once. None stands for 2 on a CUDA device, unless max_memory bounds the memory or the
        order of the images counts, and else for 1."""
        running = self._learns()
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
    ) -> Generator[np.ndarray, None, None]:
        """Yields the upscaled picture in bands from the top, [rows, scale*W, channels] of the layout's type.

        read: a function of n that gives the next n rows of the picture, [n, W, channels]. record: a list to which every window is
        appended. progress: a function that is called after every batch with (windows done, windows in all, "upscaling").
        The network computes colours with transparency as they are seen, multiplied by their alpha, and it computes alpha itself.
        Fully transparent pixels get no colour. Grey is the luma of the network's output. Of 16 bits per channel a fully quantised
        network sees the upper eight, but its output has sixteen.
        """
        rows, columns = self.windows(layout.height, layout.width, layout)
        groups, joined = self.cutting.groups(rows, layout.width, layout)
        held = np.empty((0, layout.width, layout.channels), layout.dtype)
        top, done = 0, 0
        picture = Picture(layout, self.interpolates, self._skip_radius(layout), joined, {}, record)
        for group in groups:
            band = from_to(group[0], group[-1])
            held, top = held[band.start - top :], band.start
            held = np.concatenate([held, read(band.stop - top - len(held))])
            s = self.scale
            out = np.empty(((band.last - band.first) * s, layout.width * s, layout.channels), layout.dtype)
            for finished in self._band(Band(picture, Rows(held, top), group[0].first, out), group, columns):
                done += finished
                if progress is not None:
                    progress(done, len(rows) * len(columns), "upscaling")
            yield out

    def array(self, rows: np.ndarray, layout: Layout, **options: Any) -> np.ndarray:
        """The upscaled picture, [scale*H, scale*W, channels], of rows in memory, [H, W, channels]. options: as for `picture`."""
        bands = list(self.picture(reading(rows), layout, **options))
        return bands[0] if len(bands) == 1 else np.concatenate(bands)

    def pictures(self, rows: Sequence[np.ndarray], layout: Layout, records: Sequence[list[Patch]]) -> list[list[np.ndarray]]:
        """The bands that `picture` gives for each of several pictures of one layout, [H, W, channels] each. Pictures of one band
        have their windows computed together, others are computed one after the other.

        records: a list for each picture, to which its windows are appended.
        """
        spans, columns = self.windows(layout.height, layout.width, layout)
        groups, joined = self.cutting.groups(spans, layout.width, layout)
        if len(groups) > 1:
            each = zip(rows, records, strict=True)
            return [list(self.picture(reading(one), layout, record=record)) for one, record in each]
        s, windows, outputs = self.scale, [], []
        for one, record in zip(rows, records, strict=True):
            outputs.append(np.empty((layout.height * s, layout.width * s, layout.channels), layout.dtype))
            picture = Picture(layout, self.interpolates, self._skip_radius(layout), joined, {}, record)
            windows += self._cut_out(Band(picture, Rows(one, 0), 0, outputs[-1]), groups[0], columns)[0]
        for _ in self._run([window for window in windows if window.needed is not None]):
            pass
        self._interpolate(windows)
        return [[output] for output in outputs]

    def _band(self, band: Band, group: list[Span], columns: list[Span]) -> Iterator[int]:
        """Computes the windows of the rows in `group` into the band's output, and yields how many were finished each time."""
        windows, finished = self._cut_out(band, group, columns)
        if finished:
            yield finished
        yield from self._run([window for window in windows if window.needed is not None])
        self._interpolate(windows)

    def _cut_out(self, band: Band, group: list[Span], columns: list[Span]) -> tuple[list[Window], int]:
        """Two values: the windows of the rows in `group`, joined and shrunk to what needs computing, and how many of them were
        finished, because nothing of them is computed."""
        picture, held, out = band.picture, band.held, band.out
        layout, s, finished = picture.layout, self.scale, 0
        windows: list[list[Window]] = []
        for row in group:
            windows.append([])
            for column in columns:
                window = self._window(band, row, column)
                if window is not None:
                    windows[-1].append(window)
                    continue
                out[s * (row.first - band.first) : s * (row.last - band.first), s * column.first : s * column.last] = 0
                finished += 1
        together = joined_windows(windows, picture.joined)
        for window in together:
            window.shrink(picture)
            for place in window.flat if not picture.smooth else ():
                patch = self._patch(held.pixel(place), window, picture)
                spread(patch, part_of(out, place, band.first, s), place, layout.height, layout.width, picture.radius)
            if window.needed is None:
                finished += len(window.cells)
                picture.add(self._patches(window, 0.0, None))
                if window.varies:
                    self._store(window)
        return together, finished

    def _interpolate(self, windows: list[Window]) -> None:
        """Interpolates the smooth parts of computed windows whose alpha does not vary."""
        for window in windows:
            if not window.varies:
                band = _band_of(window)
                interpolate(window, band.held, band.picture.layout, band.first, band.out, self.scale, self.threads)

    def _window(self, band: Band, row: Span, column: Span) -> Window | None:
        """The window of these rows and columns with the bits that it decides on; None where it is transparent everywhere."""
        picture, held = band.picture, band.held
        layout = picture.layout
        opacity, varies = None, False
        if layout.alpha:
            alpha = held.window(row, column)[..., -1]
            opacity, varies = alpha.flat[0], bool((alpha != alpha.flat[0]).any())
            if not alpha.any():
                return None
        kept = kept_by(row, column)
        seen = network_images(held.part(kept), layout, varies)
        offsets = [self._decide(torch.from_numpy(image)[None].to(self._device())) for image in seen]
        if not picture.smooth:
            needed = held.busy(kept, picture.radius) if picture.radius else kept
            return Window(row, column, [kept], offsets, opacity, varies, needed, band=band)
        smooth = find_smooth_pixels(held, row, column, layout, varies, self.rules)
        computed = [kept if found is None else found.computed() for found in smooth]
        # A varying alpha and its colours are computed together: both completely, unless neither needs it.
        needed = computed[0] if not varies or not any(computed) else kept
        parts = [[found] if found else [] for found in smooth]
        return Window(row, column, [kept], offsets, opacity, varies, needed, parts[0], parts[1] if varies else [], band=band)

    def _run(self, windows: list[Window]) -> Iterator[int]:
        """Computes windows of pictures of one layout into the outputs of their bands, and yields how many were finished each
        time."""
        if not windows:
            return
        layout = _band_of(windows[0]).picture.layout
        forward = self.forward_pixels if self._finishes(layout) else self.forward
        for batch in self._batches(windows):
            start, finished = time.perf_counter(), 0
            seen = [(_band_of(window).held.window(window.rows, window.columns), window.varies, i) for window, i in batch]
            images = [network_images(pixels, layout, varies)[i] for pixels, varies, i in seen]
            x, origin = torch.from_numpy(np.stack(images)).to(self._device()), self._origin(batch[0][0])
            with self._lending_output():
                y = (
                    forward(x, torch.cat([cast(torch.Tensor, window.offsets[i]) for window, i in batch]), origin)
                    .permute(0, 2, 3, 1)
                    .cpu()
                    .numpy()
                )
            seconds = (time.perf_counter() - start) / len(batch)
            for at, ((window, i), result) in enumerate(zip(batch, y, strict=True)):
                window.results[i] = result
                picture = _band_of(window).picture
                if i == 0 and picture.record is not None:
                    picture.add(self._patches(window, seconds, self._tile_depths(x, at, origin)))
                if len(window.results) == len(window.offsets):
                    self._store(window)
                    finished += len(window.cells)
            for window, i in batch:
                if i in window.results:  # the next batch may overwrite a result that is lent
                    window.results[i] = window.results[i].copy()
            if finished:
                yield finished

    def _decide(self, x: torch.Tensor) -> torch.Tensor | None:
        """The bits that a window gets more or less, int32 [1], decided by the pixels x that it keeps. A float network has None."""
        return self.model.image_offsets(x, learn=True)

    def _batches(self, windows: list[Window]) -> Iterator[list[tuple[Window, int]]]:
        """Yields batches of images that have the same shape and bits, each image as (its window, 0 for colours or 1 for alpha).

        The network's result for colours is held until that for alpha is there, so only few windows whose alpha varies are computed
        at a time.
        """
        most = self.cutting.batch_pixels
        for some in self._under_way(windows, most):
            groups: dict[tuple, list[tuple[Window, int]]] = {}
            for window in some:
                for i, offset in enumerate(window.offsets):
                    alike = window.rows.length, window.columns.length, int(cast(torch.Tensor, offset)), self._origin(window)
                    groups.setdefault(alike, []).append((window, i))
            for (height, width, *_), members in groups.items():
                size = max(most // (height * width), 1)
                for first in range(0, len(members), size):
                    yield members[first : first + size]

    @staticmethod
    def _under_way(windows: list[Window], most: int) -> Iterator[list[Window]]:
        """Yields all windows whose alpha does not vary, and then the others in groups of at most `most` pixels. A larger window is
        a group of its own."""
        yield [window for window in windows if not window.varies]
        some: list[Window] = []
        total = 0
        for window in windows:
            if not window.varies:
                continue
            pixels = window.rows.length * window.columns.length
            if some and total + pixels > most:
                yield some
                some, total = [], 0
            some.append(window)
            total += pixels
        yield some

    def _origin(self, window: Window) -> tuple[int, int]:
        """The place in its depth tile, as row and column, of the first pixel that a window computes."""
        return window.rows.start % self.grid, window.columns.start % self.grid

    def _tile_depths(self, x: torch.Tensor, index: int, origin: tuple[int, int]) -> Depths | None:
        """The depths of the tiles of one image of a batch, in main memory; None where all tiles have all blocks."""
        if self.grid == 1:
            return None
        depths = self.model.tile_depths(x[index : index + 1], origin=origin)
        return None if depths is None else replace(depths, values=depths.values.cpu())

    def _patches(self, window: Window, seconds: float, depths: Depths | None) -> list[Patch]:
        """The Patch of each of the windows that were joined to this one. depths: the depths of the tiles in its computed part, None
        where all tiles have all blocks."""
        offset = window.offsets[0]
        assert offset is not None, "a converted network decides on every window"
        mean_bits = float(self.model.mean_bits(None, offset=offset)[0])
        flat = [sum(cell.overlap(place).area for place in window.flat) for cell in window.cells]
        computed = max(sum(cell.area for cell in window.cells) - sum(flat), 1)
        blocks = Blocks(self.grid, depths, window) if self.grid > 1 else None
        return [
            Patch(
                cell.top, cell.left, cell.bottom - cell.top, cell.right - cell.left, int(offset), mean_bits,
                seconds * (cell.area - pixels) / computed, pixels,
                *((None, None) if blocks is None else (blocks.pixels(cell), blocks.tiles(cell))),
            )
            for cell, pixels in zip(window.cells, flat, strict=True)
        ]  # fmt: skip

    def _store(self, window: Window) -> None:
        """Rounds the part that a window keeps, writes it into its place in the output, and releases the window's results."""
        s, rows, columns, band = self.scale, window.rows, window.columns, _band_of(window)
        layout = band.picture.layout
        if window.varies:
            interpolate_results(window, band.held, layout, s, self.threads)
        results = [window.results[i] for i in range(len(window.offsets))]
        top, bottom = s * (rows.first - rows.start), s * (rows.last - rows.start)
        left, right = s * (columns.first - columns.start), s * (columns.last - columns.start)
        place = slice(top, bottom), slice(left, right)
        opacity = results[1][place] if window.varies else window.opacity
        write_pixels(results[0][place], opacity, part_of(band.out, window.kept, band.first, s), layout)
        window.results.clear()

    # ---- what is smooth

    @cached_property
    def interpolates(self) -> bool:
        """Whether smooth areas are interpolated."""
        return keeps_colours(self.model) if self.smooth == "auto" else self.smooth == "interpolate"

    # ---- one colour

    def _skip_radius(self, layout: Layout) -> int:
        """The receptive field's radius where a window may shrink to what needs computing, else 0."""
        if not self._in_integers() or self.protocol == "paper" or self.tile == 0:
            return 0
        # Here the result for a window depends on where it begins, or on all of its pixels.
        if self.model.spec.grid > 1 or self.model.spec.attention:
            return 0
        radius = self.reach
        # In a narrower picture, a flat patch would see the borders of both sides at once.
        wide = min(layout.height, layout.width) >= patch_side(radius)
        return radius if self.halo >= radius and (wide or self.interpolates) else 0

    def _patch(self, pixel: np.ndarray, window: Window, picture: Picture) -> np.ndarray:
        """The result of the network for a patch of one colour with the bits of a window (see `flat.spread`)."""
        key = pixel.tobytes(), tuple(int(cast(torch.Tensor, offset)) for offset in window.offsets), window.varies
        if key not in picture.patches:
            side = patch_side(picture.radius)
            pixels = np.broadcast_to(pixel, (side, side, len(pixel)))
            span = Span(0, side, 0, side)
            out = np.empty((self.scale * side, self.scale * side, len(pixel)), pixel.dtype)
            band = Band(replace(picture, record=None), Rows(pixels, 0), 0, out)
            patch = Window(span, span, [kept_by(span, span)], window.offsets, window.opacity, window.varies, None, band=band)
            for _ in self._run([patch]):
                pass
            if len(picture.patches) == _PATCHES:
                picture.patches.pop(next(iter(picture.patches)))
            picture.patches[key] = out
        return picture.patches[key]

    # ---- tensors

    def tensor(self, x: torch.Tensor, finished: Callable[[int], None] | None = None) -> torch.Tensor:
        """The network's output for x, float32 [N, 3, H, W] in 0..255: float32 [N, 3, scale*H, scale*W] on the device of x, not
        clamped. The network computes on its own device.

        finished: a function that is called with the number of windows that were just finished. Each image has windows of its own.
        """
        y = self._tensor(x.to(self._device()), finished or (lambda count: None))
        return y if y.device == x.device else y.to(x.device)

    def _tensor(self, x: torch.Tensor, finished: Callable[[int], None]) -> torch.Tensor:
        rows, columns = self.windows(*x.shape[2:])
        if len(rows) == len(columns) == 1:
            y = self.forward(x, self._decide(x), (0, 0))
            finished(len(x))
            return y
        groups, joined = self.cutting.groups(rows, x.shape[3])
        if joined and len(x) > 1:  # in each image other neighbours have the same bits
            return torch.cat([self._tensor(image, finished) for image in x.split(1)])
        s = self.scale
        y = x.new_empty(x.shape[0], 3, s * x.shape[2], s * x.shape[3])
        for group in groups:
            windows = []
            for row in group:
                seen = [(column, x[:, :, row.first : row.last, column.first : column.last]) for column in columns]
                windows.append([Window(row, column, [kept_by(row, column)], [self._decide(kept)]) for column, kept in seen])
            for window in joined_windows(windows, joined):
                row, column = window.rows, window.columns
                cut = x[:, :, row.start : row.stop, column.start : column.stop].clone()
                result = self.forward(cut, window.offsets[0], self._origin(window))
                part = result[:, :, s * (row.first - row.start) :, s * (column.first - column.start) :]
                place = y[:, :, s * row.first : s * row.last, s * column.first : s * column.last]
                place.copy_(part[:, :, : place.shape[2], : place.shape[3]])
                finished(len(x) * len(window.cells))
        return y

    def picture_tensor(self, rows: np.ndarray, layout: Layout) -> torch.Tensor:
        """A picture's rows as a tensor, float32 [1, 3, H, W] in 0..255, on the model's device. Colours are multiplied by their
        alpha."""
        planes, alpha = network_planes(rows, layout)
        return torch.from_numpy((planes if alpha is None else planes * alpha)[None]).to(self._device())

    def forward(self, x: torch.Tensor, offset: torch.Tensor | None, origin: tuple[int, int]) -> torch.Tensor:
        """The network's output for one batch of windows x. offset: the bits that each gets more or less, int32 [N]. origin: the
        place of their first pixel in its depth tile."""
        with torch.no_grad(), recorded_by_default():
            return self._ensemble(x, offset, origin) if self.tta else self.model(x, offset, **self._from(origin))

    def forward_pixels(self, x: torch.Tensor, offset: torch.Tensor, origin: tuple[int, int]) -> torch.Tensor:
        """The result of `forward` as pixels of 8 bits, uint8. It is not for the mean of a self-ensemble."""
        with torch.no_grad(), recorded_by_default():
            return self.model.pixels(x, offset, **self._from(origin))

    def _from(self, origin: tuple[int, int]) -> dict[str, tuple[int, int]]:
        return {"origin": origin} if self.grid > 1 else {}

    def _finishes(self, layout: Layout) -> bool:
        """Whether the network writes the pixels of a picture itself: they are colours of 8 bits, and nothing is computed from them
        afterwards."""
        plain = layout.depth == 8 and not layout.alpha and not layout.grey
        return plain and not self.tta and (self._device().type != "cpu" or self._in_integers())

    def _ensemble(self, x: torch.Tensor, offset: torch.Tensor | None, origin: tuple[int, int]) -> torch.Tensor:
        total: Any = None
        for turned in (False, True):
            for axes in ((), (2,), (3,), (2, 3)):
                seen = x.flip(axes) if axes else x
                # The tiles are those of the picture, and turn with it.
                top, left = (-(x.shape[a] + at) % self.grid if a in axes else at for a, at in zip((2, 3), origin, strict=True))
                place = self._from((left, top) if turned else (top, left))
                y = self.model((seen.transpose(2, 3) if turned else seen).contiguous(), offset, **place)
                y = y.transpose(2, 3) if turned else y
                y = y.flip(axes) if axes else y
                # This is a copy, because the network's output may be a view of a buffer with other strides.
                total = y.contiguous(memory_format=torch.channels_last).clone() if total is None else total.add_(y)
        return total.div_(8)


class FloatPatchwise(Patchwise):
    """A float network that computes in the windows of a converted one. It runs in channels_last, which torch computes fastest on
    a CPU."""

    def __init__(self, network: torch.nn.Module, converted: Patchwise):
        self.__dict__ |= converted.__dict__
        self.network = network.eval()
        self.network.to(converted._device(), memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch leaves it out
        self._halo, self._converted = converted.halo, converted

    def _tensor(self, x: torch.Tensor, finished: Callable[[int], None]) -> torch.Tensor:
        return super()._tensor(x.contiguous(memory_format=torch.channels_last), finished)

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    def _device(self) -> torch.device:
        return next(iter(self.network.parameters()), torch.empty(0)).device

    def _learns(self) -> bool:
        return False

    def _in_integers(self) -> bool:
        return False

    def _lending_output(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _decide(self, x: torch.Tensor) -> torch.Tensor | None:
        return None

    def _finishes(self, layout: Layout) -> bool:
        return False

    @property
    def grid(self) -> int:
        return 1

    def _bytes_per_pixel(self) -> int:
        return self._converted._bytes_per_pixel()

    def forward(self, x: torch.Tensor, offset: torch.Tensor | None, origin: tuple[int, int]) -> torch.Tensor:
        with torch.no_grad():
            return self.network(x)


def _band_of(window: Window) -> Band:
    """The band of a window of a picture."""
    assert window.band is not None, "only windows of tensors have none"
    return window.band


def tile_grid(model: ConvertedModel) -> int:
    """The side in pixels of a network's depth tiles; 1 where all pixels have the same depth."""
    return model.exit.tile if model.varies_depth and model.exit is not None else 1


def reach(model: ConvertedModel) -> int:
    """How far a pixel of the output sees, in low-resolution pixels: the radius of the receptive field. With tiles of two depths
    it also sees the rest of each tile in this field and the pixels next to it, which decide on the tile's depth, and at least the
    pixels that the exit's filter reads."""
    grid = tile_grid(model)
    return model.spec.radius if grid == 1 or model.exit is None else max(model.spec.radius + grid, model.exit.kernel // 2)


def _check_integer(name: str, value: int | None, least: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
