"""`adabm bench`: how fast a model is here, layer by layer; with --tune, the times that layers are planned by."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

from ..files import check_target
from ..machine import cpu_name
from . import arguments
from .common import BAD_INPUT, FAILED, STDOUT, Progress, check_json, print_columns, print_table, stage, timed, to_json, write_json

SUMMARY = "time a model here, or measure what layers are planned by"

ISAS = ("scalar", "neon", "avx2", "avxvnni", "avx512vnni", "amx")
RUNS = 7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_model(parser, " or a converted model's file")
    parser.add_argument(
        "--size", metavar="PIXELS", type=arguments.integer(8, 4096), default=192, help="side of the picture (default: %(default)s)"
    )
    parser.add_argument("--tune", action="store_true", help="measure the times of all tiles and keep them for this machine")
    parser.add_argument(
        "--isa", action="append", choices=ISAS, help="with --tune: the instruction set, may be repeated (default: the one in use)"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="F",
        type=arguments.path,
        help="with --tune: the file to write (default: one in your cache folder)",
    )
    arguments.add_json_file(parser)


def execute(args: argparse.Namespace) -> None:
    """Time a model on this machine, whole and layer by layer beside what the planner predicts; or, with --tune, measure what the
    planner predicts by and keep it for this machine."""
    with stage(BAD_INPUT):
        for option in ("isa", "output"):
            if getattr(args, option) is not None and not args.tune:
                raise ValueError(f"--{option} goes with --tune")
        check_json(args.json, args.output, args.model)
        if args.tune:
            from ..planning.times import own_path

            target = args.output or own_path()
            target.parent.mkdir(parents=True, exist_ok=True)
            check_target(target)
    report = _tune(args) if args.tune else _bench(args)
    if args.json not in (None, STDOUT):
        with stage(FAILED):
            write_json(args.json, report)


def _tune(args: argparse.Namespace) -> dict[str, Any]:
    from .. import native
    from ..planning import times as tile_times
    from ..tuning.tiles import measure_tiles

    with stage(BAD_INPUT), Progress() as progress:
        if args.output is not None and args.output.exists():
            tile_times.read(args.output)  # this raises where the file holds something else, so that it is not replaced
        isas = args.isa or [native.isa_chosen()]
        tables = {isa: measure_tiles(isa, progress) for isa in isas}
    path = args.output or tile_times.own_path()
    with stage(FAILED):
        tile_times.save(path, tables)
    rows = [
        {"isa": isa, "tile": tile, "sums": kind, "product_ps": c.product, "entry_ps": c.entry, "leave_ps": c.leave}
        for isa, table in tables.items()
        for tile, kinds in table.costs.items()
        for kind, c in kinds.items()
    ]
    report = {"file": str(path), "cpu": cpu_name(), "times": rows}
    if args.json == STDOUT:
        print(to_json(report))
        return report
    print_columns([("tile", "sums", "product ps", "entry ps", "leave ps")] + [_tune_row(row) for row in rows])
    print(f"written to {path}: models converted or loaded from now on are planned by it")
    return report


def _tune_row(row: dict[str, Any]) -> tuple[str, ...]:
    return f"{row['isa']} {row['tile']}", row["sums"], *(f"{row[key]:.2f}" for key in ("product_ps", "entry_ps", "leave_ps"))


def _bench(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from ..models import configure, load_model
    from ..nn.graph import recorded_by_default
    from ..nn.network import format_plan
    from ..nn.timing import wait_for

    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    with stage(BAD_INPUT):
        model = load_model(args.model)
        configure(model, args.bits, args.backend, threads, args.device, args.depth, args.graph)
        float_model: Any = model.float_model() if model.float_state is not None else None
        model.spec.check_size(args.size, args.size, "--size")
    device = model._device()
    noise = torch.rand(1, model.spec.input_channels, args.size, args.size, generator=torch.Generator().manual_seed(0))
    x = (noise * 255 if model.spec.takes_pixels else noise).to(device)
    with stage(FAILED, f"not enough memory for {args.size}x{args.size} pixels"), torch.no_grad(), recorded_by_default():
        rows = model.plan_rows(args.size)
        seconds = _median(lambda: model(x), lambda: wait_for(device))
        float_seconds = None
        if float_model is not None:
            float_model = float_model.to(device, memory_format=torch.channels_last)
            pixels = x.contiguous(memory_format=torch.channels_last)
            float_seconds = _median(lambda: float_model(pixels), lambda: wait_for(device))
    report = {
        "model": args.model,
        "size": args.size,
        "depth": args.depth,
        "backend": model.backend_summary(),
        "mean_bits": float(model.mean_bits(x).mean()),
        "seconds": seconds,
        "float_seconds": float_seconds,
        "layers": rows,
    }
    if args.json == STDOUT:
        print(to_json(report))
        return report
    print(format_plan(rows), end="\n\n")
    lines = [
        ("model", f"{args.model}, {args.size}x{args.size} pixels of noise"),
        ("backend", report["backend"]),
        ("mean bits", f"{report['mean_bits']:.2f}"),
        ("time", f"{seconds * 1e3:.2f} ms"),
    ]
    if report["backend"].startswith("cpu"):
        lines.insert(2, ("planned by", _planned_by()))
    if float_seconds is not None:
        lines.append(("float32", f"{float_seconds * 1e3:.2f} ms in PyTorch, {float_seconds / seconds:.1f} times as long"))
    print_table(lines)
    return report


def _planned_by() -> str:
    """A sentence that names the times by which layers are planned here, and the tiles that these times leave out."""
    from .. import native
    from ..planning.tiles import TILES
    from ..planning.times import tile_times

    times = tile_times(native.planning_isa())
    missing = [tile.name for tile in TILES if tile.name not in times.costs]
    where = f"times of {times.isa} on {times.measured['cpu']}, {times.measured['date']}"
    return where + (f", without {', '.join(missing)}: adabm bench --tune measures them" if missing else "")


def _median(call: Callable[[], Any], wait: Callable[[], None]) -> float:
    def once() -> None:
        call()
        wait()

    once()
    return median(timed(once)[1] for _ in range(RUNS))
