"""Measured times of convolutions on cards by both GPU backends, which take precedence over what is counted.
benchmarks/gpu/tune_choice.py measures them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from ..files import user_path
from . import tables
from .counted import WORK, ConvShape

TABLE = Path(__file__).with_name("gpu_times.json")  # the file is absent until something was measured
SOURCE = ("card", "date")  # fields in which an entry must say where it comes from


def user_table() -> Path:
    """The file of what this user measured, which takes precedence over the table of the package."""
    return user_path("gpu_times.json")


def key(capability: int, shape: ConvShape, stored: int) -> str:
    """The key of an entry: the architecture, the layer, and how many bits each code of its images is stored in (8, 4 or 2)."""
    flags = "-w4" * shape.four_bits + "-ones" * shape.ones + "-borders" * shape.border_kernels
    kernel = f"k{shape.kernel_h}x{shape.kernel_w}"
    return f"sm{capability}-c{shape.channels}-{kernel}-o{shape.outputs}-r{shape.shuffle}{flags}-s{stored}"


@functools.cache
def measured() -> tables.Entries:
    """All entries: {key: {"us": {backend: microseconds}, and where it comes from}}."""
    return tables.read(TABLE, _whole) | tables.read(user_table(), _whole)


def write_entries(path: Path, entries: tables.Entries) -> None:
    """Adds entries of this form to a table (tables.add). Raises ValueError for one that lacks a time or its source."""
    for name, entry in entries.items():
        if not _whole(entry):
            raise ValueError(f"write_entries: {name} must have us by {', '.join(WORK)}, and {' and '.join(SOURCE)}, got {entry!r}")
    tables.add(path, entries, _whole)
    measured.cache_clear()


def _whole(entry: dict[str, Any]) -> bool:
    times = entry["us"]
    return set(times) == set(WORK) and all(float(us) > 0 for us in times.values()) and all(name in entry for name in SOURCE)


def times(capability: int, shape: ConvShape) -> tuple[dict[str, float], str] | None:
    """Two values: {backend: microseconds, the mean over the bit-widths of its codes}, and the card and date. None where one of the
    bit-widths has no entry."""
    from ..quantize import storage_bits

    low, high = shape.bits
    keys = [key(capability, shape, storage_bits(bits)) for bits in range(low, high + 1)]
    if not all(name in measured() for name in keys):
        return None
    entries = [measured()[name] for name in keys]
    means = {backend: sum(entry["us"][backend] for entry in entries) / len(entries) for backend in WORK}
    return means, "; ".join(sorted({f"{entry['card']}, {entry['date']}" for entry in entries}))
