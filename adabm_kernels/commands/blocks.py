"""The words of the commands about residual blocks: how their features are stored, and where no block was computed because the
picture is easy there."""

from __future__ import annotations

from typing import Any

MOST_FIXED = 2**15 - 1  # the same as in quantize.py, which would import torch


def block_rows(share: float | None, with_zeros: float | None, depth: str | int, more: str = "") -> list[tuple[str, str]]:
    """The rows of a table about computed blocks. There are none for a network that never leaves out blocks.

    share: the share of the pixels whose blocks were computed. with_zeros: mean bits, where pixels without blocks count as 0. depth:
    the depth that was asked for. more: words that are added to both rows.
    """
    if share is None or with_zeros is None:
        return []
    zeros = f"{with_zeros:.2f} (a pixel without blocks counts as 0)"
    return [("blocks", f"{_in_words(share, depth)}{more}"), ("bits with zeros", f"{zeros}{more}")]


def exit_in_words(found: dict[str, Any] | None) -> str:
    """A phrase that says in which tiles a model computes no blocks. found: the entry "exit" of the model's file, with the side and
    the threshold of a tile; None for a model without an exit."""
    if found is None:
        return "none, all blocks are computed everywhere"
    side, levels = found["tile"], found["threshold"]
    return f"those of {side}x{side} pixels that bend by no more than {levels} of 255 levels have no blocks computed"


def residual_in_words(fraction: int | None) -> str:
    """A phrase that says how features that pass the blocks by are stored. fraction: the one in the model's file, None for
    float32."""
    if fraction is None:
        return "float32"
    unit = f"1/{2**fraction}" if fraction > 0 else f"{2**-fraction}"
    return f"int16 in units of {unit}, up to {MOST_FIXED * 2.0**-fraction:.6g}"


def percent(share: float) -> str:
    """A share as "71 %". It is "0 %" or "100 %" only where the share is exactly 0 or 1."""
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
