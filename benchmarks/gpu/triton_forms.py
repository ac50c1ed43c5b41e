"""What the Triton kernels take and spend, counted from machine code for each architecture. Needs no GPU; nothing was measured.

    python benchmarks/gpu/triton_forms.py [--arch 90 80] [--forms body residual] [--json FILE]

For every form of the convolution in tests/helpers/triton_compiled.py: registers of a thread, shared memory of a block and blocks
that fit on a multiprocessor; then what a tile spends at most (triton_paths.py beside it), by the bits that codes are stored in:
barriers, and bytes to and from shared memory. --json keeps what was built, and builds nothing that FILE has already.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

import triton_compiled  # noqa: E402

Facts = dict[str, Any]


def facts(name: str, capability: int) -> Facts:
    """The facts of a form, which is built here and now."""
    built = triton_compiled.compile_kernel(name, capability)
    tiles = {str(stored): [tile.barriers, tile.shared_bytes, tile.instructions] for stored, tile in built.tiles.items()}
    found = {key: getattr(built, key) for key in ("triton", "registers", "stack", "shared", "warps", "blocks")}
    return found | {"tiles": tiles, "operations": built.operations}


def build(forms: list[str], capabilities: list[int], kept: Path | None) -> dict[str, Facts]:
    """The facts by names such as "body 90". Two builds run at a time."""
    found = json.loads(kept.read_text()) if kept and kept.exists() else {}
    missing = [(form, capability) for capability in capabilities for form in forms if f"{form} {capability}" not in found]
    cache = tempfile.TemporaryDirectory()
    context = multiprocessing.get_context("spawn")
    with cache, ProcessPoolExecutor(2, context, triton_compiled.use_triton, (None, cache.name)) as pool:
        under_way = {pool.submit(facts, *pair): pair for pair in missing}
        for future in as_completed(under_way):
            form, capability = under_way[future]
            found[f"{form} {capability}"] = future.result()
            if kept:
                kept.write_text(json.dumps(found))
    return found


def table(found: dict[str, Facts], forms: list[str], capabilities: list[int], cell: Callable[[Facts], str]) -> None:
    print(f"| form | {' | '.join(f'sm_{capability}' for capability in capabilities)} |")
    print(f"|---|{'---|' * len(capabilities)}")
    for form in forms:
        cells = [cell(found[f"{form} {c}"]) if f"{form} {c}" in found else "" for c in capabilities]
        print(f"| `{form}` | {' | '.join(cells)} |")


def spent(one: Facts, stored: str) -> str:
    """Barriers, and KiB through shared memory, of a tile whose codes are stored in so many bits."""
    if stored not in one["tiles"]:
        return ""
    barriers, shared_bytes, _ = one["tiles"][stored]
    return f"{barriers}, {shared_bytes / 1024:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="*", type=int, default=list(triton_compiled.MULTIPROCESSORS), help="such as 80 and 90")
    parser.add_argument("--forms", nargs="*", default=list(triton_compiled.CONV2D), help="of tests/helpers/triton_compiled.py")
    parser.add_argument("--json", type=Path, help="where what was built is kept")
    options = parser.parse_args()
    found = build(options.forms, options.arch, options.json)
    versions = {one["triton"] for one in found.values()}
    print(f"Triton {', '.join(sorted(versions))}. Registers of a thread, KiB of shared memory, blocks on a multiprocessor:\n")
    table(found, options.forms, options.arch, lambda one: f"{one['registers']}, {one['shared'] / 1024:.0f}, **{one['blocks']}**")
    for stored in ("8", "4", "2"):
        print(f"\nCodes stored in {stored} bits: barriers and KiB to and from shared memory, a tile:\n")
        table(found, options.forms, options.arch, lambda one, stored=stored: spent(one, stored))


if __name__ == "__main__":
    main()
