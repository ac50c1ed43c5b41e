"""The plan of the CPU kernels as a table."""

from __future__ import annotations

import math

from ..networks.collapse import SMALLEST
from ..planning.tiles import tile_products
from ..quantize import MIN_BITS
from .conv import IntegerConv2d
from .timing import conv_seconds


def plan_rows(convs: list[IntegerConv2d], measure: int = 0) -> list[dict[str, str]]:
    """The rows of `ConvertedNetwork.plan`, each {column name: cell}: one for each convolution and each bit-width of its codes."""
    if isinstance(measure, bool) or not isinstance(measure, int) or (measure != 0 and measure < SMALLEST):
        raise ValueError(f"plan: measure must be 0 or a side of at least {SMALLEST} pixels, got {measure!r}")
    rows, known = [], {}
    for conv in convs:
        plan, shape = conv.plan, tuple(conv.weight.shape)
        for bits in range(conv.bit_range[0], conv.bit_range[1] + 1):
            i = bits - MIN_BITS
            split = plan.products_for_bits[i] / tile_products(plan.tile[i], *shape[-3:-1])
            rows.append(
                {
                    "layer": conv.name,
                    "bits": f"{bits}",
                    "tile": plan.tile[i],
                    "parts": f"{split:.2f}",
                    "products": f"{plan.products_for_bits[i]:.2f}",
                    f"predicted ns ({plan.isa})": f"{plan.picoseconds[i] / 1e3:.1f}",
                }
            )
            if measure:
                key = (shape, conv.geometry_numbers, plan.tile[i], plan.products_for_bits[i], conv.box_filter, bits)
                if key not in known:
                    known[key] = _measured(conv, bits, measure)
                outputs = math.prod(conv.out_size(measure, measure)) // conv.shuffle**2
                rows[-1]["measured ns"] = f"{known[key] / outputs * 1e9:.1f}"
            rows[-1]["why direct"] = plan.why_direct[i]
    return rows


def _measured(conv: IntegerConv2d, bits: int, side: int) -> float:
    threads, conv.threads = conv.threads, 1
    try:
        return conv_seconds(conv, bits, side)
    finally:
        conv.threads = threads


def format_plan(rows: list[dict[str, str]]) -> str:
    """The rows of a plan as a table: a heading first, cells padded to the width of their columns."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
