"""Chooses how kernels are launched: by measured entries for each architecture and kind of layer, and by a heuristic for all
else."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...files import user_path
from .. import amd, launches, tables

# written by benchmarks/gpu/tune_triton.py; the file is absent until something was measured
TABLE = Path(__file__).with_name("tuning.json")
# The forms of the convolution: a program for each tile, and programs that keep the weights and compute tile after tile
# (persistent.py).
FORMS = TILES, PERSISTENT = "tiles", "persistent"


@dataclass(frozen=True)
class Config:
    """The settings of a launch: the tile of pixels by outputs (or channels), the warps of a block, and the stages of the software
    pipeline.

    form: which of FORMS a convolution takes, where that form can compute the layer. programs: for the form PERSISTENT, the number
    of programs for each multiprocessor; 0 elsewhere.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    form: str = TILES
    programs: int = 0

    def options(self) -> dict[str, Any]:
        """The options as a launch takes them."""
        tile = {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n}
        # The compiler fuses no multiply-add that a kernel does not ask for, so that floats equal the reference's.
        return tile | {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": False}


def shape_class(capability: int | str, channels: int, kernel: int, outputs: int, pixels: int) -> str:
    """The key of a table: the architecture, padded input channels, kernel, and the outputs and pixels of an image, rounded up to
    powers of two.

    capability: 90 for 9.0, "gfx942" for a card of AMD, as launch.capability gives it. Pixels count up to 2^16, because more fill
    any card.
    """
    card = capability if isinstance(capability, str) else f"sm{capability}"
    return f"{card}-c{channels}-k{kernel}-o{_power(outputs)}-p{min(_power(pixels), 2**16)}"


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def conv2d_config(capability: int | str, channels: int, kernel: int, outputs: int, pixels: int) -> Config:
    """The config for a convolution of `channels` padded input channels with a kernel of `kernel` rows to `outputs`, on images of
    `pixels` pixels."""
    if _forced is not None:
        return _forced
    entry = measured().get(shape_class(capability, channels, kernel, outputs, pixels))
    if entry is not None:
        return Config(**entry["config"])
    return heuristic(outputs, pixels, capability)


_forced: Config | None = None


@contextmanager
def always(config: Config) -> Iterator[None]:
    """Inside the block every convolution of the process is launched with this config, whatever the tables say. It is for measuring
    on one thread."""
    global _forced
    before, _forced = _forced, config
    launches.changed()
    try:
        yield
    finally:
        _forced = before
        launches.changed()


def candidates(outputs: int, pixels: int, capability: int | str = 80) -> list[Config]:
    """The configs worth measuring for a convolution to `outputs` on images of `pixels` pixels: the heuristic's first, and then
    others, beginning with those that differ least from it."""
    guess = heuristic(outputs, pixels, capability)
    # with one stage, loads go through the L1 cache
    usual = itertools.product((32, 64, 128, 256), (16, 32, 64, 128), (4, 8), (1, 2, 3, 4))
    kept = itertools.product((64, 128, 256), (32, 64), (4, 8), (1,), (PERSISTENT,), (1, 2, 3, 4))
    found = [Config(*tile) for tile in usual] + [Config(*tile) for tile in kept]
    found = [config for config in found if config.block_n <= max(16, 2 * _power(outputs))]

    def distance(config: Config) -> float:
        sizes = ("block_m", "block_n", "num_warps")
        steps = sum(abs(math.log2(getattr(config, name) / getattr(guess, name))) for name in sizes)
        # The other form with the heuristic's tile is among the first to be tried.
        return steps + (abs(config.num_stages - guess.num_stages) if config.form == TILES else abs(config.programs - 2) / 2)

    return [guess, *sorted((config for config in found if config != guess), key=distance)]


def heuristic(outputs: int, pixels: int, capability: int | str = 80) -> Config:
    """The config for a layer that nobody measured.

    A tile of 128x64 leaves 32 accumulators to a thread and fits more than once on a multiprocessor. Small images are cut into
    smaller tiles, so that more of the card has work.

    Cards of AMD get one stage. The codes of a second stage would wait in registers byte by byte, and it takes several instructions
    a word to put them together again. Workgroups that share a compute unit hide each other's loads there. On RDNA a lane has half
    the accumulators, and a quarter where products have no matrix instructions: with more some forms spill.
    """
    block_n = min(max(16, _power(outputs)), 64)
    large = pixels >= 128 * 128
    if isinstance(capability, int):
        return Config(128, block_n, 8, 3) if large else Config(64, block_n, 4, 3)
    card = amd.ARCHITECTURES[capability]
    block_m = 128 if card.lanes == 64 else 64
    block_n = min(block_n, 32) if card.products == "dot4" else block_n
    return Config(block_m, block_n, 8, 1) if large else Config(block_m // 2, block_n, 4, 1)


def most_registers(capability: int | str, config: Config) -> dict[str, int]:
    """The option that keeps a thread of a convolution to 128 registers, so that sixteen warps have room on a multiprocessor.

    It is given on 9.0 only, where ptxas takes some more registers unless it is told. On other architectures the compiler keeps to
    128 by itself or, from Triton 3.7 on, does not, and would spill a dozen words with this option. It is not given where a thread
    has more than 32 accumulators, because the other values of such a thread would then go through local memory.
    """
    wanted = capability == 90 and config.block_m * config.block_n <= 32 * 32 * config.num_warps
    return {"maxnreg": 128} if wanted else {}


def quantize_config(channels: int) -> Config:
    """The config for a quantisation of `channels` channels, padded to a multiple of 16."""
    block_n = min(_power(channels), 64)
    return Config(2048 // block_n, block_n, 4, 1)


def user_table() -> Path:
    """The file of what this user measured, which takes precedence over the table of the package."""
    return user_path("tuning.json")


@functools.cache
def measured() -> tables.Entries:
    """All entries: {shape class: {"config": {...}, and where it comes from}}. A table that cannot be read counts as empty."""
    return read_table(TABLE) | read_table(user_table())


def read_table(path: Path) -> tables.Entries:
    """The entries of a table whose configs are complete. It is {} for a file that does not exist or is no table."""
    return tables.read(path, _whole)


def write_entries(path: Path, entries: dict[str, tuple[Config, dict[str, Any]]]) -> None:
    """Adds entries, {shape class: (config, where it comes from)}, to a table (tables.add). Later calls use them."""
    tables.add(path, {key: {"config": asdict(config), **source} for key, (config, source) in entries.items()}, _whole)
    measured.cache_clear()
    launches.changed()


def _whole(entry: dict[str, Any]) -> bool:
    config = dict(entry["config"])
    form, programs = config.pop("form", TILES), config.pop("programs", 0)  # tables from before there were two forms have neither
    if form not in FORMS or type(programs) is not int or (programs > 0) != (form == PERSISTENT):
        return False
    names = set(Config.__dataclass_fields__) - {"form", "programs"}
    return set(config) == names and all(type(number) is int and number > 0 for number in config.values())
