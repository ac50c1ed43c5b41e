"""Counts what the GPU kernels spend, by executing their machine code on this CPU. Needs no GPU; nothing here was measured on one.

    python benchmarks/gpu/issue_slots.py [--arch 90 80 86 89] [--only WORDS] [--kinds] [--network] [--no-table]

For a strip of 128 pixels by 64 outputs inside an image: issue slots of a warp, which are clocks of its scheduler; clocks of the
tensor cores; and clocks of a multiprocessor's share of the card's memory, at the rates of adabm_kernels/backends/rates.py. The
largest of the three is the bound. Beside it stands how long the slowest warp would take alone: where that is more, too few warps
are there to hide what each waits for. --network: the same in the mean over 512x512 pixels, and EDSR-baseline x4 of as many on an
H200, estimated from the counts, with features in float32 and in int16.

Needs a C++ compiler, nvcc (or the built CUDA library), and cuobjdump and nvdisasm from CUDA's toolkit or Triton.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from sass import bounds, cubin, families, slots  # noqa: E402
from sass.families import Family  # noqa: E402

from adabm_kernels.backends.rates import Rates, rates  # noqa: E402
from adabm_kernels.quantize import storage_bits  # noqa: E402

STRIP = 128  # pixels of a strip


def pixel_bytes(family: Family) -> float:
    """The bytes that one pixel moves from and to memory once: codes in and out, and features in and out, float32 or int16. Weights
    and tables are left out."""
    problem = family.problem
    stored = storage_bits(problem.bits[0]) if family.packed else 8
    stored_out = storage_bits(problem.out_bits[0]) if family.packed else 8
    features = (4 if family.fraction is None else 2) * problem.outputs
    found = problem.channels * stored / 8
    found += features * (problem.residual or family.block) + features * ("y" in family.outputs)
    return found + problem.outputs * (stored_out / 8 * ("q" in family.outputs) + ("i" in family.outputs))


@dataclass(frozen=True)
class Strip:
    """Clocks of a multiprocessor for one strip of results. Where a warpgroup has more than one strip to do, they are an equal share
    of the tile's clocks.

    issue: for issuing instructions. tensor: for the tensor cores. memory: for the share of the card's memory. alone: the clocks
    that the slowest warp takes for its part where nothing else runs.
    """

    issue: float
    tensor: float
    memory: float
    alone: float

    @property
    def bound(self) -> str:
        return max(("issue", "tensor", "memory"), key=lambda name: getattr(self, name))


# The number of blocks of the kernels of 8.x that run side by side on a multiprocessor: their registers allow four
# (docs/gpu_cuda.md).
BLOCKS_SM80 = 4


def strip_of(family: Family, found: dict[str, slots.Role], row: Rates) -> Strip:
    """The clocks of a strip. Every scheduler has a warp of each warpgroup, so that the issue slots of these warps add up."""
    strips = sum(role.strips for role in found.values() if not role.name.startswith("first"))
    issue = sum(role.slots for role in found.values()) / strips
    # Four warps of a warpgroup, or of a block, share a multiprocessor's tensor cores.
    rate = row.int8 if family.on_wgmma else row.mma_sync
    tensor = 4 * sum(role.macs for role in found.values()) / rate / strips
    alone = max(role.clocks for role in found.values()) / strips / (1 if family.on_wgmma else BLOCKS_SM80)
    return Strip(issue, tensor, pixel_bytes(family) * pixels_of(family) / row.memory_bytes, alone)


def pixels_of(family: Family) -> float:
    """The results of a strip. There are fewer where neighbouring tiles of a residual block compute the same pixels."""
    rows, columns = family.tile
    return rows * columns / (-(-columns // 8)) if family.on_wgmma else STRIP


def table(chosen: list[Family], kinds: bool) -> None:
    print("| layer | warp | issue slots | at most, aim | alone | issue | tensor | memory | bound |")
    print("|---|---|---|---|---|---|---|---|---|")
    for family in chosen:
        found = {role.name: role for role in slots.measure(family)}
        strip = strip_of(family, found, rates(int(family.code)))
        for role in found.values():
            bound = bounds.BOUNDS.get(family.name, {}).get(role.name)
            limits = f"{bound.slots}, {bound.aim or '-'}" if bound else ""
            figures = f"{role.slots / role.share:.0f} | {limits} | {role.clocks / role.share:.0f}"
            print(f"| {family} | {role.name}, a {'strip' if role.strips else 'tile'} | {figures} | | | | |")
            if kinds:
                print(f"| | {', '.join(f'{kind} {n / role.share:.0f}' for kind, n in role.kinds.items())} | | | | | | | |")
        clocks = f"{strip.alone:.0f} | {strip.issue:.0f} | {strip.tensor:.0f} | {strip.memory:.0f}"
        print(f"| {family} | **all, a strip** | | | {clocks} | {strip.bound} |", flush=True)


# The layers of EDSR-baseline x4 as it runs on 9.0, by how its features are stored (recipe "best" stores them in 16 bits): the
# family of each layer, and how often it occurs. The tail is the collapsed upsampler, here with one kernel for all pixels and with
# floats as its output.
TAIL = ("sm_90 staged, 5x5 to the image", 1)
NETWORKS = {
    "float32": [
        ("sm_80 code on 9.0, head", 1),
        ("sm_90 residual block", 16),
        ("sm_90 residual, floats and codes", 1),
        TAIL,
    ],
    "int16": [
        ("sm_80 code on 9.0, head to 16-bit features", 1),
        ("sm_90 residual block, 16-bit features", 16),
        ("sm_90 residual, 16-bit features and codes", 1),
        TAIL,
    ],
}


def over_images(side: int = 512) -> None:
    """Prints the instructions that a warp of each role executes for a strip, as a mean over an image, borders included."""
    print(f"| over an image of {side}x{side} | warp | strips | issue slots of all | a strip or tile | at most, aim |")
    print("|---|---|---|---|---|---|")
    for family in families.FAMILIES:
        if family.name not in bounds.OVER_IMAGE:
            continue
        for role in slots.over_image(family, side, side).values():
            bound = bounds.OVER_IMAGE[family.name].get(role.name)
            limits = f"{bound.slots}, {bound.aim or '-'}" if bound else ""
            share = role.slots / (role.strips or tiles_of(family, side))
            print(f"| {family} | {role.name} | {role.strips or '-'} | {role.slots} | {share:.0f} | {limits} |", flush=True)


def tiles_of(family: Family, side: int) -> int:
    return -(-side // family.tile[0]) * -(-side // family.tile[1])


def networks(side: int = 512) -> None:
    row = rates(90)
    print(
        f"EDSR-baseline x4, one image of {side}x{side}, {row.card}: {row.multiprocessors} multiprocessors at {row.gigahertz} GHz,"
    )
    print(
        f"{row.memory / 1e12} TB/s. A layer takes rounds x clocks a tile / clock rate, clocks a tile being strips x the larger of"
    )
    print("issue and tensor; but at least bytes / memory rate. alone: the same with what the slowest warp takes for a tile alone.")
    print("Left out: launches, the first tile of each block, caches, bank conflicts.")
    for features, layers in NETWORKS.items():
        network(features, layers, side, row)


def network(features: str, layers: list[tuple[str, int]], side: int, row: Rates) -> None:
    """Prints the milliseconds of one image, by layer. A multiprocessor takes tile after tile, so that only whole rounds of tiles
    occur."""
    total, alone, sums = 0.0, 0.0, []
    print(f"\nFeatures of {features}:\n")
    print(
        "| layer | times | tiles, rounds | strips a tile | issue | tensor | clocks a tile | bytes a pixel | us | bound | us alone |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, times in layers:
        family = next(family for family in families.FAMILIES if family.name == name)
        found = {role.name: role for role in slots.measure(family)}
        strip = strip_of(family, found, row)
        strips = -(-family.tile[1] // 8) if family.on_wgmma else 1
        tiles = tiles_of(family, side)
        # A block of the kernels of 8.x ends with its tile, and several run side by side, so that rounds need not be whole.
        rounds = -(-tiles // row.multiprocessors) if family.on_wgmma else tiles / row.multiprocessors
        clocks = strips * max(strip.issue, strip.tensor)
        compute, memory = rounds * clocks / row.gigahertz / 1e3, pixel_bytes(family) * side**2 / row.memory * 1e6
        microseconds = max(compute, memory)
        waiting = max(microseconds, rounds * strips * strip.alone / row.gigahertz / 1e3)
        bound = "memory" if memory > compute else "issue" if strip.issue > strip.tensor else "tensor"
        total, alone = total + times * microseconds, alone + times * waiting
        counts = f"{tiles}, {rounds:.4g} | {strips} | {strip.issue:.0f} | {strip.tensor:.0f} | {clocks:.0f}"
        figures = f"{pixel_bytes(family):.0f} | {microseconds:.1f} | {bound} | {waiting:.1f}"
        sums.append(f"{times} x {microseconds:.1f}")
        print(f"| {name} | {times} | {counts} | {figures} |", flush=True)
    print(
        f"\nTogether {' + '.join(sums)} us = {total / 1e3:.2f} ms by slots, tensor clocks and bytes; {alone / 1e3:.2f} ms where no"
        " waiting is hidden."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="*", default=["90", "80", "86", "89"], help="architectures, such as 80 and 90")
    parser.add_argument("--only", default="", help="layers whose names have these words")
    parser.add_argument("--kinds", action="store_true", help="slots by kind of instruction too")
    parser.add_argument("--network", action="store_true", help="estimate EDSR-baseline x4 on an H200")
    parser.add_argument("--no-table", action="store_true", help="nothing but the estimate")
    arguments = parser.parse_args()
    if why := cubin.why_unavailable():
        parser.error(why)
    if not arguments.no_table:
        words = arguments.only.split()
        table([f for f in families.FAMILIES if f.code in arguments.arch and all(word in f.name for word in words)], arguments.kinds)
    if arguments.network:
        print()
        over_images()
        print()
        networks()


if __name__ == "__main__":
    main()
