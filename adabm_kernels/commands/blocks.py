"""What the commands say about residual blocks: what their features are held in, and where none was computed, as the picture is easy
there."""

from __future__ import annotations

from typing import Any

MOST_FIXED = 2**15 - 1  # as in quantize.py, which would import torch


def block_rows(share: float | None, with_zeros: float | None, depth: str | int, more: str = "") -> list[tuple[str, str]]:
    """Rows of a table, none for a network that leaves out no blocks.

    share: of the pixels that had blocks computed. with_zeros: mean bits, those without counted as 0. depth: as it was asked for.
    more: what else is to be said of both.
    """
    if share is None or with_zeros is None:
        return []
    zeros = f"{with_zeros:.2f} (a pixel without blocks counts as 0)"
    return [("blocks", f"{_in_words(share, depth)}{more}"), ("bits with zeros", f"{zeros}{more}")]


def exit_in_words(found: dict[str, Any] | None) -> str:
    """In which tiles a model computes no blocks, in words. found: the entry of the exit in its file, tile and threshold; None for a
    model without one."""
    if found is None:
        return "none, all blocks are computed everywhere"
    side, levels = found["tile"], found["threshold"]
    return f"those of {side}x{side} pixels that bend by no more than {levels} of 255 levels have no blocks computed"


def residual_in_words(fraction: int | None) -> str:
    """How the features that pass the blocks by are held, in words. fraction: as in a model's file, None for floats."""
    if fraction is None:
        return "float32"
    unit = f"1/{2**fraction}" if fraction > 0 else f"{2**-fraction}"
    return f"int16 in units of {unit}, up to {MOST_FIXED * 2.0**-fraction:.6g}"


def percent(share: float) -> str:
    """ "71 %"; 0 and 100 only where it is nothing or all."""
    return f"{100 * share:.0f} %" if share in (0, 1) else f"{min(max(round(100 * share), 1), 99)} %"


def _in_words(share: float, depth: str | int) -> str:
    if depth == 0:
        small = f"{percent(share)} computed, where the picture is too small for the filter of easy tiles"
        return small if share else "none computed (fixed)"
    if share == 1:
        return "all computed, no tile of the picture is easy"
    if share == 0:
        return "none computed, all of the picture is easy or interpolated"
    return f"{percent(share)} computed, the rest of the picture is easy or interpolated"
