"""`adabm calibrate`: makes a converted model from float weights and pictures."""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..config import MOST_DEPTH_LOSS
from ..files import check_target
from ..machine import cpu_name, describe_machine, describe_versions
from . import arguments, weights
from .blocks import residual_in_words
from .common import (
    BAD_INPUT,
    FAILED,
    STDOUT,
    Interrupted,
    Progress,
    check_json,
    command_line,
    print_columns,
    print_table,
    stage,
    to_json,
    write_json,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..config import ConvertConfig
    from ..networks.detect import Detected
    from ..nn import ConvertedNetwork

SUMMARY = "make a converted model of float weights"

CONFIG_OPTIONS = (
    "weight_bits",
    "act_bits",
    "quantize",
    "recipe",
    "steps",
    "target_bits",
    "objective",
    "seed",
    "depths",
    "depth_loss",
    "residual",
    "equalize",
)  # named as in ConvertConfig
TUNING_OPTIONS = ("tolerance", "candidates")  # named as in BestTuning
CHECKED_PICTURES = 16  # the most pictures that the final PSNR is measured on
CHECKED_SIDE = 96  # the most low-resolution pixels a side of each; larger ones are cut to their middle
OWN_PICTURES = 100  # the most pictures of which a part is also looked at before they are shrunk
OWN_SIDE = 192  # the most pixels a side of such a part, from the middle of its picture
FEW_PICTURES = 16  # with fewer, single pictures decide the percentiles from which image thresholds are taken


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--weights",
        metavar="W",
        type=arguments.path,
        required=True,
        help="float weights: .pt, .pth, .ckpt, .safetensors, ncnn's .param with its .bin beside it, .onnx",
    )
    add(
        "--images",
        metavar="DIR",
        type=arguments.path,
        required=True,
        help="folder of about 100 low-resolution pictures, PNG or JPEG; photographs with --downscale",
    )
    add(
        "-o",
        "--output",
        metavar="M",
        type=arguments.path,
        required=True,
        help="model to write, .safetensors; M.resume keeps progress",
    )
    arguments.add_existing(parser)
    add(
        "--downscale",
        metavar="F",
        type=arguments.number(1),
        default=1,
        help="first shrink the pictures F times by MATLAB's bicubic",
    )
    add(
        "--weight-bits",
        metavar="2..8",
        type=arguments.integer(2, 8),
        help="bits of the weights (default: 4, and 8 for Real-ESRGAN's networks)",
    )
    add(
        "--act-bits",
        metavar="4..6",
        type=arguments.integer(2, 8),
        help="base bits of the activations, up to two less or more by image and layer (default: 4, and 8 for Real-ESRGAN's "
        "networks)",
    )
    add(
        "--fixed",
        action=argparse.BooleanOptionalAction,
        help="give every image and layer these --act-bits, which may then be 2 to 8 (default: only for Real-ESRGAN's networks)",
    )
    add(
        "--quantize",
        choices=("full", "body"),
        default="full",
        help="all convolutions, or those of the residual blocks (default: %(default)s)",
    )
    add(
        "--recipe",
        choices=("best", "paper"),
        default="best",
        help="everything the kernels allow, or AdaBM as published (default: %(default)s)",
    )
    steps = "steps of fine-tuning, 0 for none (default: as recipe and network suit)"
    add("--steps", metavar="N", type=arguments.integer(0), help=steps)
    add(
        "--tolerance",
        metavar="SHARE",
        type=arguments.share,
        help="end fine-tuning, before --steps, once 50 steps lower its loss by less than this share, such as 0.02 (default: never)",
    )
    add(
        "--candidates", metavar="K", type=arguments.integer(1), help="fine-tune on the most detailed of K random crops (default: 1)"
    )
    add(
        "--target-bits",
        metavar="B",
        type=arguments.number(1),
        help="mean bits to choose layers for (default: somewhat below --act-bits)",
    )
    add("--objective", choices=("bits", "latency"), help="what the choice of layers saves: bits, or measured time (default: bits)")
    add(
        "--depths",
        choices=("auto", "none"),
        default="auto",
        help="auto finds when a tile of a picture bends so little that it is made without the network's blocks, none leaves that "
        "out (default: auto, with recipe best)",
    )
    add(
        "--depth-loss",
        metavar="DB",
        type=arguments.number(0, MOST_DEPTH_LOSS),
        help="dB by which the result may lie further from the float network, for more tiles without blocks (default: 0)",
    )
    add(
        "--residual",
        choices=("auto", "float32", "int16"),
        default="auto",
        help="how features that pass the blocks by are held; int16 halves their bytes (default: auto, int16 with recipe best)",
    )
    add(
        "--equalize",
        choices=("auto", "on", "off"),
        default="auto",
        help="factors on channels that let few bits lose less (default: auto, on with recipe best for Real-ESRGAN's networks)",
    )
    add(
        "--start", metavar="MODEL", type=arguments.path, help="a converted model of the same network, whose bit maps are taken over"
    )
    add("--select", metavar="N", type=arguments.integer(1), help="use only the N most informative pictures")
    add("--device", default="auto", help="where torch computes: auto, cpu or cuda (default: auto, a GPU where torch finds one)")
    add("--seed", metavar="S", type=arguments.integer(0), help="number that every random choice begins with (default: 1)")
    add("--threads", metavar="N", type=arguments.integer(1), help="CPU threads (default: as many as torch would use)")
    arguments.add_reading(parser)
    arguments.add_json_file(parser)


def execute(args: argparse.Namespace) -> None:
    """Choose bit-widths and ranges for float weights on low-resolution pictures, fine-tune them, write the converted model."""
    from ..images import list_images

    kept = args.output.with_name(f"{args.output.name}.resume")
    with stage(BAD_INPUT):
        _check_output(args)
        _check_options(args)
        files = list_images(args.images, "--images")
        if not args.weights.is_file():
            raise ValueError(f"--weights must be an existing file, got '{args.weights}'")
        check_json(args.json, args.output, kept, args.weights, args.start, *files)
    if len(files) < FEW_PICTURES:
        warnings.warn(f"--images holds {len(files)} pictures; thresholds from fewer than {FEW_PICTURES} are rough", stacklevel=1)

    import torch

    from ..calibrate import calibrate, checked_device
    from ..checkpoint import save
    from ..convert import convert_model

    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    with stage(BAD_INPUT):
        device = checked_device(_device(args.device))
        state, found = _float_state(args)
        config = _config(args, found.spec.sharpens)
        if config.residual == "int16" and (why := found.spec.why_float_residual(config.quantize)):
            raise ValueError(f"--residual must be auto or float32 for '{args.weights}', got int16: {why}")
        start = None if args.start is None else _start(args.start)
    pictures = _Pictures(files, args.downscale)
    try:
        with stage(FAILED, bad_input=BAD_INPUT), Progress() as progress:
            chosen = pictures if args.select is None else pictures.most_informative(args.select)
            own = pictures.own_resolution() if args.downscale > 1 and config.finds_exit else None
            settings = weights.given(args) | {"check": not args.no_check, "start": start, "resume": kept, "device": device}
            with weights.misread(f"--weights '{args.weights}'"):
                simulated = calibrate(state, chosen, config, progress, own_resolution=own, found=found, **settings)
            model = convert_model(simulated)
            model.provenance = _provenance(args, pictures, threads, device, simulated.report)
            if args.output.exists() and args.existing == "refuse":
                raise FileExistsError(
                    f"cannot write '{args.output}': it has appeared during the run; move it away and run the same command, "
                    "which goes on from here"
                )
            save(model, args.output)
    except KeyboardInterrupt:
        raise Interrupted(_how_to_continue(args, kept)) from None
    kept.unlink(missing_ok=True)
    try:
        with stage(FAILED):
            model.set_threads(threads)
            report = _report(args, config, model, pictures, simulated.report)
            suited = _suited(args, config, found.spec.sharpens)
            if args.json not in (None, STDOUT):
                write_json(args.json, report)
    except KeyboardInterrupt:
        raise Interrupted(f"'{args.output}' is complete, its figures were not measured") from None
    if args.json == STDOUT:
        print(to_json(report))
    else:
        _print(args, report, weights.source(found), suited)


# ---- input


def _check_output(args: argparse.Namespace) -> None:
    if args.output.suffix != ".safetensors":
        raise ValueError(f"--output must end in .safetensors, got '{args.output}'")
    check_target(args.output)
    if args.output.exists():
        if args.weights.exists() and os.path.samefile(args.output, args.weights):
            raise ValueError(f"--output must not be the weights themselves, got '{args.output}'")
        if args.existing == "refuse":
            raise ValueError(f"--output must not exist yet without --existing replace, got '{args.output}'")


def _check_options(args: argparse.Namespace) -> None:
    """Refuses options that suit no network, before anything is read."""
    try:
        _config(args, sharpens=True)
    except ValueError:
        _config(args, sharpens=False)


def _config(args: argparse.Namespace, sharpens: bool) -> ConvertConfig:
    """The settings of the calibration. An error in them names the option at fault. sharpens: NetworkSpec.sharpens of the
    network."""
    from ..config import BestTuning, ConvertConfig

    usual = _usual(args, sharpens)
    if usual["adaptive"] and args.act_bits is not None and not 4 <= args.act_bits <= 6:
        rule = "4, 5 or 6 without --fixed (images and layers add up to 2 or take them off)"
        raise ValueError(f"--act-bits must be {rule}, got {args.act_bits}")
    given: dict[str, Any] = {name: value for name in CONFIG_OPTIONS if (value := getattr(args, name)) is not None}
    tuning: dict[str, Any] = {name: value for name in TUNING_OPTIONS if (value := getattr(args, name)) is not None}
    if tuning and args.recipe != "best":
        name = next(iter(tuning))
        raise ValueError(f"--{name} must be left out with --recipe {args.recipe}, which is tuned as published, got {tuning[name]}")
    if tuning:
        given["tuning"] = BestTuning(**tuning)
    try:
        config = ConvertConfig(**usual | given)
    except (TypeError, ValueError) as error:
        raise ValueError(re.sub(r"^ConvertConfig: (\w+)", lambda m: f"--{m[1].replace('_', '-')}", str(error))) from error
    if args.depth_loss is not None and not config.finds_exit:
        needed = "--depths auto, --recipe best and --quantize full"
        raise ValueError(f"--depth-loss must be left out without {needed}, which find easy tiles, got {args.depth_loss:g}")
    return config


def _usual(args: argparse.Namespace, sharpens: bool) -> dict[str, Any]:
    """The values of options that were not given. An option that chooses bits by layer also turns such bits on."""
    from ..config import usual_settings

    by_layer = args.target_bits is not None or args.objective == "latency" or args.start is not None
    return usual_settings(args.recipe, sharpens, False if args.fixed is None and by_layer else args.fixed, args.act_bits)


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def _float_state(args: argparse.Namespace) -> tuple[dict[str, Any], Detected]:
    """Returns two values: the checkpoint, and the network that was recognised in it."""
    from ..checkpoint import is_converted
    from ..importers.reading import read_known
    from ..networks.detect import detect

    if is_converted(args.weights):
        raise ValueError(f"--weights must be float weights, and '{args.weights}' is a converted model already")
    state, res_scale = read_known(args.weights)
    res_scale = res_scale if args.res_scale is None else args.res_scale
    try:
        with weights.in_options():
            convention = weights.convention(args)
            try:
                found = detect(state, res_scale, convention=convention, weights_key=args.weights_key)
            except ValueError as error:
                state = _state_by_spandrel(state, error)
                found = detect(state, res_scale, convention=convention)
    except ValueError as error:
        raise ValueError(f"--weights '{args.weights}': {error}") from error
    if found.calibrated:
        raise ValueError(f"--weights must be float weights, and '{args.weights}' is calibrated already")
    return state, found


def _state_by_spandrel(state: dict[str, Any], error: ValueError) -> dict[str, Any]:
    """The state dict of a known network that only the package spandrel recognises in a checkpoint."""
    from ..importers.spandrel import recognised_by_spandrel

    found = recognised_by_spandrel(state, error)
    if not found.known:
        raise ValueError(
            f"spandrel knows it as {found.called}, which is none of the networks that this command takes; in Python "
            "convert_model(read_network(path), ...) converts it"
        ) from error
    return found.module.state_dict()


def _start(path: Path) -> ConvertedNetwork:
    """Loads the converted model whose bit maps are taken over."""
    from ..checkpoint import load

    try:
        return load(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"--start must be a converted model: {error}") from error


class _Pictures:
    """The low-resolution pictures, which are read one at a time and checked.

    files: the pictures in use. count: the number of all pictures. Reading fills the others. middles: a crop of each picture. parts:
    crops of some pictures from before they were shrunk. digest: a digest of all pictures.
    """

    def __init__(self, files: list[Path], downscale: float):
        self.files, self.downscale, self.count = files, downscale, len(files)
        self.middles: list[np.ndarray] = []
        self.parts: list[np.ndarray] = []
        self.digest = ""

    def __iter__(self) -> Iterator[torch.Tensor]:

        digest = hashlib.sha256()
        self.middles, self.parts = [], []
        with Progress() as progress:
            for index, path in enumerate(self.files):
                progress(index, len(self.files), "reading pictures")
                with stage(BAD_INPUT):
                    whole = self._read(path)
                    rgb = self._shrunk(whole)
                if index % -(-self.count // OWN_PICTURES) == 0:
                    self.parts.append(_middle(whole, OWN_SIDE))
                digest.update(repr(rgb.shape).encode() + rgb.tobytes())
                self.middles.append(_middle(rgb, CHECKED_SIDE))
                yield _tensor(rgb)
        self.digest = digest.hexdigest()

    def own_resolution(self) -> Iterator[torch.Tensor]:
        """Yields the parts of pictures that were kept in their own resolution. The pictures must have been read before."""
        yield from map(_tensor, self.parts)

    def most_informative(self, count: int) -> list[torch.Tensor]:
        """Returns the `count` images that cover the set best (calibration/images.py), and leaves out all others from then on."""
        from ..calibration.images import most_informative

        with stage(BAD_INPUT):
            if count > len(self.files):
                raise ValueError(f"--select must be at most the number of pictures, {len(self.files)}, got {count}")
        pictures = list(self)
        chosen = most_informative([picture[0].float() for picture in pictures], count)
        self.files, self.middles = [self.files[i] for i in chosen], [self.middles[i] for i in chosen]
        return [pictures[i] for i in chosen]

    def _read(self, path: Path) -> np.ndarray:
        """Reads a picture as uint8 [H, W, 3]. Raises ValueError where it is too small."""
        from ..calibration.images import MIN_SIDE
        from ..images import read_image

        rgb, factor = read_image(path), self.downscale
        h, w = rgb.shape[:2]
        least = MIN_SIDE * factor
        if min(h, w) < least:
            after = "" if factor == 1 else f" ({MIN_SIDE} after --downscale {factor:g})"
            raise ValueError(f"--images must be at least {least:g} pixels a side{after}, got {w}x{h} of '{path}'")
        return rgb

    def _shrunk(self, rgb: np.ndarray) -> np.ndarray:
        from ..evaluation.resize import imresize

        factor = self.downscale
        if factor == 1:
            return rgb
        h, w = rgb.shape[:2]
        if float(factor).is_integer():
            # Only whole low-resolution pixels are kept, because those at the edge would otherwise be made of fewer pixels.
            rgb = rgb[: int(h // factor * factor), : int(w // factor * factor)]
        return imresize(rgb, 1 / factor)


def _middle(rgb: np.ndarray, side: int) -> np.ndarray:
    y, x = (max(length - side, 0) // 2 for length in rgb.shape[:2])
    return rgb[y : y + side, x : x + side].copy()


def _tensor(rgb: np.ndarray) -> torch.Tensor:
    """A picture [H, W, 3] as a tensor uint8 [1, 3, H, W]."""
    import torch

    return torch.from_numpy(rgb.transpose(2, 0, 1).copy())[None]


# ---- what is stored and printed


def _how_to_continue(args: argparse.Namespace, kept: Path) -> str:
    if not kept.exists():
        return "there was nothing to keep yet, and nothing was written"
    return f"what was done is kept in '{kept}'; to go on from there: {command_line(args.argv)}"


def _provenance(
    args: argparse.Namespace, pictures: _Pictures, threads: int, device: torch.device, report: dict[str, Any]
) -> dict[str, Any]:
    """Everything that is needed to repeat a run, the settings (`ConvertConfig`) aside and without paths of this machine."""
    from ..importers.reading import files_of

    digest = hashlib.sha256()
    for path in files_of(args.weights):
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    versions = describe_versions()
    return {
        "command": "calibrate",
        "weights": {"file": args.weights.name, "sha256": digest.hexdigest()},
        "images": {"folder": args.images.resolve().name, "count": pictures.count, "sha256": pictures.digest},
        "downscale": args.downscale,
        "select": args.select,
        "start": None if args.start is None else args.start.name,
        **{name: getattr(args, name) for name in weights.READING_OPTIONS},
        "no_check": args.no_check,
        "threads": threads,
        "cpu": cpu_name(),
        "device": _device_name(device),
        "versions": {name: versions[name] for name in ("adabm-kernels", "python", "torch", "numpy", "pillow")},
        "seconds": sum(stage["seconds"] for stage in report["stages"]),
    }


def _device_name(device: torch.device) -> str:
    """The card that torch computed on, or "cpu"."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _report(
    args: argparse.Namespace, config: ConvertConfig, model: ConvertedNetwork, pictures: _Pictures, run: dict[str, Any]
) -> dict[str, Any]:
    """The figures of the finished model on the pictures it was calibrated on."""

    tensors = [_tensor(rgb).float() for rgb in pictures.middles]
    layer_bits = [model.layer_bits(x) for x in tensors]
    count = min(CHECKED_PICTURES, len(tensors))
    checked = [tensors[i * len(tensors) // count] for i in range(count)]
    return {
        "output": str(args.output),
        "bytes": args.output.stat().st_size,
        "network": {"network": model.spec.network, **asdict(cast(Any, model.spec))},
        "settings": config.to_dict(),
        "run": run,
        "psnr_db": _psnr_to_float(model, checked),
        "psnr_pictures": count,
        "mean_bits": sum(float(model.mean_bits(x)) for x in tensors) / len(tensors),
        "pictures": [
            {"name": path.name, "offset": int(model.image_offsets(x)), "mean_bits": float(model.mean_bits(x))}
            for path, x in zip(pictures.files, tensors, strict=True)
        ],
        "layers": [
            {
                "name": name,
                "weight_bits": model.parameters_by_name[name].weight_bits,
                "offset": model.parameters_by_name[name].layer_offset,
                "mean_bits": sum(int(bits[name]) for bits in layer_bits) / len(layer_bits),
            }
            for name in layer_bits[0]
        ],
        "provenance": model.provenance,
        "machine": describe_machine(),
    }


def _psnr_to_float(model: ConvertedNetwork, pictures: list[torch.Tensor]) -> float:
    """The mean over the pictures of the PSNR to the float network in dB: RGB in 0..255, both outputs clamped and not rounded."""
    from ..evaluate import run
    from ..evaluation.metrics import psnr

    teacher = model.float_model()
    values = [psnr(run(model, x).clamp(0, 255), run(teacher, x).clamp(0, 255), 255.0) for x in pictures]
    return sum(values) / len(values)


def _residual(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The rows of the table about features that are held in 16 bits."""
    if found is None:
        return []
    return [("residual", f"{residual_in_words(found['fraction'])} (the largest over the pictures is {found['largest']:.6g})")]


def _equalized(found: dict[str, float] | None) -> list[tuple[str, str]]:
    """The rows of the table about the factors on channels."""
    if found is None:
        return []
    gain = 10 * math.log10(max(found["before"], 1e-30) / max(found["after"], 1e-30))
    return [("equalize", f"factors on channels, {gain:.1f} dB less noise of few bits predicted")]


def _easy_tiles(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The rows of the table about the exit. There are none where no exit was looked for."""
    if found is None:
        return []
    said = f"none: {found['why']}" if "why" in found else "none"
    if "threshold" in found:
        gain = found["psnr_db"] - found["psnr_without_db"]
        bends = f"those that bend by {found['threshold']} levels at most"
        said = f"{found['share']:.0%} without blocks, {bends} ({gain:+.2f} dB over all tiles against float)"
    return [("easy tiles", said)]


def _suited(args: argparse.Namespace, config: ConvertConfig, sharpens: bool) -> str:
    """A phrase that names the settings which were chosen because the network sharpens; "" where there are none."""
    others, usual = _usual(args, sharpens=False), _usual(args, sharpens)
    filled = [name for name in ("weight_bits", "act_bits", "steps") if getattr(args, name) is None and usual[name] != others[name]]
    words = [f"--{name.replace('_', '-')} {getattr(config, name)}" for name in filled]
    if args.fixed is None and usual["adaptive"] != others["adaptive"]:
        words.append("--fixed")
    return f"{' '.join(words)}, which suits a network that was trained to sharpen" if words else ""


def _print(args: argparse.Namespace, report: dict[str, Any], source: str, suited: str) -> None:
    run, settings = report["run"], report["settings"]
    shrunk = "" if args.downscale == 1 else f", shrunk {args.downscale:g} times"
    stages = ", ".join(f"{stage['name']} {stage['seconds']:.0f} s" for stage in run["stages"])
    seconds = report["provenance"]["seconds"]  # seconds of all stages, including those before an interruption
    resumed = f"; interrupted at step {run['resumed_at']}" if run.get("resumed_at") else ""
    offsets = [picture["offset"] for picture in report["pictures"]]
    shares = ", ".join(f"{offsets.count(value)} {words}" for value, words in ((-1, "one less"), (0, "as is"), (1, "one more")))
    tuned = f"{run['steps']} steps" if run["steps"] else "not fine-tuned"
    if run["steps"] < settings["steps"]:
        tuned += f" of {settings['steps']}, converged"
    bits = f"W{settings['weight_bits']}A{settings['act_bits']}"
    print_table(
        [
            ("network", f"{report['network']['network']} x{report['network']['scale']}"),
            *([("weights", source)] if source else []),
            ("settings", f"{bits} {settings['quantize']}, recipe {settings['recipe']}, {tuned}, seed {settings['seed']}"),
            *([("defaults", suited)] if suited else []),
            ("pictures", f"{len(offsets)} of '{args.images}'{shrunk}"),
            ("time", f"{seconds:.0f} s ({stages}{resumed})"),
            ("mean bits", f"{report['mean_bits']:.2f} over the pictures ({shares})"),
            *_equalized(run.get("equalized")),
            *_residual(run.get("residual")),
            *_easy_tiles(run.get("exit")),
            ("PSNR", f"{report['psnr_db']:.2f} dB (converted against float, {report['psnr_pictures']} calibration pictures)"),
            ("written", f"{report['output']} ({report['bytes'] / 1e6:.1f} MB)"),
        ]
    )
    print()
    layers = [(layer["name"], f"{layer['weight_bits']}", f"{layer['mean_bits']:.2f}") for layer in report["layers"]]
    print_columns([("layer", "weight bits", "mean bits"), *layers])
