"""Converted networks and float networks as ONNX files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_file
from ..networks.collapse import SMALLEST
from ..networks.spec import NetworkSpec
from ..networks.traced import GraphSpec
from ..nn import ConvertedNetwork
from ..quantize import MAX_BITS, MIN_BITS
from .float_operators import write_node
from .quantized_operators import QuantizedWriting
from .writing import OPSET, Writing

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Exported:
    """What an ONNX file holds.

    outputs: the names of its outputs. bits: the bits of the input of each quantised convolution, by name; empty for a float
    network. smallest: the least side of a picture that it takes. bytes: the size of the file.
    """

    outputs: tuple[str, ...]
    bits: dict[str, int]
    smallest: int
    opset: int
    bytes: int


def export_onnx(model: ConvertedNetwork, path: str | Path, *, bits: str | int = "auto", floats: bool = False) -> Exported:
    """Writes a converted network, or its float network, as an ONNX file, whole or not at all; an existing file is replaced.

    The file has one input "x", float32 [N, C, H, W] with any N, H and W, and an output "y" (or "y0", "y1" and so on), of the values
    that the model itself takes and gives. A quantised convolution stands between QuantizeLinear and DequantizeLinear; the result
    lies within the bounds of docs/interchange.md of the model's.

    bits: the bits of the codes of all adaptive layers, 2..8. With "auto" every layer has the bits that calibration found for it,
        less what an image would change. ONNX has no bits that the picture decides, so they are fixed in the file. All blocks are
        computed everywhere.
    floats: whether to write the float network from which the model was made.

    Raises TypeError unless `model` is a converted network. Raises ValueError for other bits, for a name that does not end in
    ".onnx", for bits of a float network, where the package onnx is missing, where the float weights were not kept, and for a part
    of the network that ONNX has no operators for. Raises OSError where the file cannot be written.
    """
    if not isinstance(model, ConvertedNetwork):
        raise TypeError(f"export_onnx: model must be a converted network (convert_model or load), got {type(model).__name__}")
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise ValueError(f"export_onnx: path must end in .onnx, got '{path}'")
    whole = isinstance(bits, int) and not isinstance(bits, bool) and MIN_BITS <= bits <= MAX_BITS
    if bits != "auto" and not whole:
        raise ValueError(f"export_onnx: bits must be 'auto' or {MIN_BITS}..{MAX_BITS}, got {bits!r}")
    if floats and bits != "auto":
        raise ValueError(f"export_onnx: bits must be left out for the float network, got {bits!r}")
    try:
        found, names, fixed = _float_model(model) if floats else _quantized_model(model, bits)
    except ValueError as error:
        raise ValueError(f"export_onnx: {error}") from error
    data = found.SerializeToString()
    write_file(path, data)
    collapsed = model.collapsed is not None and not floats
    smallest = SMALLEST if collapsed else model.spec.smallest if isinstance(model.spec, GraphSpec) else 1
    return Exported(names, fixed, smallest, OPSET, len(data))


def _quantized_model(model: ConvertedNetwork, bits: str | int) -> tuple[ModelProto, tuple[str, ...], dict[str, int]]:
    to, fixed = _begun(model.spec), model.fixed_bits(bits)
    tensors = QuantizedWriting(to, model, fixed).write()
    config = model.config
    kind = f"W{config.weight_bits}A{config.act_bits}" if bits == "auto" else f"W{config.weight_bits}, codes of {bits} bits"
    said = {"adabm.bits": str(bits), "adabm.layers": ",".join(f"{name}:{width}" for name, width in fixed.items())}
    return *_finished(to, model.spec, tensors, said, kind), fixed


def _float_model(model: ConvertedNetwork) -> tuple[ModelProto, tuple[str, ...], dict[str, int]]:
    spec, held = model.spec, model.float_state
    if held is None:
        raise ValueError("floats must be False for this model, which carries no float weights (save with include_float=True)")
    to, graph = _begun(spec), spec.graph()
    state, tensors = {spec.own_name(key): value for key, value in held.items()}, {graph.inputs[0]: "x"}
    for node in graph.nodes:
        tensors[node.name] = write_node(to, node, [tensors[name] for name in node.inputs], state.get)
    return *_finished(to, model.spec, [tensors[name] for name in graph.outputs], {"adabm.bits": "float32"}, "float32"), {}


def _begun(spec: NetworkSpec) -> Writing:
    return Writing(spec.input_channels, spec.size if isinstance(spec, GraphSpec) else None)


def _finished(
    to: Writing, spec: NetworkSpec, tensors: list[str], said: dict[str, str], kind: str
) -> tuple[ModelProto, tuple[str, ...]]:
    names = ("y",) if len(tensors) == 1 else tuple(f"y{i}" for i in range(len(tensors)))
    metadata = {"adabm.network": spec.network, "adabm.scale": str(spec.scale)} | said
    outputs = dict(zip(names, tensors, strict=True))
    return to.model(outputs, metadata, f"{spec.title} x{spec.scale}, {kind}"), names
