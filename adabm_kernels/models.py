"""Finds models by the names of built-in models or by the paths of files, and applies settings to loaded models."""

# The package imports a function from here eagerly, so nothing heavy may be imported at the top.
from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .registry import device_for

if TYPE_CHECKING:
    import torch

    from .nn import ConvertedNetwork

DEFAULT_MODEL = "edsr_x4_w4a4"
_ASSETS = Path(__file__).parent / "assets"


def builtin_models() -> dict[str, Path]:
    """The models that come with the package: the path of each one's file, by name."""
    return {path.stem: path for path in sorted(_ASSETS.glob("*.safetensors"))}


def figures_path() -> Path:
    """The path of the figures of the built-in models, a JSON file with an entry for each name."""
    return _ASSETS / "figures.json"


def load_model(name_or_path: str | os.PathLike) -> ConvertedNetwork:
    """Reads the converted model with a built-in name (`builtin_models()`) or at a path.

    The package hands this function on as `adabm_kernels.load`. Raises FileNotFoundError, which says which names there are, and
    ValueError saying what the file is instead of a model; whatever it holds is checked before anything is made of it.
    """
    from .checkpoint import load

    return load(model_path(name_or_path))


def model_path(name_or_path: str | os.PathLike) -> Path:
    """The file of the model with a built-in name or at a path. Raises FileNotFoundError, which says which names there are and which
    one is nearest."""
    builtin = builtin_models()
    path = builtin.get(os.fspath(name_or_path), Path(name_or_path))
    if not path.is_file():
        names = ", ".join(builtin) or "none in this installation"
        beside = map(str, path.parent.glob("*.safetensors"))
        hint = did_you_mean(os.fspath(name_or_path), [*builtin, *beside])
        raise FileNotFoundError(f"model must be a built-in model ({names}) or an existing file, got '{name_or_path}'{hint}")
    return path


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " (did you mean 'NAME'?)" with the known name that is nearest in spelling; empty where none is near."""
    import difflib

    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f" (did you mean '{by_lower[near[0]]}'?)" if near else ""


def check_settings(bits: str | int | None, threads: int | None, depth: str | int | None = None) -> None:
    """Raises ValueError for impossible settings before anything is read or loaded."""
    if bits is not None and bits != "auto" and (isinstance(bits, bool) or bits not in range(2, 9)):
        raise ValueError(f"bits must be 'auto' or an integer from 2 to 8, got {bits!r}")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads must be an integer of at least 1, got {threads!r}")
    if depth not in (None, "auto", "full") and (type(depth) is not int or depth < 0):
        raise ValueError(f"depth must be 'auto', 'full' or a number of blocks, got {depth!r}")


def configure(
    model: ConvertedNetwork,
    bits: str | int | None,
    backend: str | None,
    threads: int | None,
    device: str | None = None,
    depth: str | int | None = None,
    graph: bool | None = None,
) -> None:
    """Applies the settings that are not None to a converted model. A setting that it has already is left alone, and so are the
    graphs it recorded.

    Raises ValueError for a device that does not exist and for a depth that the model cannot have, and RuntimeError when a device or
    the backend cannot run here, or where graphs are asked for and the model is not on a CUDA device.
    """
    if threads is not None:
        model.set_threads(threads)
    if device is not None:
        _move(model, _device(device))
    if backend is not None:
        model.set_backend(backend)
        place = device_for(backend) if device is None else None
        if place is not None and next(model.buffers()).device.type != place:  # "cuda" alone is the current card
            model.to(place)
    if bits is not None:
        model.set_bits(bits)
    if depth is not None:
        try:
            model.set_depth(depth)
        except ValueError as error:  # its message names its function, where callers name an argument or an option
            raise ValueError(str(error).removeprefix("set_depth: ")) from error
    if graph is not None:
        here = next(model.buffers()).device
        if graph and here.type != "cuda":
            raise RuntimeError(f"graph must be left out or False unless the model is on a CUDA device, it is on {here}")
        model.set_graph(graph)


def _move(model: torch.nn.Module, device: torch.device) -> None:
    """Moves the model where it is not there yet, because a move forgets what was recorded. "cuda" without a number is the current
    card."""
    import torch

    here = next(model.buffers()).device
    number = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    if here.type != device.type or (here.type == "cuda" and here.index != number):
        model.to(device)


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be one of torch's, such as 'cpu', 'cuda' or 'cuda:1', got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {name!r}")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        from .machine import gpu_name

        raise RuntimeError(f"device {name!r} cannot be used: {f'{count} cards are there' if count else gpu_name()}")
    return device


def is_converted_module(model: Any) -> bool:
    if isinstance(model, str | os.PathLike):
        return False
    import torch

    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a built-in name, a path or a module from load or convert_model, got {type(model).__name__}")
    from .nn import ConvertedModel

    if not isinstance(model, ConvertedModel):
        raise TypeError(f"model must be a converted one, a module from load or convert_model, got {type(model).__name__}")
    return True
