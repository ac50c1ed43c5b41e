"""`adabm upscale`: one picture in, one picture out."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from .common import BAD_INPUT, FAILED, print_table, stage, timed, to_json

# `--compare` repeats both models until one of these is reached; the median needs few runs, a large image long ones.
COMPARE_RUNS = 5
COMPARE_SECONDS = 30.0


def execute(args: argparse.Namespace) -> None:
    """Upscale one image as a whole, write the result and print what was done."""
    from ..images import check_output, read_image, write_image

    with stage(BAD_INPUT):
        source = read_image(args.input)
        if args.output is not None:
            _check_target(args.output, args.input)
            check_output(args.output, source.transparent)
    height, width = source.rgb.shape[:2]

    import torch

    from ..upscale import configure, load_model, run, to_image, to_tensor

    # The float model runs on torch's own threads: as many for one as for the other.
    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    with stage(BAD_INPUT):
        model = load_model(args.model)
        configure(model, args.bits, args.backend, threads)
        if args.output is None:
            args.output = args.input.with_name(f"{args.input.stem}_x{model.scale}.png")
            _check_target(args.output, args.input)
            check_output(args.output)
        float_model = model.float_model() if args.compare else None
        backend = model.backend_summary()

    x = to_tensor(source)
    with stage(FAILED, f"not enough memory to upscale {width}x{height} pixels as a whole"):
        mean_bits = float(model.mean_bits(x).mean())
        y, seconds = timed(lambda: run(model, x))
        comparison = None if float_model is None else _compare(lambda: run(model, x), y, float_model, x)
        result = to_image(y, source)
    with stage(FAILED):
        write_image(args.output, result)

    report = {
        "input": str(args.input),
        "output": str(args.output),
        "input_size": [width, height],
        "output_size": [result.rgb.shape[1], result.rgb.shape[0]],
        "model": args.model,
        "backend": backend,
        "threads": threads,
        "bits": args.bits,
        "mean_bits": mean_bits,
        "seconds": seconds,
        "runs": 1,
        **(comparison or {}),
    }
    if args.json:
        print(to_json(report))
    else:
        print_table(_rows(report))


def _check_target(output: Path, source: Path) -> None:
    same = output.exists() and os.path.samefile(output, source)
    if same or output.absolute() == source.absolute():
        raise ValueError(f"OUT must not be the input file itself, got '{output}'")


def _compare(run_converted: Callable[[], Any], y: Any, float_model: Any, x: Any) -> dict[str, Any]:
    """Time both models in turn, after one run of each to warm up, and measure how far their outputs are apart.

    The float model gets what suits PyTorch best on a CPU: float32 in channels_last. PSNR is over RGB in 0..255, both
    outputs clamped and not rounded.
    """
    import torch

    from ..metrics import psnr
    from ..upscale import run

    float_model = float_model.eval().to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    want = run(float_model, x)
    converted, floats, start = [], [], time.perf_counter()
    while len(floats) < COMPARE_RUNS and (not floats or time.perf_counter() - start < COMPARE_SECONDS):
        converted.append(timed(run_converted)[1])
        floats.append(timed(lambda: run(float_model, x))[1])
    db = float(psnr(y.clamp(0, 255), want.clamp(0, 255), 255.0))
    return {
        "seconds": median(converted),
        "runs": len(converted),
        "float_seconds": median(floats),
        "speed_up": median(floats) / median(converted),
        "psnr_db": db if db < float("inf") else None,
        "torch": torch.__version__,
    }


def _rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    compared = "float_seconds" in report
    single = "one run" if compared else "first run"  # the first also warms up
    runs = single if report["runs"] == 1 else f"median of {report['runs']} runs"
    rows = [
        ("image", "{}x{} -> {}x{}".format(*report["input_size"], *report["output_size"])),
        ("model", report["model"]),
        ("backend", report["backend"]),
        ("mean bits", f"{report['mean_bits']:.2f}" + ("" if report["bits"] == "auto" else " (fixed)")),
        ("time", f"{report['seconds']:.3f} s ({runs})"),
    ]
    if compared:
        db = "identical" if report["psnr_db"] is None else f"{report['psnr_db']:.2f} dB"
        threads = f"{report['threads']} thread{'s' if report['threads'] > 1 else ''}"
        torch_run = f"PyTorch {report['torch']} float32 channels_last, {threads}, {runs}"
        rows += [
            ("float model", f"{report['float_seconds']:.3f} s ({torch_run})"),
            ("speed-up", f"{report['speed_up']:.2f}x"),
            ("PSNR", f"{db} (converted against float)"),
        ]
    return [*rows, ("written", report["output"])]
