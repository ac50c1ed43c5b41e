"""Reads files of ONNX: the graph in its protocol buffer, and the values, whose sizes are checked against the size of the file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .making import MAX_NODES, shown

OPSETS = (11, 25)  # the versions of ONNX's own operators; those that are read here did not change between the two
MOST_VALUES = 4 * MAX_NODES
MOST_FILE = 2 << 30  # bytes: a protocol buffer holds no more
_HOW_TO_GET = "reading ONNX needs the package onnx: pip install onnx"
_RAW = {1: "<f4", 10: "<f2", 11: "<f8", 6: "<i4", 7: "<i8", 9: "?", 16: "<u2"}  # for each type of ONNX, its values in bytes
_FIELDS = {
    1: "float_data",
    10: "int32_data",
    11: "double_data",
    6: "int32_data",
    7: "int64_data",
    9: "int32_data",
    16: "int32_data",
}
_EXTERNAL = 1  # TensorProto.EXTERNAL


def read_model(path: Path) -> Any:
    """The model in a file. Raises ValueError where the package onnx is missing, and for a model that cannot be read here."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError as error:
        raise ValueError(_HOW_TO_GET) from error
    if path.stat().st_size > MOST_FILE:
        raise ValueError(
            f"it must have {MOST_FILE >> 30} GiB at most, with larger weights beside it, got {path.stat().st_size} bytes"
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError("it is damaged, or no ONNX model") from error
    versions = {opset.domain: opset.version for opset in model.opset_import}
    version = versions.get("", versions.get("ai.onnx"))
    if version is None or not model.graph.node:
        raise ValueError("it is damaged, or no ONNX model: it says no version of its operators, or has none")
    if not OPSETS[0] <= version <= OPSETS[1]:
        raise ValueError(f"its operators must be of version {OPSETS[0]} to {OPSETS[1]}, got {version}")
    if len(model.graph.node) > MAX_NODES:
        raise ValueError(f"a network must have {MAX_NODES} nodes at most, got {len(model.graph.node)}")
    if len(model.graph.initializer) > MOST_VALUES:
        raise ValueError(f"a network must have {MOST_VALUES} values at most, got {len(model.graph.initializer)}")
    return model


class Values:
    """Makes arrays of the tensors of one model. float16 and float64 become float32; the sizes of all are checked."""

    def __init__(self, path: Path) -> None:
        self.folder = path.resolve().parent
        self.outside: dict[Path, int] = {}  # for each file beside the model, the bytes that may still be read

    def all(self, tensors: Iterable[Any]) -> dict[str, np.ndarray]:
        """The arrays of the initialisers, by name."""
        found: dict[str, np.ndarray] = {}
        for tensor in tensors:
            if tensor.name in found:
                raise ValueError(f"two tensors are called '{shown(tensor.name)}'")
            found[tensor.name] = self.array(tensor)
        return found

    def array(self, tensor: Any) -> np.ndarray:
        """A tensor as an array: float32 for floats, int64 or bool for all others."""
        try:
            return self._array(tensor)
        except ValueError as error:
            raise ValueError(f"tensor '{shown(tensor.name)}': {error}") from error

    def _array(self, tensor: Any) -> np.ndarray:
        kind, shape = tensor.data_type, tuple(tensor.dims)
        if kind not in _RAW:
            raise ValueError(f"its values must be float16, bfloat16, float32, float64 or whole numbers, got type {kind} of ONNX")
        if len(shape) > 6 or any(size < 0 for size in shape):
            raise ValueError(f"it must have at most 6 sizes of at least 0, got {shape[:8]}")
        count, given = math.prod(shape), np.dtype(_RAW[kind])
        size = count * given.itemsize
        if tensor.data_location == _EXTERNAL:
            values = self._beside(tensor, count, given)
        elif tensor.raw_data:
            if len(tensor.raw_data) != size:
                raise ValueError(f"it must have {size} bytes for its sizes {shape}, got {len(tensor.raw_data)}")
            values = np.frombuffer(tensor.raw_data, given)
        else:
            field = getattr(tensor, _FIELDS[kind])
            if len(field) != count:
                raise ValueError(f"it must have {count} values for its sizes {shape}, got {len(field)}")
            values = _of_field(np.array(field, {"double_data": "<f8", "float_data": "<f4"}.get(_FIELDS[kind], "<i8")), kind)
        if kind == 16:  # bfloat16 are the upper halves of float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        wanted = np.float32 if kind in (1, 10, 11, 16) else np.bool_ if kind == 9 else np.int64
        with np.errstate(over="ignore"):
            return values.astype(wanted).reshape(shape)

    def _beside(self, tensor: Any, count: int, kind: np.dtype) -> np.ndarray:
        """The values of a tensor in a file of their own, which must lie in the folder of the model."""
        said = {entry.key: entry.value for entry in tensor.external_data}
        name, offset, size = said.get("location", ""), said.get("offset", "0"), said.get("length", "")
        file = self.folder / name
        if not name or "\0" in name or Path(name).is_absolute() or not file.resolve().is_relative_to(self.folder):
            raise ValueError(f"its values must be in a file beside the model, got '{shown(name)}'")
        if not file.is_file():
            raise ValueError(f"its values are in '{shown(name)}', which is missing beside the model")
        numbers = [offset, size or str(count * kind.itemsize)]
        if not all(text.isascii() and text.isdecimal() and len(text) < 20 for text in numbers):
            raise ValueError(f"offset and length must be numbers of bytes, got {shown(offset)} and {shown(size)}")
        start, length = map(int, numbers)
        whole = file.stat().st_size
        if length != count * kind.itemsize or start + length > whole:
            raise ValueError(f"it must be {count * kind.itemsize} bytes of '{shown(name)}', got {length} at {start} of {whole}")
        left = self.outside.get(file, whole) - length
        if left < 0:
            raise ValueError(f"tensors must be parts of '{shown(name)}', and together they are larger")
        self.outside[file] = left
        return np.fromfile(file, kind, count, offset=start)


def _of_field(values: np.ndarray, kind: int) -> np.ndarray:
    """The values in a field of whole numbers. Where the type is a float of 16 bits, the numbers are its bits."""
    if kind in (10, 16):
        if bool(((values < 0) | (values > 0xFFFF)).any()):
            raise ValueError("its values must be of 16 bits")
        bits = values.astype(np.uint16)
        return bits.view(np.float16) if kind == 10 else bits
    return values
