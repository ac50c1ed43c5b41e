"""What is printed about pictures that were upscaled."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from .blocks import block_rows
from .common import FAILED, CommandError, print_table, to_json
from .pipes import to_stdout

if TYPE_CHECKING:
    from ..upscaling.sizes import Steps


@dataclass
class Many:
    """What became of many pictures. images: the figures of each that was made. errors: input and error of those that failed.
    passed_over: inputs that are left out because they are outputs of others. unread: files that look like pictures and are not
    read; both with the reason. skipped: how many outputs were there. others: the number of other files. failed_before: how many
    failed before anything was computed. seconds: the time of all."""

    images: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, str]] = field(default_factory=list)
    passed_over: list[dict[str, str]] = field(default_factory=list)
    unread: list[dict[str, str]] = field(default_factory=list)
    skipped: int = 0
    others: int = 0
    failed_before: int = 0
    seconds: float = 0.0


def print_many(args: argparse.Namespace, many: Many, settings: dict[str, Any], count: int) -> None:
    """Prints the summary or the JSON about many pictures, and the errors on stderr. Raises CommandError where some of the `count`
    pictures failed."""
    images = many.images
    report = {**settings, "images": images, "failed": many.errors, "skipped": many.skipped}
    report |= {"passed_over": many.passed_over + many.unread, "other_files": many.others, "seconds": many.seconds}
    megapixels = sum(math.prod(image["input_size"]) for image in images if "input_size" in image) / 1e6
    bits = [image["mean_bits"] for image in images if image.get("mean_bits") is not None]
    rows = [("images", f"{len(images)} done, {len(many.errors)} failed, {many.skipped} skipped")]
    what = [f"{len(many.passed_over)} that are outputs of other inputs"] if many.passed_over else []
    what += [f"{len(many.unread)} that look like pictures and are not read"] if many.unread else []
    rows += [("passed over", ", ".join(what))] if what else []
    if many.others:
        rows += [("other files", str(many.others))]
    rows += [("model", settings["model"]), ("backend", settings["backend"])]
    rows += [("workers", str(settings["workers"]))] if "workers" in settings else []
    rows += [("mean bits", bits_in_words(sum(bits) / len(bits), args.bits))] if bits else []
    rows += block_rows(_over_pixels(images, "computed_share"), _over_pixels(images, "bits_with_zeros"), args.depth)
    rate = f", {megapixels / max(many.seconds, 1e-9):.3g} megapixels a second read" if images else ""
    rows += [("time", f"{many.seconds:.3f} s{rate}")]
    print_report(args, report, rows)
    for error in many.errors:
        print(f"adabm: error: {error['error']}", file=sys.stderr)
    if many.errors:
        raise CommandError(f"{len(many.errors)} of {count} pictures failed", FAILED)


def warn_unread(args: argparse.Namespace, many: Many) -> None:
    """Says which files are passed over."""
    if not args.quiet:
        for item in many.unread:
            print(f"adabm: warning: '{item['input']}' is passed over: {item['reason']}", file=sys.stderr)
    if args.verbose:
        for item in many.passed_over:
            print(f"{item['input']} is passed over: {item['reason']}", file=sys.stderr)


def print_report(args: argparse.Namespace, report: dict[str, Any], rows: list[tuple[str, str]]) -> None:
    """Prints the report as JSON, or the rows as a table."""
    if args.json:
        print(to_json(report))
    elif not args.quiet:
        # Where the picture goes to standard output, text goes to stderr.
        print_table(rows, file=sys.stderr if to_stdout(args) else None)


def bits_in_words(mean: float | None, bits: str | int, steps: Steps | None = None) -> str:
    """The mean bits of a picture, or why there are none."""
    if mean is None:
        return "none, the network was not needed" if steps is not None and not steps.passes else "none, transparent everywhere"
    return f"{mean:.2f}" + ("" if bits == "auto" else " (fixed)") + first_pass(steps)


def first_pass(steps: Steps | None) -> str:
    """What follows figures that are those of the first of several passes."""
    return ", in the first pass" if steps is not None and steps.passes > 1 else ""


def _over_pixels(images: list[dict[str, Any]], figure: str) -> float | None:
    """The mean of a figure over the pixels of all pictures that have this figure."""
    having = [image for image in images if image.get(figure) is not None]
    weights = [math.prod(image["input_size"]) for image in having]
    return fmean((image[figure] for image in having), weights) if having else None
