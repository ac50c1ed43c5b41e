"""`adabm models`: lists the built-in models and their figures."""

from __future__ import annotations

import argparse
import json
from typing import Any

from . import arguments
from .common import print_columns, to_json

SUMMARY = "list the built-in models with their figures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_json_flag(parser)


def execute(args: argparse.Namespace) -> None:
    """List the built-in models: scale, bits, size, and their figures on Set5 as `adabm eval` measures them."""
    from ..checkpoint import read_header
    from ..models import DEFAULT_MODEL, builtin_models, figures_path

    figures = json.loads(figures_path().read_text(encoding="utf-8"))
    models = {}
    for name, path in builtin_models().items():
        header = read_header(path)
        config = header["config"]
        models[name] = {
            "path": str(path),
            "network": header["network"],
            "scale": header["spec"]["scale"],
            "weight_bits": config["weight_bits"],
            "act_bits": config["act_bits"],
            "exit": header.get("exit"),
            "bytes": path.stat().st_size,
            "default": name == DEFAULT_MODEL,
            "set5": figures.get(name),
        }
    if args.json:
        print(to_json({"models": models}))
        return
    print_columns(
        [
            ("model", "network", "bits", "easy tiles", "MB", "PSNR-Y", "of float", "mean bits"),
            *(_row(*item) for item in models.items()),
        ]
    )
    print("\nPSNR-Y in dB and mean bits on Set5, converted and float (adabm eval)")
    if any(model["exit"] for model in models.values()):
        print("easy tiles: pixels a side of the tiles that have no blocks computed where a picture hardly bends (--depth)")


def _row(name: str, model: dict[str, Any]) -> tuple[str, ...]:
    set5 = model["set5"]
    measured = [f"{set5['psnr_y']:.2f}", f"{set5['float_psnr_y']:.2f}", f"{set5['mean_bits']:.2f}"] if set5 else ["", "", ""]
    network = f"{model['network']} x{model['scale']}"
    bits = f"W{model['weight_bits']}A{model['act_bits']}"
    tiles = f"{model['exit']['tile']}x{model['exit']['tile']}" if model["exit"] else "none"
    return (f"{name} (default)" if model["default"] else name, network, bits, tiles, f"{model['bytes'] / 1e6:.1f}", *measured)
