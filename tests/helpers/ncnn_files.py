"""Writes graphs as files of ncnn, in the form of its documentation ("param and model file structure"), for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from adabm_kernels.graph.nodes import (
    Activation,
    Add,
    Affine,
    BatchNorm,
    ColourShift,
    Concat,
    Conv,
    Graph,
    Multiply,
    Node,
    PixelShuffle,
    PixelUnshuffle,
    Resize,
    Slice,
)

MAGIC = "7767517"
FLOAT16 = 0x01306B47
_ACTIVATIONS = {"relu": "ReLU", "sigmoid": "Sigmoid", "tanh": "TanH", "mish": "Mish", "silu": "Swish"}


class Writer:
    """Collects layers and their weights. half: whether weights of convolutions are float16. fused: whether activations become a
    part of convolutions."""

    def __init__(self, half: bool = False) -> None:
        self.half = half
        self.lines: list[str] = []
        self.data = bytearray()
        self.blobs: list[str] = []

    def layer(self, kind: str, name: str, inputs: list[str], outputs: list[str], **settings: object) -> str:
        """Adds a layer and returns its first output. settings: the parameters by number, p0=... for a number and a0=(...) for an
        array."""
        words = [f"{key[1:]}={_text(value)}" for key, value in settings.items() if key[0] == "p"]
        words += [
            f"{-23300 - int(key[1:])}={len(value)},{','.join(map(_text, value))}"  # type: ignore[arg-type]
            for key, value in settings.items()
            if key[0] == "a"
        ]
        self.lines.append(" ".join([f"{kind:16}", f"{name:16}", str(len(inputs)), str(len(outputs)), *inputs, *outputs, *words]))
        self.blobs += outputs
        return outputs[0] if outputs else ""

    def tagged(self, values: torch.Tensor) -> None:
        if self.half:
            data = values.numpy().astype("<f2").tobytes()
            self.data += FLOAT16.to_bytes(4, "little") + data + bytes(-len(data) % 4)
        else:
            self.data += bytes(4) + values.numpy().astype("<f4").tobytes()

    def plain(self, values: torch.Tensor | np.ndarray) -> None:
        self.data += np.asarray(values).astype("<f4").tobytes()

    def text(self) -> str:
        return "\n".join([MAGIC, f"{len(self.lines)} {len(self.blobs)}", *self.lines, ""])

    def write(self, path: Path) -> Path:
        path.write_text(self.text())
        path.with_suffix(".bin").write_bytes(self.data)
        return path


def _text(value: object) -> str:
    return f"{value:.9e}" if isinstance(value, float) else str(int(value))  # type: ignore[call-overload]


def write_ncnn(path: Path, graph: Graph, state: dict[str, torch.Tensor], half: bool = False) -> Path:
    """Writes a graph and its weights as PATH.param and PATH.bin. Every blob is read only once, as ncnn demands."""
    writer = Writer(half)
    reads = [name for node in graph.nodes for name in node.inputs] + list(graph.outputs)
    left: dict[str, list[str]] = {}

    def made(blob: str, name: str) -> None:
        """Notes that a blob is a tensor of the graph, and splits it where several layers read it."""
        count = reads.count(name)
        copies = [blob] if count == 1 else [f"{blob}_split_{i}" for i in range(count)]
        if count > 1:
            writer.layer("Split", f"splitncnn_{len(writer.lines)}", [blob], copies)
        left[name] = copies

    made(writer.layer("Input", "data", [], ["data"], p2=3), graph.inputs[0])
    for node in graph.nodes:
        made(_node(writer, node, [left[name].pop(0) for name in node.inputs], state), node.name)
    return writer.write(path)


def _node(writer: Writer, node: Node, inputs: list[str], state: dict[str, torch.Tensor]) -> str:
    name = node.name.replace(" ", "_")
    blob, x = [f"{name}_blob"], inputs[:1]
    match node:
        case Conv():
            weight = state[f"{node.key}.weight"]
            sizes = {"p1": node.kernel[1], "p11": node.kernel[0], "p3": node.stride[1], "p13": node.stride[0]}
            sizes |= {"p4": node.padding[1], "p14": node.padding[0], "p2": node.dilation[1], "p12": node.dilation[0]}
            groups = {"p7": node.groups} if node.groups > 1 else {}
            kind = "ConvolutionDepthWise" if groups else "Convolution"
            writer.layer(kind, name, x, blob, p0=node.channels_out, **sizes, p5=node.bias, p6=weight.numel(), **groups)
            writer.tagged(weight)
            if node.bias:
                writer.plain(state[f"{node.key}.bias"])
        case Activation() if node.slopes:
            writer.layer("PReLU", name, x, blob, p0=node.slopes)
            writer.plain(state[f"{node.key}.weight"])
        case Activation() if node.function == "leaky_relu":
            writer.layer("ReLU", name, x, blob, p0=float(dict(node.settings)["negative_slope"]))
        case Activation():
            writer.layer(_ACTIVATIONS[node.function], name, x, blob)
        case Add():
            terms = []
            for i, term in enumerate(inputs):
                if node.factor(i) != 1:
                    term = writer.layer("BinaryOp", f"{name}_{i}", [term], [f"{name}_{i}"], p0=2, p1=1, p2=float(node.factor(i)))
                terms.append(term)
            writer.layer("BinaryOp", name, terms, blob, p0=0)
        case Multiply():
            writer.layer("BinaryOp", name, inputs, blob, p0=2)
        case Concat():
            writer.layer("Concat", name, inputs, blob, p0=0)
        case Slice():
            writer.layer("Crop", name, x, blob, a9=(node.start,), a10=(node.stop,), a11=(0,))
        case PixelShuffle():
            writer.layer("PixelShuffle", name, x, blob, p0=node.factor)
        case PixelUnshuffle():
            writer.layer("Reorg", name, x, blob, p0=node.factor)
        case Resize():
            kind = 1 if node.mode == "nearest" else 2
            writer.layer(
                "Interp", name, x, blob, p0=kind, p1=float(node.factor), p2=float(node.factor), p6=bool(node.align_corners)
            )
        case BatchNorm():
            writer.layer("BatchNorm", name, x, blob, p0=node.channels, p1=node.eps)
            for part in ("weight", "running_mean", "running_var", "bias"):
                writer.plain(state[f"{node.key}.{part}"])
        case ColourShift() | Affine():
            _scale(writer, node, name, x, blob)
        case _:
            raise TypeError(f"write_ncnn: no layer for {node}")
    return blob[0]


def _scale(writer: Writer, node: ColourShift | Affine, name: str, x: list[str], blob: list[str]) -> None:
    """Adds layers for the factors and shifts of three colours."""
    if isinstance(node, ColourShift):
        gain, shift = np.ones(3), node.sign * np.array(node.mean)
    else:
        gain = np.resize(node.gain or (1.0,), 3) / (node.divisor or 1.0)
        shift = np.resize(node.shift or (0.0,), 3) * (gain if node.first == "shift" else 1)
    writer.layer("Scale", name, x, blob, p0=3, p1=1)
    writer.plain(gain)
    writer.plain(shift)
