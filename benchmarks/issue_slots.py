"""Counts the issue slots of the GPU kernels, executed instruction by instruction on this CPU. Needs no GPU.

    python benchmarks/issue_slots.py [--arch 80 86 89 90] [--only WORDS] [--kinds] [--csrc FOLDER]

Needs a C++ compiler, nvcc (or the built CUDA library), and cuobjdump and nvdisasm from CUDA's toolkit or Triton.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import cuda_library  # noqa: E402
from sass import cubin, families, slots  # noqa: E402


def table(chosen: list[families.Family], kinds: bool) -> None:
    print("| layer | warp | issue slots a strip (of a producer: a tile) | latency alone, clocks |")
    print("|---|---|---|---|")
    for family in chosen:
        for role in slots.measure(family):
            print(f"| {family} | {role.name} | {role.slots:.0f} | {role.clocks:.0f} |", flush=True)
            if kinds:
                print(f"| | | {', '.join(f'{kind} {count:.0f}' for kind, count in role.kinds.items())} | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="*", default=["90", "80", "86", "89"], help="architectures, such as 80 and 90")
    parser.add_argument("--only", default="", help="layers whose names have these words")
    parser.add_argument("--kinds", action="store_true", help="slots by kind of instruction too")
    parser.add_argument("--csrc", type=Path, help="another checkout's sources; PYTHONPATH should name its package")
    arguments = parser.parse_args()
    if arguments.csrc:
        cuda_library.CSRC = cubin.CSRC = arguments.csrc.resolve()
    if why := cubin.why_unavailable():
        parser.error(why)
    chosen = [f for f in families.FAMILIES if f.code in arguments.arch and all(word in f.name for word in arguments.only.split())]
    table(chosen, arguments.kinds)


if __name__ == "__main__":
    main()
