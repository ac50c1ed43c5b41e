"""`adabm eval`: measures a model on a folder of test pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..machine import describe_machine, describe_versions
from . import arguments, weights
from .common import BAD_INPUT, FAILED, STDOUT, Progress, check_json, print_columns, print_table, stage, to_json, write_json

if TYPE_CHECKING:
    from ..evaluate import EvaluationReport

SUMMARY = "measure a model on test pictures"

PROTOCOLS = ("whole", "paper")  # the same as in evaluate.py, which would import torch
CONVENTIONS = {
    "psnr_y": "dB, luma of ITU-R BT.601 in 16..235 as MATLAB's rgb2ycbcr, peak 255, scale pixels shaved, outputs rounded to 8 bits",
    "ssim_y": "mean over the same pixels, Gaussian window 11x11 with sigma 1.5 inside the picture, K1 0.01, K2 0.03",
    "mean_bits": "of the inputs of the counted convolutions: all quantised ones but first, last and upsampler",
    "computed_share": "of the pixels, those that have the residual blocks computed; null for a network that leaves out none",
    "bits_with_zeros": "mean_bits times computed_share, patch by patch: a pixel without blocks counts as 0 bits",
    "gbitops_per_mp": "1e9 x multiplications x weight bits x activation bits over all convolutions, per million output pixels; "
    "of pixels without blocks those of the exit's filter alone, at 8 bits",
}
_COLUMNS = {  # headings and formats
    "psnr_y": ("PSNR-Y", ".2f"),
    "ssim_y": ("SSIM-Y", ".4f"),
    "mean_bits": ("bits", ".2f"),
    "computed_share": ("blocks", ".0%"),
    "bits_with_zeros": ("with zeros", ".2f"),
    "gbitops_per_mp": ("GBitOPs/MP", ".0f"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_model(parser, ", a converted model's file, or float weights to measure them alone", device=False)
    parser.add_argument(
        "--data", metavar="HR_DIR", type=arguments.path, required=True, help="folder of original pictures, PNG or JPEG"
    )
    parser.add_argument(
        "--lr",
        metavar="LR_DIR",
        type=arguments.path,
        help="folder of their low-resolution forms (default: made by MATLAB's bicubic)",
    )
    parser.add_argument("--scale", metavar="N", type=arguments.integer(1), help="the scale you expect (default: the model's)")
    parser.add_argument(
        "--protocol",
        type=_protocol,
        choices=PROTOCOLS,
        default="whole",
        help="pictures as a whole, or AdaBM's 96x96 patches (default: %(default)s)",
    )
    arguments.add_reading(parser)
    arguments.add_json_file(parser)


def _protocol(text: str) -> str:
    """The type of a protocol, which may be given by its old name too."""
    return "paper" if text == "patch96" else text


def execute(args: argparse.Namespace) -> None:
    """Measure a model on test pictures (PSNR, SSIM, bits, bit operations), beside its float form and bicubic."""
    from ..images import list_images

    with stage(BAD_INPUT):
        pictures = list_images(args.data, "--data")
        small = [] if args.lr is None else list_images(args.lr, "--lr")
        check_json(args.json, args.model, *pictures, *small)

    import torch

    from ..evaluate import evaluate, find_pairs

    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    with stage(BAD_INPUT):
        model, backend = _load(args, threads, pictures)
        if args.scale not in (None, model.spec.scale):
            raise ValueError(f"--scale must be that of the model, {model.spec.scale}, got {args.scale}")
        if model.spec.scale == 1 and args.lr is None:
            raise ValueError("--lr must name a folder for a model for x1: what it is to mend cannot be made of the originals")
        pairs = find_pairs(args.data, args.lr, model.spec.scale, names=("--data", "--lr"))
    memory = "not enough memory for the pictures as a whole (--protocol paper needs less)"
    with stage(FAILED, memory, bad_input=BAD_INPUT), Progress() as progress:
        report = evaluate(model, pairs, protocol=args.protocol, progress=progress)

    document = {
        "model": args.model,
        "backend": backend,
        "threads": threads,
        "bits": args.bits,
        "depth": args.depth,
        "data": str(args.data),
        "lr": "bicubic" if args.lr is None else str(args.lr),
        **report.to_dict(),
        "conventions": CONVENTIONS,
        "settings": model.config.to_dict() if "converted" in report.methods else None,
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    if args.json not in (None, STDOUT):
        with stage(FAILED):
            write_json(args.json, document)
    if args.json == STDOUT:
        print(to_json(document))
    else:
        _print(report, document)


def _load(args: argparse.Namespace, threads: int, pictures: list[Path]) -> tuple[Any, str]:
    """Returns two values: the model, and where it computes, in words. The model is a converted one, or the float network of a
    checkpoint, which is checked on the pictures."""
    from ..checkpoint import is_converted
    from ..evaluate import load_float
    from ..models import configure, load_model, model_path

    path = model_path(args.model)
    if is_converted(path):
        model = load_model(path)
        for name, value in weights.given(args).items():
            raise ValueError(
                f"{weights.option(name)} must be left out for a converted model, which knows its own, got {weights.word(value)}"
            )
        configure(model, args.bits, args.backend, threads, depth=args.depth, graph=args.graph)
        return model, model.backend_summary()
    for option, value in (("--bits", args.bits), ("--depth", args.depth), ("--backend", args.backend)):
        if value != "auto":
            raise ValueError(f"{option} must be 'auto' for a float model, which knows no other, got '{value}'")
    if args.graph is not None:
        raise ValueError("--graph and --no-graph must be left out for a float model")
    settings = {"convention": weights.convention(args), "weights_key": args.weights_key}
    settings |= {"pictures": [] if args.no_check else pictures}
    with weights.misread(f"--model '{path}'"), weights.in_options():
        network: Any = load_float(path, args.res_scale, **settings)
    return network, ", ".join(filter(None, [weights.source(network.found), "PyTorch float32"]))


def _print(report: EvaluationReport, document: dict[str, Any]) -> None:
    count = len(report.images)
    source = "LR made by bicubic" if document["lr"] == "bicubic" else f"LR from {document['lr']}"
    fixed = "" if document["bits"] == "auto" else f", {document['bits']} bits"
    fixed += "" if document["depth"] == "auto" else f", depth {document['depth']}"
    protocols = {
        "whole": "whole pictures",
        "paper": f"patches of 96 LR pixels, {sum(image.patches for image in report.images)} in all",
    }
    print_table(
        [
            ("model", f"{document['model']} ({document['backend']}{fixed})"),
            ("data", f"{document['data']}: {count} picture{'s' if count > 1 else ''}, x{report.scale}, {source}"),
            ("protocol", protocols[report.protocol]),
            ("metrics", f"on luma, {report.scale} pixels shaved; bits and bit operations: docs/evaluation.md"),
        ]
    )
    print()
    columns = [
        (figure, method)
        for figure in _COLUMNS
        for method in report.methods
        if report.mean(method, figure) is not None and (figure, method) != ("mean_bits", "float")
    ]
    top = [_COLUMNS[figure][0] if i == 0 or columns[i - 1][0] != figure else "" for i, (figure, _) in enumerate(columns)]
    rows = [["", *top], ["picture", *(method for _, method in columns)]]
    for image in report.images:
        rows.append([image.name, *(_cell(figure, image.value(method, figure)) for figure, method in columns)])
    rows.append(["mean", *(_cell(figure, report.mean(method, figure)) for figure, method in columns)])
    print_columns(rows)


def _cell(figure: str, value: float | None) -> str:
    return "" if value is None else f"{value:{_COLUMNS[figure][1]}}"
