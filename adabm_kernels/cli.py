"""The command line: `adabm upscale` and `adabm info`.

Exit status: 0 done; 1 failed while running; 2 wrong usage or bad input, nothing was computed; 130 interrupted.
Errors are one sentence on stderr. torch is imported inside the commands only, so that `adabm --help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

from .machine import describe_machine, describe_versions, version
from .upscale import DEFAULT_MODEL

BACKENDS = ("auto", "cpu", "reference", "triton", "cuda")
BITS = ("auto", *map(str, range(2, 9)))
# `--compare` repeats both models until one of these is reached; the median needs few runs, a large image long ones.
COMPARE_RUNS = 5
COMPARE_SECONDS = 30.0


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    args = _parser().parse_args(argv)
    try:
        with _plain_warnings():
            args.command(args)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        print("adabm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; without this the interpreter complains once more while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.traceback:
            traceback.print_exc()
        known = isinstance(error, _CommandError)
        message = str(error) if known else f"unexpected {type(error).__name__}: {error} (--traceback shows where)"
        print(f"adabm: error: {_one_line(message)}", file=sys.stderr)
        return error.status if known else 1


class _CommandError(Exception):
    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@contextmanager
def _stage(status: int, memory: str = "not enough memory") -> Iterator[None]:
    """Failures that users can cause become one sentence and this exit status."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        # torch reports a failed allocation as a RuntimeError.
        out_of_memory = isinstance(error, MemoryError) or "allocate memory" in str(error)
        raise _CommandError(memory if out_of_memory else str(error), status) from error


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as one sentence too, without the line of source that Python shows."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"adabm: warning: {_one_line(str(message))}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"adabm: error: {_one_line(message)} (see {self.prog} --help)\n")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="adabm", description="Super-resolution in integers, with bit-widths decided per image and layer.")
    parser.add_argument("--version", action="version", version=f"adabm {version('adabm-kernels')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    common.add_argument("--traceback", action="store_true", help="show where in the program an error arose")

    up = commands.add_parser("upscale", parents=[common], help="upscale one PNG or JPEG image", description=_upscale.__doc__)
    up.add_argument("input", metavar="IN", type=Path, help="image to upscale: .png, .jpg or .jpeg")
    up.add_argument(
        "-o", "--output", metavar="OUT", type=Path, help="image to write; replaces an existing one (default: IN_x4.png)"
    )
    up.add_argument(
        "--model",
        metavar="NAME|PATH",
        default=DEFAULT_MODEL,
        help="built-in model (`adabm info` lists them) or a converted model's file (default: %(default)s)",
    )
    up.add_argument(
        "--bits",
        metavar="auto|2..8",
        default="auto",
        type=_bits,
        help="bit-width of the adaptive layers: decided per image and layer, or one for all (default: auto)",
    )
    up.add_argument("--backend", choices=BACKENDS, default="auto", help="where to compute (default: %(default)s)")
    up.add_argument("--threads", metavar="N", type=_threads, help="CPU threads (default: as many as torch would use)")
    up.add_argument("--compare", action="store_true", help="time the float PyTorch model on the same input and compare")
    up.set_defaults(command=_upscale)

    info = commands.add_parser("info", parents=[common], help="show the machine and the backends", description=_info.__doc__)
    info.set_defaults(command=_info)
    return parser


def _bits(text: str) -> str | int:
    if text not in BITS:
        raise argparse.ArgumentTypeError(f"must be 'auto' or an integer from 2 to 8, got '{text}'")
    return text if text == "auto" else int(text)


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got '{text}'")
    return int(text)


def _upscale(args: argparse.Namespace) -> None:
    """Upscale one image as a whole, write the result and print what was done."""
    from .images import check_output, read_image, write_image

    with _stage(2):
        source = read_image(args.input)
        if args.output is not None:
            _check_target(args.output, args.input)
            check_output(args.output, source.transparent)
    height, width = source.rgb.shape[:2]

    import torch

    from .upscale import configure, load_model, run, to_image, to_tensor

    # The float model runs on torch's own threads: as many for one as for the other.
    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    with _stage(2):
        model = load_model(args.model)
        configure(model, args.bits, args.backend, threads)
        if args.output is None:
            args.output = args.input.with_name(f"{args.input.stem}_x{model.scale}.png")
            _check_target(args.output, args.input)
            check_output(args.output)
        float_model = model.float_model() if args.compare else None
        backend = model.backend_summary()

    x = to_tensor(source)
    with _stage(1, f"not enough memory to upscale {width}x{height} pixels as a whole"):
        mean_bits = float(model.mean_bits(x).mean())
        y, seconds = _timed(lambda: run(model, x))
        comparison = None if float_model is None else _compare(lambda: run(model, x), y, float_model, x)
        result = to_image(y, source)
    with _stage(1):
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
        print(json.dumps(report, indent=2))
    else:
        _print_table(_upscale_rows(report))


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

    from .metrics import psnr
    from .upscale import run

    float_model = float_model.eval().to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    want = run(float_model, x)
    converted, floats, start = [], [], time.perf_counter()
    while len(floats) < COMPARE_RUNS and (not floats or time.perf_counter() - start < COMPARE_SECONDS):
        converted.append(_timed(run_converted)[1])
        floats.append(_timed(lambda: run(float_model, x))[1])
    db = float(psnr(y.clamp(0, 255), want.clamp(0, 255), 255.0))
    return {
        "seconds": median(converted),
        "runs": len(converted),
        "float_seconds": median(floats),
        "speed_up": median(floats) / median(converted),
        "psnr_db": db if db < float("inf") else None,
        "torch": torch.__version__,
    }


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    value = call()
    return value, time.perf_counter() - start


def _upscale_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
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


def _info(args: argparse.Namespace) -> None:
    """Show the machine, the versions, the instruction sets, and why each backend can or cannot run here."""
    report = _collect_info()
    if args.json:
        print(json.dumps(report, indent=2))
        return
    machine = report["machine"]
    sections = {
        "Machine": {
            "system": f"{machine['system']}, {machine['cores']} cores usable",
            "CPU": machine["cpu"],
            "GPU": machine["gpu"],
            **report["versions"],
        },
        "Native libraries": {
            key.replace("_", " ").replace("isa", "instruction set"): _listed(value) for key, value in report["native"].items()
        },
        "Backends": {
            name: f"{'yes' if status['available'] else 'no':3}  {status['reason']}" for name, status in report["backends"].items()
        },
        "Built-in models": report["models"] or {"none": "no model file in this installation"},
    }
    for i, (title, rows) in enumerate(sections.items()):
        print("\n" * bool(i) + title)
        _print_table(list(rows.items()), indent="  ")


def _collect_info() -> dict[str, Any]:
    from . import native
    from .registry import backends
    from .upscale import builtin_models

    return {
        "machine": describe_machine(),
        "versions": describe_versions(),
        "native": native.describe(),
        "backends": {name: {"available": status.available, "reason": status.reason} for name, status in backends().items()},
        "models": {name: str(path) for name, path in builtin_models().items()},
    }


def _listed(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {item}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(_listed, value)) or "none"
    return str(value)


def _print_table(rows: list[tuple[str, str]], indent: str = "") -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{indent}{name:<{width}}  {value}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
