"""Finds the smooth areas of windows, and interpolates them in place of the network's results."""

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
    """Whether the float network of a converted model gives back flat colours as they are. False for a model without float weights.

    Networks that only upscale do so, to one level of 255. A network that changes colours or contrast does not, and interpolated
    areas would show in its output. Several threads may ask at once: an answer is kept only when it is complete.
    """
    if model not in _KEEPS:
        _KEEPS[model] = model.float_state is not None and gives_back_colours(model.float_model().eval().cpu(), model.scale)
    return _KEEPS[model]


def find_smooth_pixels(
    held: Rows, row: Span, column: Span, layout: Layout, varies: bool, rules: tuple[Rule, Rule]
) -> list[Smooth | None]:
    """Where a window is interpolated: one entry for its colours and, where alpha varies, one for its alpha, each None for nowhere.
    rules: the rule for colours and the rule for alpha."""
    kept, seen = kept_by(row, column), Rect(row.start, row.stop, column.start, column.stop)
    pixels, unit = held.window(row, column), 1 if layout.depth == 8 else 257
    if not varies:
        return [find_smooth(pixels[..., : colour_channels(layout)], kept, seen, rules[0], unit)]
    multiplied = np.rint(network_images(pixels, layout, varies)[0] * _PARTS).astype(np.int32).transpose(1, 2, 0)
    return [find_smooth(multiplied, kept, seen, rules[0], _PARTS), find_smooth(pixels[..., -1:], kept, seen, rules[1], unit)]


def interpolate(window: Window, held: Rows, layout: Layout, first: int, out: np.ndarray, scale: int, threads: int) -> None:
    """Interpolates the smooth parts of a window over the results in `out`, which begins with low-resolution row `first`."""
    count = colour_channels(layout)
    for smooth in window.smooth:
        target = part_of(out, smooth.place, first, scale)
        _interpolate(smooth, held.pixels[..., :count], smooth.place.top - held.top, smooth.place.left, target[..., :count], threads)
    if window.opacity is not None:
        for place in window.flat:
            part_of(out, place, first, scale)[..., -1] = window.opacity


def interpolate_results(window: Window, held: Rows, layout: Layout, scale: int, threads: int) -> None:
    """Interpolates the smooth parts of a window whose alpha varies, in the network's results for colours times alpha and for alpha.

    A result that was not computed begins as zeros, all of which the interpolation replaces.
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
    """Computes `interpolate_reference`, with the CPU library where it is there."""
    if native.why_missing("cpu"):
        interpolate_reference(smooth, x, top, left, y)
        return
    scale = len(y) // (len(smooth.shares) - 2)
    kernels = phases(scale, "cubic"), phases(scale, "linear")
    cpu.interpolate(x, top, left, np.ascontiguousarray(smooth.shares), smooth.rule.full, *kernels, y, threads)
