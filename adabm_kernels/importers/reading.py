"""Reads float networks from files of any supported kind: checkpoints of torch, ncnn and ONNX."""

from __future__ import annotations

import textwrap
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..graph.module import GraphModule
from ..graph.nodes import Affine, Graph
from ..networks.checkpoints import load_state
from ..networks.convention import Convention
from ..networks.detect import detect, float_network, to_float_state
from ..networks.known import SUPPORTED
from .making import Imported
from .ncnn_layers import bin_of, read_ncnn
from .onnx_operators import read_onnx
from .recognise import recognised
from .spandrel import OfPixels, recognised_by_spandrel

_RANGES = ("to_range", "from_range")
MOST_WORDS = 1500  # the most characters of a message: a hostile file may have lists of a million sizes
SUFFIXES = (".param", ".onnx")  # the suffixes of files that hold a graph


@dataclass(frozen=True)
class Weights:
    """The network in a file.

    state: a checkpoint, or the state dict of the known network that a graph is. res_scale: the residual scale of the graph; None
    where the file has none. other: the graph, where it is no known network; `state` is then empty. resized: the factor by which a
    graph resizes the result of its known network at its end; the resizing is left out.
    """

    state: dict[str, Any]
    res_scale: float | None = None
    other: Imported | None = None
    resized: float = 1.0


def read_weights(path: str | Path) -> Weights:
    """The weights in a file: a checkpoint (networks/checkpoints.py), a .param of ncnn with its .bin beside it, or ONNX.

    The name of the .bin stands for both files, too. Raises FileNotFoundError, and ValueError with the place in the file.
    """
    path = _with_graph(Path(path))
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        return Weights(load_state(path))
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        imported = (read_ncnn if suffix == ".param" else read_onnx)(path)
        known = recognised(imported)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {textwrap.shorten(str(error), MOST_WORDS, placeholder=' ...')}") from error
    return Weights({}, None, imported) if known is None else Weights(known.state, known.res_scale, resized=known.resized)


def read_known(path: str | Path) -> tuple[dict[str, Any], float]:
    """Returns the checkpoint or state dict of a file, and the residual scale of its graph or 1, as `networks.detect.detect` takes
    them.

    Raises as `read_weights` does, and ValueError for a graph that is no known network.
    """
    read = read_weights(path)
    if read.other is not None:
        raise ValueError(
            f"{path}: the graph, of {len(read.other.graph.nodes)} nodes, is none of {SUPPORTED}; in Python "
            "convert_model(read_network(path), ...) takes any"
        )
    _tell_of_resizing(path, read)
    return read.state, 1.0 if read.res_scale is None else read.res_scale


def _tell_of_resizing(path: str | Path, read: Weights) -> None:
    """Warns where a file resizes the result of its network, which the converted network does not do."""
    if read.resized != 1:
        warnings.warn(
            f"{path}: read without its last layer, which resizes what the network makes by {read.resized:g}; other sizes than the "
            "network's own are asked for when a picture is upscaled",
            stacklevel=3,
        )


def files_of(path: Path) -> list[Path]:
    """The files that hold the weights of a path: the file itself, and the .bin beside a .param."""
    path = _with_graph(path)
    return [path, bin_of(path)] if path.suffix.lower() == ".param" else [path]


def _with_graph(path: Path) -> Path:
    """The .param that a .bin belongs to, where it lies beside the .bin; any other path as it is."""
    param = path.with_suffix(".param")
    return param if path.suffix.lower() == ".bin" and param.is_file() else path


def read_network(
    path: str | Path,
    *,
    res_scale: float | None = None,
    rgb_range: float | None = None,
    mean_shift: str | tuple[float, float, float] | None = None,
    channel_order: str = "rgb",
    weights_key: str | None = None,
) -> nn.Module:
    """The float network in a file, [N, 3, H, W] in 0..255 -> [N, 3, s*H, s*W]: what `convert_model` takes.

    path: a checkpoint (.pt, .pth, .ckpt, .safetensors, ...), a .param of ncnn whose .bin lies beside it, or an .onnx, which needs
        the package onnx.
    res_scale, rgb_range, mean_shift, channel_order, weights_key: what the file does not tell, see `convert_model`. By default the
        residual scale is that of the graph where the file has one, and the range of pixels that of the known network: 0..1 for
        those of Real-ESRGAN.

    A graph that is no known network comes as a module that computes it, which `convert_model` traces; rgb_range=1 says that it
    takes and gives pixels in 0..1, and mean_shift and channel_order must be left out. A checkpoint of a layout that only the
    package spandrel knows comes as its module, for pixels in 0..255, where that package is installed and no settings are given. No
    code in a file is run.

    Raises FileNotFoundError, TypeError and ValueError naming the file, what in it, and the rule.
    """
    convention = Convention(rgb_range, mean_shift, channel_order)
    read = read_weights(path)
    if read.other is not None:
        for name, value in (("mean_shift", mean_shift), ("weights_key", weights_key), ("res_scale", res_scale)):
            if value is not None:
                raise ValueError(f"read_network: {name} must be left out for a graph that is no known network, got {value!r}")
        return _module(read.other, convention)
    _tell_of_resizing(path, read)
    own, state = 1.0 if read.res_scale is None else read.res_scale, read.state
    try:
        found = detect(state, own if res_scale is None else res_scale, convention=convention, weights_key=weights_key)
    except ValueError as error:
        if (res_scale, rgb_range, mean_shift, channel_order, weights_key) != (None, None, None, "rgb", None):
            raise
        other = recognised_by_spandrel(state, error)
        if not other.known:
            return OfPixels(other.module)
        state = other.module.state_dict()
        found = detect(state)
    network = float_network(found.spec)
    network.load_state_dict(to_float_state(state, found))
    return network


class ReadNetwork(GraphModule):
    """A network from a file that is not a known one, as a module with one input tensor."""

    def forward(self, x: torch.Tensor) -> Any:  # type: ignore[override]  # tracing reads the names of its inputs
        return super().forward(x)


def _module(imported: Imported, convention: Convention) -> nn.Module:
    graph = imported.graph
    if convention.channel_order != "rgb":
        raise ValueError(
            f"read_network: channel_order must be 'rgb' for a graph that is no known network, got {convention.channel_order!r}"
        )
    if convention.rgb_range == 1:
        graph = _in_pixels(graph)
    module = ReadNetwork(graph)
    module.load_state_dict(imported.state)
    return module.eval()


def _in_pixels(graph: Graph) -> Graph:
    """Turns a network of pixels in 0..1 into one of pixels in 0..255."""
    taken, (picture,), (output,) = {node.name for node in graph.nodes}, graph.inputs, graph.outputs
    first, last = (_free(base, taken) for base in _RANGES)
    nodes = [replace(node, inputs=tuple(first if name == picture else name for name in node.inputs)) for node in graph.nodes]
    ends = Affine(first, (picture,), divisor=255.0), Affine(last, (output,), gain=(255.0,))
    return replace(graph, nodes=(ends[0], *nodes, ends[1]), outputs=(last,))


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
