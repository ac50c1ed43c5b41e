"""`adabm upscale`: makes larger pictures of pictures."""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..files import check_target
from ..upscaling.sizes import MOST_SCALE, MOST_SIDE, Size, Steps
from . import arguments, video
from .blocks import block_rows, percent
from .common import BAD_INPUT, FAILED, CommandError, Progress, one_line, print_table, stage, to_json
from .comparison import compare
from .loading import load_enlarger
from .outputs import DEFAULT_SUFFIX, FORMATS, Plan, Planned, Rest, check_suffix, find_inputs, is_folder, plan_outputs
from .pipes import open_target, piped, read_pipe, refuse_terminal, shown, to_stdout
from .sizes import asked_size, in_figures, in_words
from .streams import MATRICES, PIXEL_FORMATS

if TYPE_CHECKING:
    import numpy as np

    from ..images import Layout
    from ..upscaling.batch import Outcome, Task
    from ..upscaling.enlarge import Enlarger

SUMMARY = "upscale pictures, folders or frames of a video"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "inputs",
        metavar="IN",
        type=arguments.input_path,
        nargs="+",
        help="pictures or folders of them; a pipe or '-' for standard input",
    )
    add(
        "-o",
        "--output",
        metavar="OUT",
        action=arguments.Output,
        type=arguments.named,
        help="file, folder (what ends in '/' or has no suffix) or '-' for standard output "
        "(default: IN_x4.png beside a file, IN_x4 beside a folder, '-' for a pipe)",
    )
    parser.set_defaults(output_is_folder=False)
    add("--format", choices=("keep", *FORMATS), help="format of the output where OUT does not say it (default: png)")
    add("--quality", metavar="1..100", type=arguments.integer(1, 100), help="quality of JPEG and WebP (default: 95)")
    add("--suffix", default=DEFAULT_SUFFIX, help="what output names add to the input's (default: %(default)s)")
    add(
        "--existing",
        choices=("replace", "skip", "refuse"),
        default="replace",
        help="what to do about outputs that exist; skip goes on with an interrupted folder (default: %(default)s)",
    )
    arguments.add_model(parser, " or a converted model's file")
    arguments.add_windows(parser)
    add("--tta", action="store_true", help="mean over the eight flips and turns of every window: eight times the work")
    add("--strict", action="store_true", help="refuse damaged pictures of which no row is missing (default: read and warn)")
    add(
        "--metadata",
        choices=("keep", "strip"),
        default="keep",
        help="EXIF, XMP, IPTC and texts of the input; its colours always stay (default: %(default)s)",
    )
    add(
        "--max-pixels",
        metavar="N",
        type=arguments.integer(1),
        default=arguments.MAX_PIXELS,
        help="refuse larger pictures, and outputs of more than the model's scale squared times as many (default: %(default)s)",
    )
    add("--compare", action="store_true", help="time the float PyTorch model on the same input and compare")
    size = parser.add_argument_group("size of the output (default: the model's scale times the picture)").add_argument
    size("--scale", metavar="N", type=arguments.number(1, MOST_SCALE), help="so many times as wide and high, such as 2 or 1.5")
    size("--width", metavar="W", type=arguments.integer(1, MOST_SIDE), help="pixels across; the height follows unless it is given")
    size("--height", metavar="H", type=arguments.integer(1, MOST_SIDE), help="pixels down; the width follows unless it is given")
    size("--fit", metavar="WxH", type=arguments.size, help="the largest of the picture's shape that this rectangle holds")
    frames = parser.add_argument_group("frames of a video")
    frames.add_argument("--y4m", action="store_true", help="IN and OUT are YUV4MPEG2 streams, as from ffmpeg -f yuv4mpegpipe")
    frames.add_argument(
        "--raw", metavar="WxH", type=arguments.size, help="IN and OUT are raw frames of this size, ffmpeg -f rawvideo"
    )
    frames.add_argument("--pix-fmt", choices=PIXEL_FORMATS, help="pixel format of raw frames (default: rgb24)")
    frames.add_argument("--matrix", choices=MATRICES, help="matrix of y4m colours (default: bt709 from 720 rows, else bt601)")
    arguments.add_json_flag(parser)
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    loudness.add_argument("-v", "--verbose", action="store_true", help="say on stderr what becomes of each picture")


def execute(args: argparse.Namespace) -> None:
    """Upscale pictures, folders of them or frames from a pipe, in bounded memory; print what was done."""
    with stage(BAD_INPUT):
        for option, value, kind in (("matrix", args.matrix, "y4m"), ("pix-fmt", args.pix_fmt, "raw")):
            if value is not None and not getattr(args, kind):
                raise ValueError(f"--{option} goes with --{kind}, got '{value}' without")
    if args.y4m or args.raw:
        video.execute(args)
        return
    with stage(BAD_INPUT):
        inputs, rest = find_inputs(args)
        single = len(inputs) == 1 and inputs[0].root is None
        size = asked_size(args)
        _check_options(args, single, size)
        data = read_pipe(inputs[0].path) if piped(inputs[0].path) else None
        layout = _check_single(args, inputs[0].path, data) if single else None
        network, settings = load_enlarger(args, size)
        plan = plan_outputs(args, inputs, size, network.network.scale)
        if single and plan.failed:
            raise plan.failed[0][1]
        for planned in plan.pictures:
            folder = planned.target.parent
            if not piped(planned.target) and single and (folder.is_dir() or folder != args.output):  # which is made for the picture
                check_target(planned.target)
        if layout is not None and plan.pictures:
            _check_output(plan.pictures[0], network.output(layout))
            network.check(layout)
        float_model = network.network.model.float_model() if args.compare else None

    tasks = _tasks(plan.pictures, data)
    if single and plan.pictures:
        with stage(FAILED), ExitStack() as stack:
            task = next(tasks)
            if piped(plan.pictures[0].target):
                task = replace(task, target=stack.enter_context(open_target(plan.pictures[0].target)))
            _one(args, task, network, settings, float_model)
    elif single:
        _print(args, settings | {"input": shown(inputs[0].path), "skipped": True}, [("skipped", "the output exists")])
    else:
        _many(args, tasks, plan, rest, network, settings)


# ---- input


def _check_options(args: argparse.Namespace, single: bool, size: Size) -> None:
    if args.output is None and to_stdout(args):
        refuse_terminal(args.inputs[0])
    if args.compare and not single:
        raise ValueError("--compare must be left out for more than one picture")
    check_suffix(args.suffix, size)
    if args.json and to_stdout(args):
        raise ValueError("--json must be left out where the picture goes to standard output")


def _check_single(args: argparse.Namespace, path: Path, data: bytes | None) -> Any:
    """The layout of the only picture. Errors of the picture or of the output's name are found before torch is imported."""
    from ..images import check_output, open_picture

    layout = open_picture(path if data is None else data, max_pixels=args.max_pixels, name=shown(path)).layout
    if args.output is not None and not piped(args.output) and not is_folder(args):
        check_output(args.output)
    return layout


def _check_output(planned: Planned, layout: Layout) -> None:
    from ..images.writer import check_format

    check_format(shown(planned.target, "standard output"), planned.format, layout)


def _tasks(plan: list[Planned], data: bytes | None) -> Iterator[Task]:
    from ..upscaling.batch import Task

    for planned in plan:
        yield Task(planned.source if data is None else data, planned.target, planned.format, shown(planned.source))


# ---- one picture


def _one(args: argparse.Namespace, task: Task, network: Enlarger, settings: dict[str, Any], float_model: Any) -> None:
    outcome = next(_upscaled(args, iter([task]), network, 1))
    if outcome.error is not None:
        raise _failure(outcome) from outcome.error
    _say(args, outcome)
    layout, steps = outcome.made()
    report = {
        "input": task.name,
        "output": _target(args, task),
        **in_figures(layout.width, layout.height, steps),
        **settings,
        "patches": len(outcome.patches),
        **_costs(outcome),
        "flat_pixels": outcome.flat_pixels,
        "warnings": outcome.warnings,
        "seconds": outcome.seconds,
        "runs": 1,
    }
    if float_model is not None:
        with stage(FAILED, _memory(layout)):
            report |= compare(network, float_model, *_read_again(task, args.max_pixels))
    _print(args, report, _rows(report, steps))


def _read_again(task: Task, max_pixels: int) -> tuple[np.ndarray, Layout]:
    """Reads a picture again that was upscaled: its rows and its layout. Warnings about it are not repeated."""
    from ..images import open_picture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = open_picture(task.source, max_pixels=max_pixels, name=task.name)
        return reader.read(reader.layout.height), reader.layout


def _rows(report: dict[str, Any], steps: Steps) -> list[tuple[str, str]]:
    compared = "float_seconds" in report
    single = "one run" if compared else "first run"  # the first run also warms up
    runs = single if report["runs"] == 1 else f"median of {report['runs']} runs"
    rows = [
        ("image", in_words(report["input_size"][0], report["input_size"][1], steps)),
        ("model", report["model"]),
        ("backend", report["backend"]),
        ("mean bits", _bits(report["mean_bits"], report["bits"], steps)),
        *block_rows(report["computed_share"], report["bits_with_zeros"], report["depth"], _first_pass(steps)),
        ("time", f"{report['seconds']:.3f} s ({runs})"),
    ]
    if report["patches"] > 1:
        halo = "without halo" if report["protocol"] == "paper" else f"halo {report['halo']}"
        rows.insert(3, ("patches", f"{report['patches']} ({halo})"))
    if report["flat_pixels"]:
        width, height = report["input_size"]
        how = "interpolated" if report["smooth"] == "interpolate" else "of one colour"
        rows.insert(-1, ("smooth", f"{_share(report['flat_pixels'], width * height)} of the pixels, {how} and not computed"))
    if compared:
        db = "identical" if report["psnr_db"] is None else f"{report['psnr_db']:.2f} dB"
        alone = ", nothing interpolated" if report["smooth"] == "interpolate" else ""
        threads = f"{report['threads']} thread{'s' if report['threads'] > 1 else ''}"
        torch_run = f"PyTorch {report['torch']} float32 channels_last, {threads}, {runs}"
        rows += [
            ("float model", f"{report['float_seconds']:.3f} s ({torch_run})"),
            ("speed-up", f"{report['speed_up']:.2f}x"),
            ("PSNR", f"{db} (converted against float{alone})"),
        ]
    return [*rows, ("written", report["output"])]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %"


def _bits(mean: float | None, bits: str | int, steps: Steps | None = None) -> str:
    if mean is None:
        return "none, the network was not needed" if steps is not None and not steps.passes else "none, transparent everywhere"
    return f"{mean:.2f}" + ("" if bits == "auto" else " (fixed)") + _first_pass(steps)


def _first_pass(steps: Steps | None) -> str:
    return ", in the first pass" if steps is not None and steps.passes > 1 else ""


def _costs(outcome: Outcome) -> dict[str, float | None]:
    """The figures about bits and blocks of a picture; a figure that does not apply is None."""
    return {name: getattr(outcome, name) for name in ("mean_bits", "computed_share", "bits_with_zeros")}


def _over_pixels(images: list[dict[str, Any]], figure: str) -> float | None:
    """The mean of a figure over the pixels of all pictures that have this figure."""
    having = [image for image in images if image[figure] is not None]
    weights = [math.prod(image["input_size"]) for image in having]
    return fmean((image[figure] for image in having), weights) if having else None


# ---- many pictures


def _many(
    args: argparse.Namespace, tasks: Iterator[Task], plan: Plan, rest: Rest, network: Enlarger, settings: dict[str, Any]
) -> None:
    start, images = time.perf_counter(), []
    errors = [{"input": str(planned.source), "error": one_line(str(error))} for planned, error in plan.failed]
    earlier = [{"input": str(path), "reason": f"it is an output of '{origin}'"} for path, origin in plan.earlier]
    unread = [{"input": str(passed.path), "reason": passed.reason} for passed in rest.passed_over]
    if not args.quiet:
        for item in unread:
            print(f"adabm: warning: '{item['input']}' is passed over: {item['reason']}", file=sys.stderr)
    if args.verbose:
        for item in earlier:
            print(f"{item['input']} is passed over: {item['reason']}", file=sys.stderr)
    for outcome in _upscaled(args, tasks, network, len(plan.pictures)):
        if isinstance(outcome.error, BrokenPipeError | KeyboardInterrupt):
            raise outcome.error
        if outcome.error is not None:
            # An error about a file names the file. An error of computing does not.
            name = f"'{outcome.task.name}': " if outcome.stage == "compute" else ""
            errors.append({"input": outcome.task.name, "error": one_line(f"{name}{_failure(outcome)}")})
            continue
        layout, steps = outcome.made()
        image: dict[str, Any] = {"input": outcome.task.name, "output": str(outcome.task.target)}
        image |= in_figures(layout.width, layout.height, steps)
        image |= _costs(outcome) | {"flat_pixels": outcome.flat_pixels, "seconds": outcome.seconds, "warnings": outcome.warnings}
        images.append(image)
        _say(args, outcome)
    seconds = time.perf_counter() - start
    report = {**settings, "images": images, "failed": errors, "skipped": plan.skipped, "passed_over": earlier + unread}
    report |= {"other_files": rest.others, "seconds": seconds}
    megapixels = sum(math.prod(image["input_size"]) for image in images) / 1e6
    bits = [image["mean_bits"] for image in images if image["mean_bits"] is not None]
    rows = [("images", f"{len(images)} done, {len(errors)} failed, {plan.skipped} skipped")]
    what = [f"{len(earlier)} that are outputs of other inputs"] if earlier else []
    what += [f"{len(unread)} that look like pictures and are not read"] if unread else []
    rows += [("passed over", ", ".join(what))] if what else []
    if rest.others:
        rows += [("other files", str(rest.others))]
    rows += [("model", settings["model"]), ("backend", settings["backend"])]
    rows += [("mean bits", _bits(sum(bits) / len(bits), args.bits))] if bits else []
    rows += block_rows(_over_pixels(images, "computed_share"), _over_pixels(images, "bits_with_zeros"), args.depth)
    rate = f", {megapixels / seconds:.3g} megapixels a second read" if images else ""
    rows += [("time", f"{seconds:.3f} s{rate}")]
    _print(args, report, rows)
    for error in errors:
        print(f"adabm: error: {error['error']}", file=sys.stderr)
    if errors:
        raise CommandError(f"{len(errors)} of {len(plan.pictures) + len(plan.failed)} pictures failed", FAILED)


# ---- one picture and many


def _upscaled(args: argparse.Namespace, tasks: Iterator[Task], network: Enlarger, count: int) -> Iterator[Outcome]:
    """Yields the outcome of each task. A bar on stderr counts windows for one picture, and pictures for many."""
    from ..images.writer import DEFAULT_QUALITY
    from ..upscaling.batch import upscale_files

    with Progress(args.quiet) as bar:
        done = 0

        def progress(task: Task) -> Callable[[int, int, str], None] | None:
            if count > 1:
                bar(done, count, task.name)
            return None if count > 1 else bar

        options = {"max_pixels": args.max_pixels, "quality": args.quality or DEFAULT_QUALITY}
        options |= {"strict": args.strict, "metadata": args.metadata}
        for outcome in upscale_files(tasks, network, **options, progress=progress):
            done += 1
            yield outcome


def _failure(outcome: Outcome) -> BaseException:
    """The error of a picture as one sentence with its exit status."""
    error = outcome.error
    assert error is not None, "it failed"
    known = isinstance(error, ValueError | OSError | RuntimeError | MemoryError)
    if not known or isinstance(error, BrokenPipeError):
        return error
    bad = outcome.stage == "read" or (outcome.stage == "write" and isinstance(error, ValueError))
    try:
        with stage(BAD_INPUT if bad else FAILED, _memory(outcome.layout)):
            raise error
    except CommandError as failure:
        return failure


def _target(args: argparse.Namespace, task: Task) -> str:
    """The name of an output in messages."""
    return "standard output" if to_stdout(args) else str(task.target if isinstance(task.target, Path) else args.output)


def _memory(layout: Any) -> str:
    what = "the picture" if layout is None else f"{layout.width}x{layout.height} pixels"
    return f"not enough memory to upscale {what} (a smaller --window or --max-memory needs less)"


def _say(args: argparse.Namespace, outcome: Outcome) -> None:
    """With --verbose, prints the outcome for a picture on stderr."""
    if args.verbose:
        target, (layout, steps) = _target(args, outcome.task), outcome.made()
        count = len(outcome.patches)
        windows = f"{count} window{'s' if count > 1 else ''}"
        if outcome.mean_bits is None:
            windows = "transparent everywhere" if steps.passes else "the network was not needed"
        else:
            windows += f", mean bits {_bits(outcome.mean_bits, args.bits, steps)}"
        if outcome.computed_share is not None:
            windows += f", {percent(outcome.computed_share)} with blocks"
        if outcome.flat_pixels:
            windows += f", {_share(outcome.flat_pixels, layout.width * layout.height)} not computed"
        windows += f", {in_words(layout.width, layout.height, steps)}"
        print(f"{outcome.task.name} -> {target}: {windows}, {outcome.seconds:.3f} s", file=sys.stderr)


def _print(args: argparse.Namespace, report: dict[str, Any], rows: list[tuple[str, str]]) -> None:
    if args.json:
        print(to_json(report))
    elif not args.quiet:
        # Where the picture goes to standard output, text goes to stderr.
        print_table(rows, file=sys.stderr if to_stdout(args) else None)
