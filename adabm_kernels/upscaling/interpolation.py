"""Smooth areas of windows: found, and interpolated in place of what the network makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from .. import native
from ..backends import cpu
from ..networks.colours import gives_back_colours
from .flat import Rect
from .picture import Rows, Window, kept_by, part_of
from .pixels import colour_channels, network_images
from .smooth import Rule, Smooth, find_smooth, interpolate_reference, phases

if TYPE_CHECKING:
    from ..images import Layout
    from .windows import Span

_PARTS = 64  # parts of a level by which colours multiplied by their alpha are compared
_KEEPS: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


def keeps_colours(model: Any) -> bool:
    """Whether the float network of a converted model gives back flat colours as they are; no for a model without float weights.

    Networks that only upscale do, to one level; one that changes colours or contrast does not, and interpolation would show in it.
    Threads may ask at once: the answer is remembered only when it is known.
    """
    if model not in _KEEPS:
        _KEEPS[model] = model.float_state is not None and gives_back_colours(model.float_model().eval().cpu(), model.scale)
    return _KEEPS[model]


def find_smooth_pixels(
    held: Rows, row: Span, column: Span, layout: Layout, varies: bool, rules: tuple[Rule, Rule]
) -> list[Smooth | None]:
    """Where a window is interpolated, for its colours and, where alpha varies, for its alpha. rules: one for either."""
    kept, seen = kept_by(row, column), Rect(row.start, row.stop, column.start, column.stop)
    pixels, unit = held.window(row, column), 1 if layout.depth == 8 else 257
    if not varies:
        return [find_smooth(pixels[..., : colour_channels(layout)], kept, seen, rules[0], unit)]
    multiplied = np.rint(network_images(pixels, layout, varies)[0] * _PARTS).astype(np.int32).transpose(1, 2, 0)
    return [find_smooth(multiplied, kept, seen, rules[0], _PARTS), find_smooth(pixels[..., -1:], kept, seen, rules[1], unit)]


def interpolate(window: Window, held: Rows, layout: Layout, first: int, out: np.ndarray, scale: int, threads: int) -> None:
    """Interpolate what is smooth of a window into `out`, whose first row is low-resolution row `first`, over what is there."""
    count = colour_channels(layout)
    for smooth in window.smooth:
        target = part_of(out, smooth.place, first, scale)
        _interpolate(smooth, held.pixels[..., :count], smooth.place.top - held.top, smooth.place.left, target[..., :count], threads)
    if window.opacity is not None:
        for place in window.flat:
            part_of(out, place, first, scale)[..., -1] = window.opacity


def interpolate_results(window: Window, held: Rows, layout: Layout, scale: int, threads: int) -> None:
    """Interpolate what is smooth of a window whose alpha varies, in what the network made of its colours times alpha and of alpha.

    Results that were not computed begin as zeros, which interpolation then replaces throughout.
    """
    rows, columns = window.rows, window.columns
    seen = network_images(held.window(rows, columns), layout, window.varies)
    for i, (image, found) in enumerate(zip(seen, (window.smooth, window.alpha_smooth), strict=True)):
        if i not in window.results:
            window.results[i] = np.zeros((scale * rows.length, scale * columns.length, 3), np.float32)
        window.results[i] = np.ascontiguousarray(window.results[i])  # the channels of a pixel lie one after the other
        for smooth in found:
            target = part_of(window.results[i], smooth.place.moved(0, -columns.start), rows.start, scale)
            top, left = smooth.place.top - rows.start, smooth.place.left - columns.start
            _interpolate(smooth, image.transpose(1, 2, 0), top, left, target, threads)


def _interpolate(smooth: Smooth, x: np.ndarray, top: int, left: int, y: np.ndarray, threads: int) -> None:
    """See `interpolate_reference`, which this is by the CPU library where there is one."""
    if native.why_missing("cpu"):
        interpolate_reference(smooth, x, top, left, y)
        return
    scale = len(y) // (len(smooth.shares) - 2)
    kernels = phases(scale, "cubic"), phases(scale, "linear")
    cpu.interpolate(x, top, left, np.ascontiguousarray(smooth.shares), smooth.rule.full, *kernels, y, threads)
