"""Smooth areas of windows: found, and interpolated in place of what the network makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch

from .flat import Rect
from .picture import Rows, Window, kept_by, part_of
from .pixels import colour_channels, network_images
from .smooth import TAPS, Rule, Smooth, enlarge, find_smooth, phases

if TYPE_CHECKING:
    from .images import Layout
    from .windows import Span

_PARTS = 64  # of a level, that colours multiplied by their alpha are compared by
_PROBES = torch.tensor([[8.0, 8, 8], [60, 100, 140], [200, 170, 120], [250, 250, 250]])  # colours that a network is tried on
_PROBE_SIDE = 16
_KEPT = 3.0  # levels by which a colour may change: EDSR and SRResNet change them by one at most
_KEEPS: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


def keeps_colours(model: torch.nn.Module) -> bool:
    """Whether the float network of a converted model gives back flat colours as they are; no for a model without float weights.

    Networks that only upscale do, to one level; one that changes colours or contrast does not, and interpolation would show in it.
    """
    if model not in _KEEPS:
        _KEEPS[model] = False
        if model.float_state is not None:
            x = _PROBES[..., None, None].expand(-1, -1, _PROBE_SIDE, _PROBE_SIDE).contiguous()
            with torch.no_grad():
                y = model.float_model().eval().cpu()(x)
            inner = slice(y.shape[2] // 2 - model.scale, y.shape[2] // 2 + model.scale)
            _KEEPS[model] = bool(((y[..., inner, inner] - x[..., :1, :1]).abs() <= _KEPT).all())
    return _KEEPS[model]


def find_smooth_pixels(
    held: Rows, row: Span, column: Span, layout: Layout, varies: bool, rules: tuple[Rule, Rule]
) -> list[Smooth | None]:
    """Where a window is interpolated: its colours and, where alpha varies, its alpha. rules: for either."""
    kept, seen = kept_by(row, column), Rect(row.start, row.stop, column.start, column.stop)
    pixels, unit = held.window(row, column), 1 if layout.depth == 8 else 257
    if not varies:
        return [find_smooth(pixels[..., : colour_channels(layout)], kept, seen, rules[0], unit)]
    multiplied = np.rint(network_images(pixels, layout, varies)[0] * _PARTS).astype(np.int32).transpose(1, 2, 0)
    return [find_smooth(multiplied, kept, seen, rules[0], _PARTS), find_smooth(pixels[..., -1:], kept, seen, rules[1], unit)]


def interpolate(window: Window, held: Rows, layout: Layout, first: int, out: np.ndarray, scale: int) -> None:
    """Interpolate what is smooth of a window into `out`, whose first row is low-resolution row `first`, over what is there."""
    count, most = colour_channels(layout), np.iinfo(layout.dtype).max
    for smooth in window.smooth:
        for block in smooth.blocks():
            target = part_of(out, block, first, scale)
            values = enlarge(held.around(block, TAPS)[..., :count], scale, phases(scale, "cubic"))
            mixed = _mixed(values, smooth.weights(block, scale), target[..., :count])
            # Halves are rounded up: to the next even level they would leave stripes on slopes.
            target[..., :count] = np.floor(np.clip(mixed, 0, most) + np.float32(0.5))
            if window.opacity is not None:
                target[..., -1] = window.opacity


def interpolate_results(window: Window, held: Rows, layout: Layout, scale: int) -> None:
    """The same for colours multiplied by their alpha, and alpha, before one is divided by the other."""
    rows, columns = window.rows, window.columns
    seen_by_network = network_images(held.window(rows, columns), layout, window.varies)
    for i, (image, found) in enumerate(zip(seen_by_network, (window.smooth, window.alpha_smooth), strict=True)):
        seen = Rows(image.transpose(1, 2, 0), rows.start)
        if i not in window.results:
            window.results[i] = np.zeros((scale * rows.length, scale * columns.length, 3), np.float32)
        for smooth in found:
            for block in smooth.blocks():
                target = part_of(window.results[i], block.moved(0, -columns.start), rows.start, scale)
                values = enlarge(seen.around(block.moved(0, -columns.start), TAPS), scale, phases(scale, "cubic"))
                target[...] = _mixed(values, smooth.weights(block, scale), target)


def _mixed(interpolated: np.ndarray, weights: np.ndarray | None, computed: np.ndarray) -> np.ndarray:
    """Float32 [h, w, C] between what was computed and what was interpolated. weights: [h, w] of the latter, None for 1."""
    if weights is None:
        return interpolated
    interpolated -= computed
    interpolated *= weights[..., None]
    interpolated += computed
    return interpolated
