"""`adabm report`: writes one page that shows how a picture was upscaled."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..files import check_target, write_file
from . import arguments
from .blocks import block_rows
from .common import BAD_INPUT, FAILED, Progress, print_table, stage
from .comparison import compare
from .loading import load_network
from .pipes import piped, read_pipe, shown

if TYPE_CHECKING:
    import numpy as np

    from ..images import Layout
    from ..nn import ConvertedNetwork

SUMMARY = "a page that shows a picture's bits, times and quality"

_TILE = 96  # the side of AdaBM's patches, small enough to show where the bits go


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", metavar="IMAGE", type=arguments.input_path, help="picture to upscale; a pipe or '-' for standard input"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=arguments.path,
        default=Path("report.html"),
        help="page to write (default: %(default)s)",
    )
    arguments.add_existing(parser)
    arguments.add_model(parser, " or a converted model's file")
    arguments.add_windows(parser, "96")
    parser.add_argument(
        "--max-pixels",
        metavar="N",
        type=arguments.integer(1),
        default=4_000_000,
        help="refuse larger pictures (default: %(default)s)",
    )


def execute(args: argparse.Namespace) -> None:
    """Upscale a picture and write a page about it: before and after, bit map, times of patches and layers, quality, plan."""
    from ..images import open_picture

    with stage(BAD_INPUT):
        if args.output.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"--output must end in .html, got '{args.output}'")
        check_target(args.output)
        if args.output.exists() and args.existing == "refuse":
            raise ValueError(f"--output must not exist yet without --existing replace, got '{args.output}'")
        source = read_pipe(args.input) if piped(args.input) else args.input
        reader = open_picture(source, max_pixels=args.max_pixels, name=shown(args.input))
        rows, layout = reader.read(reader.layout.height), reader.layout
        if layout.alpha and not rows[..., -1].any():
            raise ValueError(f"IMAGE must have a pixel that is not transparent, got '{shown(args.input)}'")
        args.tta = False
        if args.tile is None and args.protocol == "halo":
            args.tile = _TILE
        network, settings = load_network(args)
        network.windows(layout.height, layout.width, layout)

    from ..nn.layer_times import layer_times
    from ..report.bitmap import bit_map
    from ..report.page import Report
    from ..upscaling.batch import bits_with_zeros, computed_share, mean_bits
    from ..upscaling.enlarge import Enlarger, enlarged

    memory = f"not enough memory for a report on {layout.width}x{layout.height} pixels"
    with stage(FAILED, memory), Progress() as bar:
        network.array(rows, layout)  # this warms up, so that the times below are those of a running program
        patches: list = []
        model = cast("ConvertedNetwork", network.model)  # a model is loaded with this type
        with layer_times(model) as layer_seconds:
            out = network.array(rows, layout, record=patches, progress=bar)
        compared = None
        if model.float_state is not None:
            enlarger, teacher = Enlarger(network), model.float_model()
            compared = compare(enlarger, teacher, rows, layout)
        bits = bit_map(model, patches, layout.width, layout.height)
        weights = [patch.height * patch.width for patch in bits.patches]
        layer_bits = {
            name: _weighted(values.cpu().tolist(), weights)
            for name, values in model.layer_bits(None, offset=_offsets(bits.patches)).items()
        }
        larger = enlarged(layout, network.scale)
        done = f"upscaled {network.scale} times" if network.scale > 1 else "computed at its own size"
        blocks = block_rows(computed_share(patches), bits_with_zeros(patches), settings["depth"])
        page = Report(
            title=f"{shown(args.input) if isinstance(source, bytes) else args.input.name}, {done}",
            model=settings["model"],
            scale=network.scale,
            before=_encoded(rows, layout),
            after=_encoded(out, larger),
            summary=_summary(settings, layout, larger, patches, mean_bits(patches), blocks, compared),
            bits=bits,
            layer_seconds={name: seconds for name, seconds in layer_seconds.items() if seconds},
            layer_bits=layer_bits,
            plan=model.plan(),
        )
    with stage(FAILED):
        write_file(args.output, page.to_html().encode(errors="backslashreplace"))
    print_table([("patches", f"{len(patches)}"), ("written", str(args.output))])


def _offsets(patches: Any) -> Any:
    import torch

    return torch.tensor([patch.offset for patch in patches], dtype=torch.int32)


def _weighted(values: list[float], weights: list[int]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def _encoded(rows: np.ndarray, layout: Layout) -> tuple[str, bytes]:
    """A picture in a form that browsers show: PNG where it is transparent, otherwise JPEG."""
    from ..images import PictureWriter

    format = "PNG" if layout.alpha else "JPEG"
    out = io.BytesIO()
    with PictureWriter(out, format, layout) as writer:
        writer.write(rows)
    return f"image/{format.lower()}", out.getvalue()


def _summary(
    settings: dict[str, Any],
    layout: Layout,
    larger: Layout,
    patches: list,
    bits: float | None,
    blocks: list[tuple[str, str]],
    compared: dict[str, Any] | None,
) -> list[tuple[str, str]]:
    halo = "without halo" if settings["protocol"] == "paper" else f"halo {settings['halo']}"
    rows = [
        ("picture", f"{layout.width}x{layout.height} -> {larger.width}x{larger.height}"),
        ("model", settings["model"]),
        ("backend", settings["backend"]),
        ("bits", "decided by every patch" if settings["bits"] == "auto" else f"{settings['bits']} everywhere"),
        ("mean bits", "none" if bits is None else f"{bits:.2f}"),
        *blocks,
        ("patches", f"{len(patches)} ({halo})"),
    ]
    if compared is None:
        return [*rows, ("float model", "its weights are not in the model's file")]
    db = "identical" if compared["psnr_db"] is None else f"{compared['psnr_db']:.2f} dB"
    return [
        *rows,
        ("time", f"{compared['seconds']:.3f} s (median of {compared['runs']})"),
        ("float model", f"{compared['float_seconds']:.3f} s, {compared['speed_up']:.2f} times as long, the same windows"),
        ("PSNR to the float model", db + (", nothing interpolated" if settings["smooth"] == "interpolate" else "")),
    ]
