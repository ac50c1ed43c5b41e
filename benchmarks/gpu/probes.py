"""Questions to a card that no text answers for sure, and rates that kernels are measured against: probe_wgmma.cu and probe_mma.cu.

    python benchmarks/gpu/probes.py --build     # build/on_card/libadabm_probe.so, where nvcc is; needs no card
    python benchmarks/gpu/probes.py             # asks the card: a line of JSON for each answer, status 1 where products are wrong

On compute capability 9.0: are products right whose matrix in shared memory begins at any 16 bytes (one unit on for each tap of a
kernel), or whose left matrix repeats by strides of 0, and how many clocks does each take (64 at the peak); and how long does a
thread wait at fence.proxy.async behind its copies. On every card from 8.0 on: products of a warp, 8-bit and 4-bit, a second.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from ctypes import POINTER, Structure, c_int32, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from card_memory import Card
from golden_run import Memory

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIBRARY = ROOT / "build" / "on_card" / "libadabm_probe.so"
CSRC = ROOT / "csrc"
FLAGS = [
    "-std=c++17",
    "-O2",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-Xptxas=--warn-on-spills,--warning-as-error",
    *(f"-I{path}" for path in (CSRC, CSRC / "include", HERE)),
]
# The same architectures as the CUDA library: machine code for these, and PTX of the last one for newer cards.
TARGETS = [
    *(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in (80, 86, 89, 90)),
    "-gencode=arch=compute_90,code=compute_90",
]
SOURCES = {
    HERE / "probe_wgmma.cu": ["-gencode=arch=compute_90a,code=sm_90a"],
    HERE / "probe_mma.cu": TARGETS,
    CSRC / "cuda" / "device.cu": TARGETS,
    CSRC / "common" / "status.cpp": TARGETS,
}
# A tile of 34 pixels a row and 18 rows, as in conv2d_sm90: 16 bytes of a pixel lie together, in planes of 16 channels. A matrix
# that starts further on still lies inside.
TILE_COLUMNS, TILE_ROWS, UNITS = 34, 18, 9
HALF_BYTES, GROUP_BYTES = (TILE_COLUMNS * TILE_ROWS + 6) * 16, TILE_COLUMNS * 16
RIGHT_BYTES = 2 * HALF_BYTES
ROWS, COLUMNS, DEPTH, PRODUCTS_OF_ROUND = 64, 128, 32, 16
ROUNDS, PEAK_ROUNDS = 200, 100_000
WARP_PRODUCTS_OF_ROUND = 4 * 8  # products of each block in a round


class Products(Structure):
    """The struct adabm_probe_products of probe.h."""

    _fields_ = [
        *((name, c_int32) for name in ("shared_left", "zero_strides", "unit", "half_bytes", "group_bytes")),
        *((name, c_int32) for name in ("warpgroups", "rounds", "blocks", "right_bytes")),
        *((name, c_void_p) for name in ("right", "left", "sums", "clocks")),
    ]


class Copies(Structure):
    """The struct adabm_probe_copies of probe.h."""

    _fields_ = [*((name, c_int32) for name in ("copies", "fence", "rounds", "blocks")), ("source", c_void_p), ("clocks", c_void_p)]


class WarpProducts(Structure):
    """The struct adabm_probe_warp_products of probe.h."""

    _fields_ = [*((name, c_int32) for name in ("bits", "rounds", "blocks")), ("sums", c_void_p)]


ENTRIES = {
    "adabm_probe_products_cuda": Products,
    "adabm_probe_copies_cuda": Copies,
    "adabm_probe_warp_products_cuda": WarpProducts,
}


class Library:
    """The library of the probes. `call` raises RuntimeError with the library's message."""

    def __init__(self, path: Path = LIBRARY):
        self._dll = ctypes.CDLL(str(path))
        self._dll.adabm_last_error.restype = ctypes.c_char_p
        for name, struct in ENTRIES.items():
            getattr(self._dll, name).argtypes = [POINTER(struct)]

    def call(self, name: str, args: Structure) -> None:
        if getattr(self._dll, name)(args):
            raise RuntimeError(f"{name}: {self._dll.adabm_last_error().decode()}")


def build(target: Path = LIBRARY) -> None:
    """Builds the library. Raises RuntimeError where there is no nvcc, or with the words of nvcc where it fails."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError("probes: needs nvcc on PATH, from CUDA's toolkit")

    def run(*command: str) -> None:
        done = subprocess.run([nvcc, *command], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"probes: nvcc failed: {done.stdout}{done.stderr}")

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder) / f"{source.stem}.o") for source in SOURCES]
        for (source, targets), made in zip(SOURCES.items(), objects, strict=True):
            run(*FLAGS, *targets, "-x", "cu", "-c", str(source), "-o", made)
        run("-shared", "-o", str(target), *objects)


def wanted(right: np.ndarray, left: np.ndarray, unit: int, zero_strides: bool) -> np.ndarray:
    """int32 [64, 128]: the product of the matrices that the descriptors mean, times PRODUCTS_OF_ROUND.

    right: uint8 [RIGHT_BYTES]. left: int8 [2, 64, 16], of which the first 8 rows stand for all where strides are 0.
    """
    half, column, depth = np.meshgrid(np.arange(2), np.arange(COLUMNS), np.arange(16), indexing="ij")
    b = right[unit * 16 + half * HALF_BYTES + column // 8 * GROUP_BYTES + column % 8 * 16 + depth].astype(np.int32)
    a = np.tile(left[0, :8], (2, ROWS // 8, 1)) if zero_strides else left
    return PRODUCTS_OF_ROUND * np.einsum("hmk,hnk->mn", a.astype(np.int32), b)


def ask_descriptors(
    library: Library, memory: Memory, multiprocessors: int, shared_left: int, zero_strides: int, rounds: int = ROUNDS
) -> Iterator[dict[str, Any]]:
    """Yields an answer for each unit at which the right matrix can begin: whether the sums are right, and the clocks of a product
    with one and with two warpgroups a multiprocessor. shared_left, zero_strides: the same as in probe.h."""
    generator = np.random.default_rng(0)
    right = generator.integers(0, 256, RIGHT_BYTES, dtype=np.uint8)
    left = generator.integers(-128, 128, (2, ROWS, 16), dtype=np.int8)
    sums, clocks = np.zeros((ROWS, COLUMNS), np.int32), np.zeros(2, np.int64)
    pointers = {"right": memory.upload(right), "left": memory.upload(left)}
    pointers |= {"sums": memory.upload(sums, writable=True), "clocks": memory.upload(clocks, writable=True)}
    common = {"half_bytes": HALF_BYTES, "group_bytes": GROUP_BYTES, "right_bytes": RIGHT_BYTES} | pointers
    for unit in range(UNITS):
        where = {"shared_left": shared_left, "zero_strides": zero_strides, "unit": unit}
        library.call("adabm_probe_products_cuda", Products(**common, **where, warpgroups=1, rounds=1, blocks=1))
        memory.synchronise()
        wrong = memory.download(pointers["sums"], sums) != wanted(right, left, unit, bool(zero_strides))
        answer: dict[str, Any] = {"question": "descriptors", **where, "wrong": int(wrong.sum()), "of": wrong.size}
        for warpgroups in (1, 2):
            many = Products(**common, **where, warpgroups=warpgroups, rounds=rounds, blocks=multiprocessors)
            library.call("adabm_probe_products_cuda", many)
            memory.synchronise()
            took = memory.download(pointers["clocks"], clocks)[:warpgroups].max()
            answer[f"clocks_{warpgroups}_warpgroups"] = round(int(took) / (rounds * PRODUCTS_OF_ROUND * warpgroups), 2)
        yield answer


def ask_fence(library: Library, memory: Memory, multiprocessors: int, rounds: int = ROUNDS) -> Iterator[dict[str, Any]]:
    """Yields the clocks of a round of copies by 128 threads, with the proxy fence and without: for no copies, for 1, for 5, and for
    the 20 of a tile."""
    source, clocks = memory.upload(np.zeros(20 * 2048, np.uint8)), np.zeros(1, np.int64)
    place = memory.upload(clocks, writable=True)
    for copies in (0, 1, 5, 20):
        answer: dict[str, Any] = {"question": "fence", "copies": copies}
        for fence in (0, 1):
            args = Copies(copies=copies, fence=fence, rounds=rounds, blocks=multiprocessors, source=source, clocks=place)
            library.call("adabm_probe_copies_cuda", args)
            memory.synchronise()
            answer["clocks_with_fence" if fence else "clocks"] = round(int(memory.download(place, clocks)[0]) / rounds, 1)
        yield answer


def seconds(library: Library, memory: Memory, entry: str, args: Structure) -> float:
    """The seconds of a launch and the wait for it: the best of three, after one that does not count."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        library.call(entry, args)
        memory.synchronise()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def ask_rates(
    library: Library, memory: Memory, multiprocessors: int, major: int, rounds: int = PEAK_ROUNDS
) -> Iterator[dict[str, Any]]:
    """Yields the multiply-accumulates a second of the whole card: products of a warp at each width, and those of a warpgroup on
    9.0."""
    sums = memory.upload(np.zeros(ROWS * COLUMNS, np.int32), writable=True)
    blocks = 4 * multiprocessors
    for bits in (8, 4):
        # From 9.0 on, products of 4 bits are a call that unpacks them. They are slow, and no kernel uses them there.
        shorter = rounds if bits == 8 or major == 8 else max(1, rounds // 20)
        args = WarpProducts(bits=bits, rounds=shorter, blocks=blocks, sums=sums)
        took = seconds(library, memory, "adabm_probe_warp_products_cuda", args)
        macs = 16 * 8 * (DEPTH * 8 // bits) * WARP_PRODUCTS_OF_ROUND * shorter * blocks
        yield {"question": "rate", "products": f"mma {bits} bits", "seconds": took, "macs_per_second": macs / took}
    if major != 9:
        return
    random = np.random.default_rng(0)
    right, left = random.integers(0, 256, RIGHT_BYTES, dtype=np.uint8), random.integers(-128, 128, (2, ROWS, 16), dtype=np.int8)
    pointers = {"right": memory.upload(right), "left": memory.upload(left), "sums": sums}
    pointers["clocks"] = memory.upload(np.zeros(2, np.int64), writable=True)
    common = {"half_bytes": HALF_BYTES, "group_bytes": GROUP_BYTES, "right_bytes": RIGHT_BYTES} | pointers
    args = Products(**common, warpgroups=2, rounds=rounds // 10, blocks=multiprocessors)
    took = seconds(library, memory, "adabm_probe_products_cuda", args)
    macs = ROWS * COLUMNS * DEPTH * PRODUCTS_OF_ROUND * 2 * (rounds // 10) * multiprocessors
    yield {"question": "rate", "products": "wgmma 8 bits", "seconds": took, "macs_per_second": macs / took}


def ask(library: Library, card: Card) -> Iterator[dict[str, Any]]:
    multiprocessors, major = card.attribute("multiprocessors"), card.attribute("major")
    if major == 9:
        for shared_left in (0, 1):
            yield from ask_descriptors(library, card, multiprocessors, shared_left, 0)
        yield from ask_fence(library, card, multiprocessors)
    yield from ask_rates(library, card, multiprocessors, major)
    if major == 9:  # this comes last, because a card may fail on strides of 0
        yield from ask_descriptors(library, card, multiprocessors, 1, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", action="store_true", help="build the library, and ask nothing")
    if parser.parse_args().build:
        build()
        print(f"built: {LIBRARY.relative_to(ROOT)}")
        return 0
    wrong = 0
    for answer in ask(Library(), Card()):
        wrong += 0 if answer.get("zero_strides") else answer.get("wrong", 0)  # no kernel uses strides of 0
        print(json.dumps(answer), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
