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
from .models import load_model as load
from .registration import keep_old_names, register_with_torch
from .registry import backends
from .upscale import upscale, upscale_file, upscale_many

__version__ = "0.1.0"
register_with_torch()
keep_old_names()

_HOMES = {"ConvertConfig": "config", "convert_model": "convert", "save": "checkpoint"}
_HOMES |= {"read_network": "importers.reading", "BitMap": "report.bitmap", "bit_map": "report.bitmap"}
_HOMES |= {"Patch": "upscaling.picture", "export_onnx": "exporters.onnx"}
_ROOMS = ("ray",)  # modules that are imported when they are asked for
# The names that docs/python.md describes and keeps. tests/package/test_python_surface.py holds their signatures to that page.
__all__ = [
    "BitMap",
    "ConvertConfig",
    "Patch",
    "backends",
    "bit_map",
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
    from .checkpoint import save
    from .config import ConvertConfig
    from .convert import convert_model
    from .exporters.onnx import export_onnx
    from .importers.reading import read_network
    from .report.bitmap import BitMap, bit_map
    from .upscaling.picture import Patch


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    """The names that can be used, for completion in an interpreter, which would otherwise miss the names that are loaded late."""
    return [*__all__, *_ROOMS, "__version__"]
