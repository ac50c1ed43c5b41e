"""Converted models as files: safetensors with integer weights and one JSON header under the metadata key "adabm"."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .config import ConvertConfig
from .networks.edsr import EDSRSpec
from .nn.conv import ConvParameters
from .nn.edsr import ConvertedEDSR

FORMAT_VERSION = 1
HEADER_KEY = "adabm"
_SCALARS = ("weight_bits", "lower", "upper", "act_bits", "layer_offset", "adaptive")
_TENSORS = ("codes", "weight_upper", "bias")


def save(model: ConvertedEDSR, path: str | Path, *, include_float: bool = True) -> None:
    """Write a converted model; a failure leaves no partial file.

    include_float: keep the float weights it was made from, so that `float_model` works after loading.
    Raises TypeError unless model is a converted model, OSError when the file cannot be written.
    """
    if not isinstance(model, ConvertedEDSR):
        raise TypeError(f"save: model must be a converted model (convert_model), got {type(model).__name__}")
    path = Path(path)
    tensors = {f"float.{key}": value for key, value in (model.float_state or {}).items() if include_float}
    tensors |= {f"plain.{key}": value for key, value in model.floats.items()}
    convs = {}
    for name, conv in model.parameters_by_name.items():
        tensors |= {f"conv.{name}.{key}": getattr(conv, key) for key in _TENSORS}
        convs[name] = {key: getattr(conv, key) for key in _SCALARS}
    header = {
        "format": FORMAT_VERSION,
        "network": "edsr",
        "spec": asdict(model.spec),
        "config": model.config.to_dict(),
        "thresholds": model.thresholds,
        "convs": convs,
    }
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    try:
        save_file(
            {key: value.contiguous() for key, value in tensors.items()}, temporary, {HEADER_KEY: json.dumps(header)}
        )
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load(path: str | Path) -> ConvertedEDSR:
    """Read a converted model. Raises FileNotFoundError, or ValueError saying what the file is instead."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load: no model file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
            tensors = {key: file.get_tensor(key) for key in file.keys()} if text else {}  # noqa: SIM118: not a dict
            keys = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"load: {path} is {_what_else(path)}") from error
    if not text:
        kind = "a float checkpoint" if any(key.endswith("weight") for key in keys) else "a file of other tensors"
        raise ValueError(f"load: {path} is {kind}, not a converted model: {_HOW}")
    header = json.loads(text)
    if header.get("format") != FORMAT_VERSION:
        raise ValueError(f"load: {path} has format {header.get('format')!r}, this version reads {FORMAT_VERSION}")
    if header.get("network") != "edsr":
        raise ValueError(f"load: {path} holds a network {header.get('network')!r}, this version knows 'edsr'")
    convs = {
        name: ConvParameters(name, **{key: tensors[f"conv.{name}.{key}"] for key in _TENSORS}, **scalars)
        for name, scalars in header["convs"].items()
    }
    return ConvertedEDSR(
        EDSRSpec(**header["spec"]),
        ConvertConfig.from_dict(header["config"]),
        convs,
        _section(tensors, "plain."),
        None if header["thresholds"] is None else tuple(header["thresholds"]),
        _section(tensors, "float.") or None,
    ).eval()


_HOW = (
    "convert and calibrate it with adabm_kernels.convert_model(state_dict, calibration=images), then adabm_kernels.save"
)


def _section(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _what_else(path: Path) -> str:
    """In words, what a file that is no safetensors file may be."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return f"a PyTorch checkpoint, not a converted model: {_HOW}"
    return "not a safetensors file, or a truncated one"
