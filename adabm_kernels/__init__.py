"""Integer convolutions with run-time bit-widths for AdaBM super-resolution networks.

Importing the package does not load torch. Where torch is loaded, it registers the operators `torch.ops.adabm.*`. Besides, it lets
modules be imported by their old names.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# `backends` and `upscale` each name a function here and a module of the package. They are bound now, so that a later import of the
# module does not take the function's place. Neither imports torch.
from . import backends as _backends_package  # noqa: F401
from .models import builtin_models
from .registration import keep_old_names, register_with_torch
from .registry import backends
from .upscale import upscale, upscale_file, upscale_many

__version__ = "0.1.0"
register_with_torch()
keep_old_names()

_HOMES = {"ConvertConfig": "config", "convert_model": "convert", "load": "checkpoint", "save": "checkpoint"}
_HOMES |= {"export_onnx": "exporters.onnx", "read_network": "importers.reading"}
__all__ = [
    "ConvertConfig",
    "backends",
    "builtin_models",
    "convert_model",
    "export_onnx",
    "load",
    "read_network",
    "save",
    "upscale",
    "upscale_file",
    "upscale_many",
]

if TYPE_CHECKING:
    from .checkpoint import load, save
    from .config import ConvertConfig
    from .convert import convert_model
    from .exporters.onnx import export_onnx
    from .importers.reading import read_network


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    """The names that can be used, for completion in an interpreter, which would otherwise miss the names that are loaded late."""
    return [*__all__, "__version__"]
