"""Pictures of any size through a network: cut into windows, computed in batches of one bit-width, put together row by row."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterator
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
from .picture import Patch, Picture, Rows, Window, from_to, joined_windows, kept_by, part_of
from .pixels import network_images, network_planes, write_pixels
from .smooth import rules
from .windows import Span

if TYPE_CHECKING:
    from ..images import Layout

Progress = Callable[[int, int, str], None]  # called with (done, in all, doing what)

PROTOCOLS = ("halo", "paper")
SMOOTH = ("auto", "interpolate", "network")
_PATCHES = 8  # the most patches of one colour that are remembered


class Patchwise:
    """A converted network that takes pictures of any size in bounded memory.

    tile: low-resolution pixels a side that a window keeps; 0 for the whole picture as one, None for TILE_HALOS halos or less
    where max_memory asks for it. halo: pixels around them that are computed too; None for as many as a pixel sees (`reach`), with
    which windows join without any difference. protocol: "halo", or "paper" for AdaBM's 96x96 patches without one.
    tta: the mean over the eight flips and turns of every window (self-ensemble; Timofte et al., CVPR 2016), eight times the work.
    max_memory: bytes that the process may hold; None for no bound.
    smooth: "interpolate" the smooth areas of pictures, where cubic interpolation lies nearer to the float network than few bits do
    (smooth.py), or leave them to the "network"; "auto" interpolates if the float network gives back flat colours as they are, as
    one that only upscales does. Tensors and protocol "paper" are the network's throughout.

    Every window decides about its bits by what it keeps, not by its halo. Windows that got the same bits are computed together: on
    a CPU neighbours as one larger window, so that the halo between them is not computed, else in batches. What is interpolated
    throughout is not computed; nor is, with smooth="network", what depends on one colour only. Within a window that takes a network
    of integers throughout, a halo of `reach` or more and a picture that is not taken whole. None of this changes a pixel with
    such a halo. Threads may share it.
    Raises ValueError naming the argument, the rule and the value.
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
        """The same settings with this much held besides the windows, which leaves less of max_memory to them."""
        other = copy.copy(self)
        other.beside = beside
        return other

    @property
    def grid(self) -> int:
        """Pixels a side of the tiles that have a depth of their own; 1 where all have the same."""
        return tile_grid(self.model)

    @property
    def reach(self) -> int:
        """How far a pixel of the output sees, in low-resolution pixels: the receptive field, and what decides on the depth of the
        tiles in it."""
        return reach(self.model)

    @property
    def halo(self) -> int:
        """Pixels around a window that are computed too."""
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
        """See `Cutting.windows`."""
        return self.cutting.windows(height, width, layout)

    def held_bytes(self, rows: list[Span], layout: Layout) -> int:
        """See `Cutting.held_bytes`."""
        return self.cutting.held_bytes(rows, layout)

    def _bytes_per_pixel(self) -> int:
        """Bytes that a forward pass holds for each low-resolution pixel."""
        return self.model.bytes_per_pixel()

    def _device(self) -> torch.device:
        tensor = next(self.model.buffers(), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def _learns(self) -> bool:
        """Whether thresholds follow the images in their order."""
        return self.model.running_thresholds is not None

    def _in_integers(self) -> bool:
        """Whether all pixels are computed in integers. The floats of a "body" network depend on how they are summed."""
        return self.model.full

    def _lending_output(self) -> AbstractContextManager[None]:
        """Inside the block, the result of a forward pass may be overwritten by the next one."""
        return self.model.lending_output()

    @property
    def threads(self) -> int:
        """How many threads compute on a CPU."""
        return self.model.threads

    def lanes(self, in_flight: int | None) -> list[Lane]:
        """Lanes for so many pictures at once; for None two on a CUDA device, where nothing asks for one after the other."""
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
        """The upscaled picture in bands from the top, [rows, scale*W, channels] of the layout's type.

        read: gives the next n rows of the picture, [n, W, channels]. record: is given every window. progress: called after every
        batch with the windows done.
        Colours with transparency are computed as they are seen, multiplied by their alpha, and so is alpha itself, both by the
        network; what is fully transparent has no colour. Grey is the luma of the network's output. Of 16 bits per channel a
        fully quantised network sees the upper eight; its output has sixteen.
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
            for finished in self._band(Rows(held, top), group, columns, picture, out):
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

    def _band(self, held: Rows, group: list[Span], columns: list[Span], picture: Picture, out: np.ndarray) -> Iterator[int]:
        """Compute the windows of some rows from their pixels into `out`; yields how many were finished."""
        layout, s, finished = picture.layout, self.scale, 0
        windows: list[list[Window]] = []
        for row in group:
            windows.append([])
            for column in columns:
                window = self._window(held, row, column, picture)
                if window is not None:
                    windows[-1].append(window)
                    continue
                out[s * (row.first - group[0].first) : s * (row.last - group[0].first), s * column.first : s * column.last] = 0
                finished += 1
        together = joined_windows(windows, picture.joined)
        for window in together:
            window.shrink(picture)
            for place in window.flat if not picture.smooth else ():
                patch = self._patch(held.pixel(place), window, picture)
                spread(patch, part_of(out, place, group[0].first, s), place, layout.height, layout.width, picture.radius)
            if window.needed is None:
                finished += len(window.cells)
                picture.add(self._patches(window, 0.0, None))
                if window.varies:
                    self._store(window, held, layout, part_of(out, window.kept, group[0].first, s))
        if finished:
            yield finished
        for finished in self._run([window for window in together if window.needed is not None], held, group[0].first, picture, out):
            yield finished
        for window in together:
            if not window.varies:
                interpolate(window, held, layout, group[0].first, out, s, self.threads)

    def _window(self, held: Rows, row: Span, column: Span, picture: Picture) -> Window | None:
        """One window with the bits that it decides on; None for one that is transparent everywhere."""
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
            return Window(row, column, [kept], offsets, opacity, varies, needed)
        smooth = find_smooth_pixels(held, row, column, layout, varies, self.rules)
        computed = [kept if found is None else found.computed() for found in smooth]
        # A varying alpha and its colours are computed together: both completely, unless neither needs it.
        needed = computed[0] if not varies or not any(computed) else kept
        parts = [[found] if found else [] for found in smooth]
        return Window(row, column, [kept], offsets, opacity, varies, needed, parts[0], parts[1] if varies else [])

    def _run(self, windows: list[Window], held: Rows, first: int, picture: Picture, out: np.ndarray) -> Iterator[int]:
        """Compute windows into `out`, whose first row is low-resolution row `first`; yields how many were finished."""
        layout = picture.layout
        forward = self.forward_pixels if self._finishes(layout) else self.forward
        for batch in self._batches(windows):
            start, finished = time.perf_counter(), 0
            images = [network_images(held.window(window.rows, window.columns), layout, window.varies)[i] for window, i in batch]
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
                if i == 0 and picture.record is not None:
                    picture.add(self._patches(window, seconds, self._tile_depths(x, at, origin)))
                if len(window.results) == len(window.offsets):
                    self._store(window, held, layout, part_of(out, window.kept, first, self.scale))
                    finished += len(window.cells)
            for window, i in batch:
                if i in window.results:  # the next batch may overwrite a result that is lent
                    window.results[i] = window.results[i].copy()
            if finished:
                yield finished

    def _decide(self, x: torch.Tensor) -> torch.Tensor | None:
        """int32 [1]: the bits more or less of a window, by what it keeps; None of a float network."""
        return self.model.image_offsets(x, learn=True)

    def _batches(self, windows: list[Window]) -> Iterator[list[tuple[Window, int]]]:
        """Pictures of windows (which, and its first or second) of the same shape and bits, in batches.

        What a network makes of colours is held until it has made alpha, so few windows whose alpha varies are under way at a time.
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
        """All windows whose alpha does not vary, then the others in groups of one or of at most so many pixels."""
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
        """Where the computed part of a window begins in the grid of tiles."""
        return window.rows.start % self.grid, window.columns.start % self.grid

    def _tile_depths(self, x: torch.Tensor, index: int, origin: tuple[int, int]) -> Depths | None:
        """The depths of the tiles of one image of a batch, in main memory."""
        if self.grid == 1:
            return None
        depths = self.model.tile_depths(x[index : index + 1], origin=origin)
        return None if depths is None else replace(depths, values=depths.values.cpu())

    def _patches(self, window: Window, seconds: float, depths: Depths | None) -> list[Patch]:
        """The windows that one was made of. depths: of the tiles of what was computed, None where all have all blocks."""
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

    def _store(self, window: Window, held: Rows, layout: Layout, target: np.ndarray) -> None:
        """Rounds the part that a window keeps into its place, and releases the window's results."""
        s, rows, columns = self.scale, window.rows, window.columns
        if window.varies:
            interpolate_results(window, held, layout, s, self.threads)
        results = [window.results[i] for i in range(len(window.offsets))]
        top, bottom = s * (rows.first - rows.start), s * (rows.last - rows.start)
        left, right = s * (columns.first - columns.start), s * (columns.last - columns.start)
        place = slice(top, bottom), slice(left, right)
        opacity = results[1][place] if window.varies else window.opacity
        write_pixels(results[0][place], opacity, target, layout)
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
        # the result for a window depends on where it begins, or on all of it
        if self.model.spec.grid > 1 or self.model.spec.attention:
            return 0
        radius = self.reach
        # otherwise a flat patch would see the borders of both sides at once
        wide = min(layout.height, layout.width) >= patch_side(radius)
        return radius if self.halo >= radius and (wide or self.interpolates) else 0

    def _patch(self, pixel: np.ndarray, window: Window, picture: Picture) -> np.ndarray:
        """The result of the network for a patch of one colour with the bits of a window (see `flat.spread`)."""
        key = pixel.tobytes(), tuple(int(cast(torch.Tensor, offset)) for offset in window.offsets), window.varies
        if key not in picture.patches:
            side = patch_side(picture.radius)
            pixels = np.broadcast_to(pixel, (side, side, len(pixel)))
            span = Span(0, side, 0, side)
            patch = Window(span, span, [kept_by(span, span)], window.offsets, window.opacity, window.varies, None)
            out = np.empty((self.scale * side, self.scale * side, len(pixel)), pixel.dtype)
            for _ in self._run([patch], Rows(pixels, 0), 0, replace(picture, record=None), out):
                pass
            if len(picture.patches) == _PATCHES:
                picture.patches.pop(next(iter(picture.patches)))
            picture.patches[key] = out
        return picture.patches[key]

    # ---- tensors

    def tensor(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, 3, H, W] in 0..255 -> float32 [N, 3, scale*H, scale*W] of the network on the same device, not clamped."""
        rows, columns = self.windows(*x.shape[2:])
        if len(rows) == len(columns) == 1:
            return self.forward(x, self._decide(x), (0, 0))
        groups, joined = self.cutting.groups(rows, x.shape[3])
        if joined and len(x) > 1:  # each has its own neighbours with the same bits
            return torch.cat([self.tensor(image) for image in x.split(1)])
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
        return y

    def picture_tensor(self, rows: np.ndarray, layout: Layout) -> torch.Tensor:
        """float32 [1, 3, H, W] in 0..255 of a picture's rows, colours multiplied by their alpha, on the model's device."""
        planes, alpha = network_planes(rows, layout)
        return torch.from_numpy((planes if alpha is None else planes * alpha)[None]).to(self._device())

    def forward(self, x: torch.Tensor, offset: torch.Tensor | None, origin: tuple[int, int]) -> torch.Tensor:
        """One batch of windows with the bits they got, int32 [N]. origin: where they begin in the grid of tiles."""
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
    """A float network in the windows of a converted one, in channels_last, which torch computes fastest on a CPU."""

    def __init__(self, network: torch.nn.Module, converted: Patchwise):
        self.__dict__ |= converted.__dict__
        self.network = network.eval()
        self.network.to(converted._device(), memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch leaves it out
        self._halo, self._converted = converted.halo, converted

    def tensor(self, x: torch.Tensor) -> torch.Tensor:
        return super().tensor(x.contiguous(memory_format=torch.channels_last))

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


def tile_grid(model: ConvertedModel) -> int:
    """Pixels a side of the tiles of a network that have a depth of their own; 1 where all have the same."""
    return model.exit.tile if model.varies_depth and model.exit is not None else 1


def reach(model: ConvertedModel) -> int:
    """How far a pixel of the output sees, in low-resolution pixels: the radius of the receptive field and, with tiles of several
    depths, the rest of a tile in it and the pixels around that, which decide together."""
    grid = tile_grid(model)
    return model.spec.radius if grid == 1 or model.exit is None else max(model.spec.radius + grid, model.exit.kernel // 2)


def _check_integer(name: str, value: int | None, least: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
