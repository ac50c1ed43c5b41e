"""`adabm info`: shows what this machine can do, or what the file of a model says."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ..config import BestTuning
from ..machine import describe_machine, describe_versions
from . import arguments
from .blocks import exit_in_words, residual_in_words
from .calibrate import CONFIG_OPTIONS, TUNING_OPTIONS
from .common import BAD_INPUT, command_line, option, print_table, stage, to_json
from .weights import READING_OPTIONS, word

SUMMARY = "show the machine and the backends, or a model"

Sections = dict[str, list[tuple[str, str]]]
Read = TypeVar("Read")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="NAME|PATH", nargs="?", help="built-in model or a converted model's file")
    arguments.add_json_flag(parser)


def execute(args: argparse.Namespace) -> None:
    """Show the machine, the versions, and why each backend can or cannot run here; or what a model is and how it was made."""
    report = _of_machine() if args.model is None else _of_model(args.model)
    if args.json:
        print(to_json(report))
        return
    sections = _machine_sections(report) if args.model is None else _of_file(report, _model_sections)
    for i, (title, rows) in enumerate(sections.items()):
        print("\n" * bool(i) + title)
        print_table(rows, indent="  ")


def _of_machine() -> dict[str, Any]:
    from .. import native
    from ..models import builtin_models
    from ..registry import backends

    return {
        "machine": describe_machine(),
        "versions": describe_versions(),
        "native": native.describe(),
        "backends": {name: {"available": status.available, "reason": status.reason} for name, status in backends().items()},
        "gpu_convolutions": _gpu_convolutions(),
        "models": {name: str(path) for name, path in builtin_models().items()},
    }


def _gpu_convolutions() -> dict[str, dict[str, str]]:
    """The backend that layers of usual shapes take on a GPU, with the reason. It is empty where not both GPU backends can use the
    GPU."""
    from ..registry import GPU_BACKENDS, ConvShape, Problem, backends, choose

    found = backends()
    if not all(found[name].available for name in GPU_BACKENDS):
        return {}
    shapes = {
        "body": ConvShape(64, 64, 3, 3, bits=(3, 5), four_bits=True),
        "body, 8 bits": ConvShape(64, 64, 3, 3),
        "head": ConvShape(64, 3, 3, 3),
        "fusion": ConvShape(64, 576, 1, 1, bits=(3, 5), four_bits=True),
        "upsampler": ConvShape(256, 64, 3, 3, shuffle=2),
        "collapsed tail": ConvShape(48, 64, 5, 5, shuffle=4, border_kernels=True),
        "last": ConvShape(3, 64, 3, 3),
    }
    choices = {name: choose(Problem("cuda", shape)) for name, shape in shapes.items()}
    return {name: {"backend": choice.backend, "reason": "; ".join(choice.rejected.values())} for name, choice in choices.items()}


def _machine_sections(report: dict[str, Any]) -> Sections:
    machine = report["machine"]
    native = [(key.replace("_", " ").replace("isa", "instruction set"), _listed(value)) for key, value in report["native"].items()]
    backends = [(name, f"{'yes' if it['available'] else 'no':3}  {it['reason']}") for name, it in report["backends"].items()]
    layers = [(name, f"{it['backend']:6}  {it['reason']}".rstrip()) for name, it in report["gpu_convolutions"].items()]
    return {
        "Machine": [
            ("system", f"{machine['system']}, {machine['cores']} cores usable"),
            ("CPU", machine["cpu"]),
            ("GPU", machine["gpu"]),
            *report["versions"].items(),
        ],
        "Native libraries": native,
        "Backends": backends,
        **({"Convolutions on this GPU": layers} if layers else {}),
        "Built-in models": list(report["models"].items()) or [("none", "no model file in this installation")],
    }


def _of_model(name: str) -> dict[str, Any]:
    from ..models import builtin_models, model_path

    with stage(BAD_INPUT):
        path = model_path(name)
        from ..checkpoint import read_header

        header = read_header(path)
    report = {"model": name, "path": str(path)} | header
    convs = _of_file(report, lambda report: _bits_of(report.pop("convs")))
    return report | {
        "built_in": name in builtin_models(),
        "bytes": path.stat().st_size,
        "convolutions": convs,
        "exit": header.get("exit"),  # files from before exits were introduced have none
        "fraction": header.get("fraction"),  # files from before 16-bit features were introduced have none
    }


def _bits_of(convs: dict[str, dict[str, Any]]) -> dict[str, int]:
    """The number of convolutions by their bit-width."""
    bits: dict[str, int] = {}
    for conv in convs.values():
        key = f"{conv['weight_bits']}-bit weights, {_act_bits(conv)}"
        bits[key] = bits.get(key, 0) + 1
    return bits


def _of_file(report: dict[str, Any], read: Callable[[dict[str, Any]], Read]) -> Read:
    """Returns the result of `read` on a model's report. Anything wrong in the file is raised as one sentence."""
    from ..checkpoint import explained

    with stage(BAD_INPUT), explained(Path(report["path"])):
        return read(report)


def _act_bits(conv: dict[str, Any]) -> str:
    if not conv["adaptive"]:
        return f"{conv['act_bits']}-bit activations"
    return f"{conv['act_bits'] + conv['layer_offset']}-bit activations, one more or less as the image asks"


def _model_sections(report: dict[str, Any]) -> Sections:
    thresholds = report["thresholds"]
    return {
        "Model": [
            ("file", f"{report['path']} ({report['bytes'] / 1e6:.1f} MB, format {report['format']})"),
            ("network", f"{report['network']}: {_listed(_shown(report['spec']))}"),
            ("image thresholds", "none, not adaptive" if thresholds is None else "{:.4g} and {:.4g}".format(*thresholds)),
            ("residual", residual_in_words(report["fraction"])),
            ("easy tiles", exit_in_words(report["exit"])),
        ],
        "Convolutions": [(f"{count}", kind) for kind, count in report["convolutions"].items()],
        "Settings": [(key.replace("_", " "), _listed(value)) for key, value in report["config"].items()],
        "Made": _making(report) if report["provenance"] else [("how", "not recorded in this file")],
    }


def _making(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of a table that say how a model was made, with the command that makes it again."""
    made, config = report["provenance"], report["config"]
    options = {"weights": made["weights"]["file"], "images": made["images"]["folder"]}
    options |= {"downscale": made["downscale"] if made["downscale"] != 1 else None}
    options |= {name: config.get(name) for name in CONFIG_OPTIONS}
    options["depth_loss"] = config.get("depth_loss") or None  # refused, even as 0, of settings that find no easy tiles
    tuning, usual = config.get("tuning") or {}, asdict(BestTuning())
    options |= {name: tuning[name] for name in TUNING_OPTIONS if tuning.get(name, usual[name]) != usual[name]}
    options |= {"select": made.get("select"), "start": made.get("start")}
    options |= {name: made.get(name) for name in READING_OPTIONS}  # files from before these options have res_scale alone
    options |= {"threads": made["threads"], "output": Path(report["path"]).name}
    given = {name: value for name, value in options.items() if value is not None}
    words = [part for name, value in given.items() for part in (option(name), word(value))]
    words += [] if (fixed := _fixed(report)) is None else ["--fixed" if fixed else "--no-fixed"]
    words += ["--no-check"] if made.get("no_check") else []
    return [
        ("command", command_line([made["command"], *words])),
        ("weights", f"{made['weights']['file']}, SHA-256 {made['weights']['sha256']}"),
        ("images", f"{made['images']['count']} in {made['images']['folder']}, SHA-256 of their pixels {made['images']['sha256']}"),
        ("machine", f"{made['cpu']}, {made['threads']} thread{'s' if made['threads'] > 1 else ''}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in made["versions"].items())),
        ("time", f"{made['seconds']:.0f} s"),
    ]


def _fixed(report: dict[str, Any]) -> bool | None:
    """The option of `calibrate` that makes bits the same everywhere, or not; None where it need not be given."""
    from ..networks.known import SPECS

    if not report["config"].get("adaptive", True):
        return True
    spec = SPECS.get(report["network"])
    return False if spec is not None and spec.sharpens else None


def _shown(spec: dict[str, Any]) -> dict[str, Any]:
    """The hyper-parameters of a network as they are shown. A mean colour that the network does not use is left out, and of a graph
    only its size is shown."""
    if "definition" in spec:
        graph = spec["definition"]
        sizes = {"nodes": len(graph["nodes"]), "outputs": len(graph["outputs"])}
        return sizes | {key: spec[key] for key in ("input_channels", "multiple", "size")}
    return {key: value for key, value in spec.items() if key != "mean" or spec["mean_shift"]}


def _listed(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_listed(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "; ".join(map(_listed, value)) or "none"
    return str(value)
