"""Depthwise, strided, grouped and dilated convolutions beside PyTorch float32, in turns, as the table of docs/performance.md.

python benchmarks/cpu/geometries.py [--seconds 8] [--isa NAME]

On one thread, in its processor time, to which other programs do not add, and the least of all turns, since they do push data out of
the caches. Each turn makes several calls of one case, so that all find their own data there as after the layer before. Integers
give the codes of the next layer after a ReLU, PyTorch the floats after one, in both layouts, of which the faster counts. Integers
are held to the reference first.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests" / "helpers")]

from problems import ConvProblem, instantiate  # noqa: E402
from turns import in_turns  # noqa: E402

from adabm_kernels import native  # noqa: E402
from adabm_kernels.quantize import Geometry  # noqa: E402

CALLS = 8  # calls of a case in each turn


def depthwise(channels: int, size: int, **more: Any) -> ConvProblem:
    geometry = Geometry(groups=channels, padding=(1, 1), **more)
    return ConvProblem("depthwise", size, size, channels, channels, weight_bits=7, bits=(8,), activation="relu", geometry=geometry)


def dense(name: str, channels: int, size: int, geometry: Geometry, **more: Any) -> ConvProblem:
    settings: dict[str, Any] = {"weight_bits": 7, "bits": (8,), "activation": "relu", "geometry": geometry} | more
    return ConvProblem(name, size, size, channels, channels, **settings)


PROBLEMS = [
    *(depthwise(channels, size) for size in (56, 96, 192) for channels in (64, 128, 256)),
    depthwise(128, 96, stride=(2, 2)),
    depthwise(128, 96, dilation=(2, 2)),
    dense("stride 2", 64, 96, Geometry(stride=(2, 2), padding=(1, 1))),
    dense("dilation 2", 64, 96, Geometry(dilation=(2, 2))),
    dense("2 groups", 64, 96, Geometry(groups=2)),
    dense("8 groups", 64, 96, Geometry(groups=8)),
    dense("2x2, stride 2", 64, 96, Geometry(stride=(2, 2), padding=(0, 0)), kernel=2),
]


def cases_of(problem: ConvProblem, isa: str, threads: int) -> dict[str, Callable[[], None]]:
    instance, geometry = instantiate(problem), problem.geometry
    want_y, want_q = instance.run("reference", "both")
    got_y, got_q = instance.run("cpu", "both", isa, threads)
    assert torch.equal(got_y, want_y) and torch.equal(got_q, want_q)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, problem.channels, problem.height, problem.width, generator=g)
    weight = torch.randn(problem.outputs, problem.channels // geometry.groups, *problem.kernel_size, generator=g)
    bias = torch.randn(problem.outputs, generator=g)
    rows, columns = geometry.axes(*problem.kernel_size)
    y, y_q = torch.empty(want_y.shape), torch.empty(want_q.shape, dtype=torch.uint8)
    grid = {"out_grid": instance.out_grid, "out_bits": instance.out_bits}
    settings = geometry.stride, (rows.before, columns.before), geometry.dilation, geometry.groups

    def torch_case(layout: torch.memory_format) -> Callable[[], None]:
        of_x, of_weight = x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
        return lambda: F.conv2d(of_x, of_weight, bias, *settings).relu_()

    calls = {
        "codes": lambda: instance.layer.into(instance.x_q, instance.bits, y_q=y_q, **grid),
        "floats": lambda: instance.layer.into(instance.x_q, instance.bits, y=y),
        "torch": torch_case(torch.contiguous_format),
        "torch channels_last": torch_case(torch.channels_last),
    }
    return {name: lambda call=call: [call() for _ in range(CALLS)] for name, call in calls.items()}


def title(problem: ConvProblem) -> str:
    geometry, name = problem.geometry, problem.name
    if name == "depthwise" and geometry.stride != (1, 1):
        name = "depthwise, stride 2"
    elif name == "depthwise" and geometry.dilation != (1, 1):
        name = "depthwise, dilation 2"
    return f"{name}, {problem.channels} channels, {problem.height}x{problem.width}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8, help="for each convolution, in at least 10 turns of its cases")
    parser.add_argument("--isa", default="auto", choices=list(native.ISAS), help="instruction set of the integers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with native.force_isa(args.isa):
        print(f"instruction set {native.isa_chosen()}, torch {torch.__version__}, least of all turns in {args.seconds:g} seconds\n")
    print("| convolution | codes, us | floats, us | PyTorch, us | PyTorch / codes | PyTorch / floats |\n|---|---|---|---|---|---|")
    for problem in PROBLEMS:
        with torch.inference_mode(), native.force_isa(args.isa):
            cases = cases_of(problem, args.isa, 1)
            once = sum(times[0] for times in in_turns(cases, 1).values())
            seconds = in_turns(cases, max(10, round(args.seconds / once)), time.process_time)
        us = {name: min(times) / CALLS * 1e6 for name, times in seconds.items()}
        codes, floats, theirs = us["codes"], us["floats"], min(us["torch"], us["torch channels_last"])
        ratios = f"{theirs / codes:.2f} | {theirs / floats:.2f}"
        print(f"| {title(problem)} | {codes:.0f} | {floats:.0f} | {theirs:.0f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
