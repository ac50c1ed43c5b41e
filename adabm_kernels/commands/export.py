"""`adabm export`: writes a converted model, or its float network, as ONNX for other programs."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from ..files import check_target
from . import arguments
from .common import BAD_INPUT, FAILED, print_table, stage, to_json

if TYPE_CHECKING:
    from ..exporters.onnx import Exported
    from ..nn import ConvertedNetwork

SUMMARY = "write a model as ONNX for other programs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="NAME|PATH", help="built-in model or a converted model's file")
    add("-o", "--output", metavar="F", type=arguments.path, required=True, help="file to write, .onnx")
    arguments.add_existing(parser)
    add(
        "--bits",
        metavar="2..8",
        type=arguments.integer(2, 8),
        help="bit-width of all adaptive layers (default: for each layer the one that calibration found, which no image changes)",
    )
    add(
        "--depth",
        choices=("full",),
        default="full",
        help="residual blocks that are computed: always all, since ONNX cannot leave them out in parts of a picture "
        "(default: %(default)s)",
    )
    add("--float", dest="floats", action="store_true", help="write the float network of which the model was made")
    arguments.add_json_flag(parser)


def execute(args: argparse.Namespace) -> None:
    """Write a converted model as ONNX with QuantizeLinear and DequantizeLinear at fixed bits, or its float network, for pictures of
    any size and number. ONNX Runtime and OpenVINO run it; docs/interchange.md says how near to the model the results lie."""
    with stage(BAD_INPUT):
        _check(args)
        from ..models import load_model, model_path

        source = model_path(args.model)
        if args.output.exists() and os.path.samefile(args.output, source):
            raise ValueError(f"--output must not be the model itself, got '{args.output}'")
    with stage(FAILED, bad_input=BAD_INPUT):
        from ..exporters.onnx import export_onnx

        model = load_model(source)
        try:
            made = export_onnx(model, args.output, bits=args.bits or "auto", floats=args.floats)
        except ValueError as error:
            raise ValueError(
                str(error).replace("export_onnx: ", "", 1).replace("floats must be False", "--float must be left out")
            ) from error
    report = _report(args, model, made)
    if args.json:
        print(to_json(report))
    else:
        print_table(_rows(report, model))


def _check(args: argparse.Namespace) -> None:
    if args.output.suffix.lower() != ".onnx":
        raise ValueError(f"--output must end in .onnx, got '{args.output}'")
    if args.floats and args.bits is not None:
        raise ValueError(f"--bits must be left out with --float, whose network has no bits, got {args.bits}")
    check_target(args.output)
    if args.output.exists() and args.existing == "refuse":
        raise ValueError(f"--output must not exist yet without --existing replace, got '{args.output}'")


def _report(args: argparse.Namespace, model: ConvertedNetwork, made: Exported) -> dict[str, Any]:
    return {
        "model": args.model,
        "output": str(args.output),
        "bytes": made.bytes,
        "opset": made.opset,
        "network": model.spec.network,
        "scale": model.scale,
        "float": args.floats,
        "bits": None if args.floats else args.bits or "auto",
        "layers": made.bits,
        "input": {"name": "x", "shape": ["N", model.spec.input_channels, "H", "W"], "smallest": made.smallest},
        "outputs": list(made.outputs),
    }


def _rows(report: dict[str, Any], model: ConvertedNetwork) -> list[tuple[str, str]]:
    widths = sorted(set(report["layers"].values()))
    fixed = f"{report['bits']} in the adaptive layers" if report["bits"] != "auto" else "as calibrated, the same for every image"
    bits = "float32" if report["float"] else f"{fixed} (codes of {', '.join(map(str, widths))} bits)"
    least = report["input"]["smallest"]
    sides = f", sides of at least {least}" if least > 1 else ""
    pixels = ", RGB in 0..255" if model.spec.takes_pixels else ""
    rows = [
        ("network", f"{report['network']} x{report['scale']}"),
        ("bits", bits),
        ("input", f"x, float32 [N, {model.spec.input_channels}, H, W]{pixels}{sides}"),
        ("output", ", ".join(report["outputs"])),
        ("written", f"{report['output']} ({report['bytes'] / 1e6:.1f} MB, opset {report['opset']})"),
    ]
    if model.exit is not None and not report["float"]:
        rows.insert(2, ("depth", "all blocks everywhere: the model leaves them out in easy tiles, the file does not"))
    return rows
