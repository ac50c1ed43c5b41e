"""Reads checkpoints as training programs write them, without running code in the files, and finds the networks inside."""

from __future__ import annotations

import re
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from ..files import utf8_name
from .known import ANCHORS, by_scale
from .layouts import listed, shortened

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".tar", ".bin", ".pkl")
DEPTH = 4  # levels of nested dictionaries that are looked into
# The most that a checkpoint may hold: several times as much as the largest known checkpoint, and little enough to be searched in a
# second.
MOST_TENSORS = 20_000  # tensors in one dictionary
MOST_NETWORKS = 8  # the most networks that are tried where the caller names none
_MOST_PREFIXES = 64  # the most name prefixes of networks in one dictionary
_MOST_UNPACKED = 4  # how many times the size of a file its contents may have; torch compresses nothing
_UNPACKED_BYTES = 1 << 24  # the bytes that the contents of a file of any size may have
# Segments that DataParallel and torch.compile put into names, and counters that optimisers, averaging and profilers leave there.
_SEGMENTS = re.compile(r"(^|\.)(?:(?:module|_orig_mod)\.)+")
_COUNTERS = re.compile(r"(^|\.)(n_averaged|step_counter|total_ops|total_params)$")
_NORMED = {  # for the magnitude of a weight-normed weight, the names of its direction and of the plain weight
    ".weight_g": (".weight_v", ".weight"),
    ".parametrizations.weight.original0": (".parametrizations.weight.original1", ".weight"),
}


def load_state(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint (SUFFIXES, in either case), with tensors on the CPU. No code in the file is run.

    Raises FileNotFoundError where there is no such file, and ValueError for a file of another kind, for one that holds more than
    tensors and plain values, and for one that cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"load_state: no such file: {path}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        known = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise ValueError(f"load_state: a checkpoint ends in {known}, got {path}")
    if suffix == ".safetensors" or _is_safetensors(path):
        from safetensors import safe_open

        try:
            with utf8_name(path) as name, safe_open(name, framework="pt") as file:
                keys = list(file.keys())
                state = {key: file.get_tensor(key) for key in keys if len(keys) <= MOST_TENSORS}
        except MemoryError:
            raise
        except Exception as error:  # also raised for dtypes that this release of torch lacks
            raise ValueError(f"load_state: {path} is not a safetensors file ({error})") from error
        _check_count(f"load_state: {path}", len(keys))
        return state
    if _is_torchscript(path):
        raise ValueError(
            f"load_state: {path} is a TorchScript program, not a checkpoint of plain tensors: save its weights with "
            f"torch.save(torch.jit.load('{path.name}').state_dict(), 'weights.pt')"
        )
    _check_unpacked(path)
    try:
        with torch.serialization.safe_globals(_numpy_numbers()):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # on damaged files the unpickler raises almost anything: IndexError, struct.error, ...
        if classes := _foreign_classes(path, str(error)):
            raise ValueError(_how_to_save_anew(path, classes)) from error
        reason = f"{type(error).__name__}: {_plain(error)}"
        raise ValueError(f"load_state: {path} is damaged or not a checkpoint of plain tensors ({reason})") from error
    if not isinstance(state, dict):
        raise ValueError(f"load_state: {path} holds a {type(state).__name__}, not a state dict")
    return state


def _check_count(name: str, count: int) -> None:
    if count > MOST_TENSORS:
        raise ValueError(f"{name} must hold at most {MOST_TENSORS} tensors in one dictionary, got {count}")


def _check_unpacked(path: Path) -> None:
    """Raises ValueError for an archive whose contents are far larger than the file: torch would unpack them into memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            held = sum(item.file_size for item in archive.infolist())
    except Exception:  # zipfile raises almost anything for a damaged archive
        return
    size = path.stat().st_size
    if held > max(_MOST_UNPACKED * size, _UNPACKED_BYTES):
        raise ValueError(f"load_state: {path} must hold about as much as it has bytes, {size}, and {held} are packed into it")


def _is_safetensors(path: Path) -> bool:
    """Returns whether a file begins as safetensors files do, whatever its name: with eight bytes that hold a length, and then
    JSON."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except Exception:  # zipfile raises almost anything for a damaged archive
        return False


def _numpy_numbers() -> list[Any]:
    """The classes from which a file builds a NumPy number, such as the best PSNR. None of them makes Python objects, which could be
    anything."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in "?bhilqBHILQefdSU"}
    return [
        (np.dtype, "numpy.dtype"),
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        *((kind, f"{kind.__module__}.{kind.__name__}") for kind in kinds),
    ]


def _foreign_classes(path: Path, message: str) -> list[str]:
    """The Python classes, with their modules, that a file needs and that hold more than tensors."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file from before PyTorch 1.6, for which torch's message names the first class, or a damaged file
        found = []
    found = sorted(set(found) - {name for _, name in _numpy_numbers()})
    return found or re.findall(r"(?:GLOBAL|Unsupported class|got <class) '?([\w.]+)", message)[:1]


_UNSAFE = "weights_only"  # the setting that torch advises to turn off
_MOST_WORDS = 300  # the most characters of torch's message that are repeated


# Names of classes that hold nothing but values.
_HARMLESS = re.compile(
    r"argparse\.Namespace|collections\.(OrderedDict|defaultdict|Counter)|datetime\.\w+|pathlib\.\w*Path|_codecs\.encode|typing\.Any"
    r"|numpy\.(ndarray|dtype|dtypes\.\w+|(_?core)\.multiarray\.(_reconstruct|scalar))"
    r"|omegaconf\.(dictconfig\.DictConfig|listconfig\.ListConfig|base\.(Container)?Metadata|nodes\.\w+Node)"
    r"|easydict\.EasyDict|addict\.addict\.Dict|yacs\.config\.CfgNode"
)
_NAMED = 8  # the most classes that a message lists


def _in_words(classes: list[str]) -> str:
    more = f" and {len(classes) - _NAMED} more" if len(classes) > _NAMED else ""
    return ", ".join(map(shortened, classes[:_NAMED])) + more


def _how_to_save_anew(path: Path, classes: list[str]) -> str:
    names = _in_words(classes)
    allowed = ", ".join(classes) + (", numpy.dtype, *map(type, map(numpy.dtype, 'fdil?'))" if "numpy.ndarray" in classes else "")
    modules = ", ".join(sorted({"torch", *(name.rpartition(".")[0] for name in classes if "." in name)}))
    if not all(map(_HARMLESS.fullmatch, classes)):  # allowing any other class or function by its name may run what the file says
        how = "in the program that made it, save the weights of this network with torch.save(model.state_dict(), 'weights.pt')"
    else:
        how = (
            f"where you trust the file, import {modules} and save its weights alone with "
            f"`with torch.serialization.safe_globals([{allowed}]): checkpoint = torch.load('{path.name}', weights_only=True)` and "
            "`torch.save(checkpoint['state_dict'], 'weights.pt')`, with the key that your checkpoint has for 'state_dict'"
        )
    return f"load_state: {path} is not a checkpoint of plain tensors, and no code in a file is run: it holds {names}; {how}"


def _plain(error: Exception) -> str:
    """The first line of torch's message, without colours and without its advice to run what is in the file."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if found := re.search(r"WeightsUnpickler error:\s*(.+)", text):
        text = found[1]
    elif _UNSAFE in text:
        return "it needs more than plain tensors and numbers"
    line = shortened((text.splitlines() or [""])[0], _MOST_WORDS)
    return "it needs more than plain tensors and numbers" if _UNSAFE in line else line


# ---- the networks inside a checkpoint


@dataclass(frozen=True)
class Candidate:
    """Tensors of a checkpoint that may be a network, without anything that a training program wraps around them.

    label: the place of the tensors, such as "state_dict.generator"; empty for the checkpoint itself. left_out: the names of the
    other tensors beside them.
    """

    label: str
    state: dict[str, torch.Tensor]
    left_out: tuple[str, ...] = ()

    @property
    def has_anchor(self) -> bool:
        """Returns whether the first convolution of a known network is among the tensors."""
        return any(anchor in self.state for anchor in ANCHORS)


def candidates(checkpoint: Mapping[str, Any]) -> list[Candidate]:
    """Everything in a checkpoint that may be a network, in an order in which the likeliest comes first. There is at least one.

    Raises TypeError unless the checkpoint is a mapping with string keys, and ValueError when there are no tensors in it.
    """
    if not isinstance(checkpoint, Mapping) or not all(isinstance(key, str) for key in checkpoint):
        raise TypeError(f"state_dict must be a mapping from names to tensors, got {type(checkpoint).__name__}")
    if not checkpoint:
        raise ValueError("state_dict is empty")
    found = [candidate for path, tensors in _mappings(checkpoint) for candidate in _inside(path, tensors)]
    if not found:
        raise ValueError(f"state_dict must hold tensors by name, got other values at {listed(list(checkpoint))}")
    return sorted(found, key=lambda c: (not c.has_anchor, -len(c.state)))


def _mappings(checkpoint: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, torch.Tensor]]]:
    """The path of each dictionary and the tensors in it, the outer dictionaries first. A dictionary that stands in several places
    is visited once, because dictionaries may contain one another, and themselves."""
    seen = {id(checkpoint)}
    coming: deque[tuple[tuple[str, ...], Mapping[str, Any]]] = deque([((), checkpoint)])
    while coming:
        path, values = coming.popleft()
        tensors = {key: _alone(value) for key, value in values.items() if isinstance(value, torch.Tensor)}
        _check_count("state_dict", len(tensors))
        if tensors:
            yield path, tensors
        for key, value in values.items() if len(path) < DEPTH else ():
            if isinstance(value, Mapping) and id(value) not in seen and all(isinstance(name, str) for name in value):
                seen.add(id(value))
                coming.append(((*path, key), value))


def _alone(value: torch.Tensor) -> torch.Tensor:
    """The tensor without autograd's graph. A tensor that is not initialised yet stays as it is, because it cannot be detached."""
    return value if is_lazy(value) else value.detach()


def why_not_plain(value: torch.Tensor) -> str:
    """The reason why a tensor has no values of its own that lie one after the other in memory; empty where it has such values."""
    if is_lazy(value):
        return "it is not initialised"
    if value.is_nested:
        return "it is a nested tensor"
    if value.layout != torch.strided:
        return f"its layout is {value.layout}"
    if value.is_quantized:
        return f"it is quantised, {value.dtype}"
    if value.is_meta:
        return "it is on the device 'meta', without values"
    held, asked = value.untyped_storage().nbytes(), value.numel() * value.element_size()
    return "" if asked <= held else f"{asked} bytes of values are made of {held} bytes in memory"


def _inside(path: tuple[str, ...], tensors: dict[str, torch.Tensor]) -> list[Candidate]:
    """The networks among named tensors: one for each prefix before the name of a first convolution, and all of them together."""
    named = _without_weight_norm({_SEGMENTS.sub(r"\1", key): value for key, value in tensors.items() if not _COUNTERS.search(key)})
    prefixes = {key[: -len(anchor)] for key in named for anchor in ANCHORS if key == anchor or key.endswith(f".{anchor}")}
    if len(prefixes) > _MOST_PREFIXES:
        raise ValueError(f"state_dict must hold at most {_MOST_PREFIXES} networks, got {listed(sorted(prefixes))}")
    found = []
    for prefix in sorted(prefixes | {_common_prefix(named)}):
        state = {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}
        left_out = tuple(key for key in named if not key.startswith(prefix))
        found.append(Candidate(".".join([*path, *prefix.split(".")[:-1]]), state, left_out))
    return [one for candidate in found if candidate.state for one in _for_each_scale(candidate)]


def _for_each_scale(candidate: Candidate) -> list[Candidate]:
    """The networks of several scales that one state dict holds, or that its weights serve; the candidate itself where it is one
    network."""
    scales = by_scale(candidate.state)
    return [replace(candidate, label=f"{candidate.label}.{name}".lstrip("."), state=state) for name, state in scales.items()] or [
        candidate
    ]


def _without_weight_norm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state with plain weights in place of the magnitudes and directions of weight normalisation (Salimans and Kingma, NeurIPS
    2016)."""
    plain = dict(state)
    for key, magnitude in state.items():
        for ending, (other, name) in _NORMED.items():
            direction = state.get(key.removesuffix(ending) + other)
            if not key.endswith(ending) or direction is None or not _belong_together(magnitude, direction):
                continue
            dims = [axis for axis in range(direction.ndim) if magnitude.ndim == 0 or magnitude.shape[axis] == 1]
            length = direction.float().square().sum(dims, keepdim=magnitude.ndim > 0).sqrt()
            plain[key.removesuffix(ending) + name] = direction.float() * (magnitude.float() / length)
            del plain[key], plain[key.removesuffix(ending) + other]
    return plain


def _belong_together(magnitude: torch.Tensor, direction: torch.Tensor) -> bool:
    """Returns whether `magnitude` can be that of `direction`: it has one value for all of it, or one for each slice along some
    axes, and both are floating-point tensors."""
    if why_not_plain(magnitude) or why_not_plain(direction):
        return False
    sizes = zip(magnitude.shape, direction.shape, strict=False)
    fits = magnitude.ndim in (0, direction.ndim) and all(size in (1, whole) for size, whole in sizes)
    return fits and magnitude.is_floating_point() and direction.is_floating_point()


def _common_prefix(state: Mapping[str, torch.Tensor]) -> str:
    """The prefix that all names begin with and that is not a part of the network."""
    prefix = ""
    for part in ("model.", "net.", "generator."):
        if state and all(key.startswith(prefix + part) for key in state):
            prefix += part
    return prefix


def equal(a: Candidate, b: Candidate) -> bool:
    """Returns whether two candidates hold the same network."""
    return a.state.keys() == b.state.keys() and all(
        value.shape == b.state[key].shape and torch.equal(value, b.state[key]) for key, value in a.state.items()
    )
