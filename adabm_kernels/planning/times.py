"""Measured times of the tiles on an instruction set, by which the planner chooses. The data are in assets/tile_times.json or, for
this machine alone, in the file that `adabm bench --tune` writes.

    time of an output pixel = products * product * C * L + entry * C + leave * K + box * C        (box: with a box filter)

The time is in picoseconds on one thread, for C channels to K outputs in L lanes; `products` per output and channel are those of
LayerPlan.
"""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import alone, parse_json, user_path, write_file
from ..machine import cpu_name, version

FORMAT = 1
SHIPPED = Path(__file__).parents[1] / "assets" / "tile_times.json"
# How products are summed (exact.Sums). It matters to AVX2's kernels only.
KINDS = ("whole", "few", "pairs", "widened")
FEW = 4  # the sums of a run in the layers that the kind "few" stands for
KINDS_OF_ISA = {"avx2": KINDS}
# The instruction set whose times are used for one that has none of its own.
STAND_INS = ("avx512vnni", "avx2")


@dataclass(frozen=True)
class Cost:
    """The terms of the formula above, in picoseconds."""

    product: float
    entry: float
    leave: float

    def time(self, products: float, channels: int, lanes: float, outputs: int) -> float:
        return products * self.product * channels * lanes + self.entry * channels + self.leave * outputs


@dataclass(frozen=True)
class TileTimes:
    """The times of one instruction set.

    isa: the instruction set measured. costs: by tile and kind of sums (one of KINDS). measured: where and when, in words.
    """

    isa: str
    costs: Mapping[str, Mapping[str, Cost]]
    box: float
    measured: Mapping[str, str]

    def time(
        self, tile: str, kind: str, products: float, channels: int, outputs: int, box_filter: bool, lanes: float | None = None
    ) -> float:
        """Picoseconds of an output pixel on one thread. A kind that was not measured counts as the nearest one that was.

        lanes: how many are multiplied for the outputs, idle ones included; None where no lane is idle.
        """
        kinds = self.costs[tile]
        cost = kinds[min(kinds, key=lambda measured: abs(KINDS.index(measured) - KINDS.index(kind)))]
        box = self.box * channels if box_filter else 0.0
        return cost.time(products, channels, lanes or outputs, outputs) + box


def own_path() -> Path:
    """The file of this machine's own times: adabm_kernels/tile_times.json in XDG_CACHE_HOME, or in ~/.cache."""
    return user_path("tile_times.json")


def tile_times(isa: str) -> TileTimes:
    """The times to plan with: this machine's own where they were measured with this version, else the shipped ones, and those of
    another instruction set where this one has none."""
    for name in (isa, *STAND_INS):
        table = _own(own_path(), name) or _shipped().get(name)
        if table is not None:
            return table
    raise AssertionError(f"no tile times for {isa} in {SHIPPED}")


def forget() -> None:
    """Makes the next use read the files again."""
    _own.cache_clear()


def save(path: Path, tables: Mapping[str, TileTimes]) -> None:
    """Writes times to a file. Each instruction set's times replace those that the file held of it. The file changes as a whole or
    not at all, and a file that holds no times is replaced.

    Raises OSError naming the path where it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone(path.parent):  # so that of processes that write at once each keeps what the others have written
        try:
            held = {**read(path), **tables}
        except ValueError:
            held = dict(tables)
        text = {
            "format": FORMAT,
            "unit": "ps",
            "isas": {
                name: {
                    "measured": dict(table.measured),
                    "box": round(table.box, 3),
                    "tiles": {
                        tile: {kind: [round(v, 4) for v in (c.product, c.entry, c.leave)] for kind, c in kinds.items()}
                        for tile, kinds in table.costs.items()
                    },
                }
                for name, table in sorted(held.items())
            },
        }
        write_file(path, f"{json.dumps(text, indent=1)}\n".encode())
    forget()


def read(path: Path) -> dict[str, TileTimes]:
    """The times in a file, by instruction set. Raises ValueError naming the file and what is wrong with it."""
    try:
        text = parse_json(path.read_text())
        if text["format"] != FORMAT:
            raise ValueError(f"format {text['format']!r}, not {FORMAT}")
        return {name: _table(name, entry) for name, entry in text["isas"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"'{path}' holds no tile times: {error}") from error


def _table(isa: str, entry: dict[str, Any]) -> TileTimes:
    costs = {tile: {kind: Cost(*map(float, terms)) for kind, terms in kinds.items()} for tile, kinds in entry["tiles"].items()}
    if not all(kinds and set(kinds) <= set(KINDS) for kinds in costs.values()):
        raise ValueError(f"{isa} has kinds of sums beyond {', '.join(KINDS)}")
    if not all(0 <= term < math.inf for kinds in costs.values() for cost in kinds.values() for term in vars(cost).values()):
        raise ValueError(f"{isa} has times that are negative or not finite")
    box = float(entry["box"])
    if not 0 <= box < math.inf:
        raise ValueError(f"{isa} has a time of the box filter that is negative or not finite, {box}")
    return TileTimes(isa, costs, box, {key: str(value) for key, value in entry["measured"].items()})


def provenance() -> dict[str, str]:
    """The machine and version to be stored with times that are measured now."""
    return {"cpu": cpu_name(), "version": version("adabm-kernels")}


@functools.cache
def _shipped() -> dict[str, TileTimes]:
    return read(SHIPPED)


@functools.cache
def _own(path: Path, isa: str) -> TileTimes | None:
    """This machine's own times of an instruction set. They are None, after a warning, where another machine or version measured
    them."""
    if not path.exists():
        return None
    here = provenance()
    try:
        table = read(path).get(isa)
        if table is not None:
            there = {key: table.measured.get(key, "unknown") for key in here}
            if there != here:
                raise ValueError(f"'{path}' was measured on {there['cpu']}, version {there['version']}")
            if set(table.costs) != set().union(*(known.costs for known in _shipped().values())):
                raise ValueError(f"'{path}' has other tiles than this version")
    except ValueError as error:
        warnings.warn(f"adabm_kernels plans with the times it ships: {error} (adabm bench --tune measures anew)", stacklevel=2)
        return None
    return table
