"""Reads the files of ncnn: layers as text (.param), and their weights one after the other (.bin).

The format is described by ncnn's own documentation, "param and model file structure", and by its `ModelBinFromDataReader`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .making import MAX_NODES, shown

MAGIC = "7767517"
MOST_TEXT = 64 << 20  # bytes of a .param; the largest networks for pictures have some hundred kilobytes
_ARRAYS = -23300  # the key of an array is this minus the number of the parameter
_LARGEST = 3.5e38  # a little more than the largest float32

_FLOAT16, _INT8, _FLOAT32_TAGGED, _FLOAT32 = 0x01306B47, 0x000D4B38, 0x0002C056, 0


@dataclass(frozen=True)
class Layer:
    """One line of a .param. inputs, outputs: the names of blobs. settings: the numbers, or tuples of numbers, by the number of the
    setting in ncnn."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: Mapping[int, float | tuple[float, ...]]

    def __str__(self) -> str:
        return f"layer '{shown(self.name)}' ({shown(self.kind)})"

    def number(self, key: int, default: float = 0.0) -> float:
        """The value of a setting that is one number."""
        value = self.settings.get(key, default)
        if isinstance(value, tuple):
            raise ValueError(f"setting {key} must be one number, got {len(value)}")
        return value

    def integer(self, key: int, default: int = 0) -> int:
        """The value of a setting that is one integer."""
        value = self.number(key, default)
        if not float(value).is_integer():
            raise ValueError(f"setting {key} must be an integer, got {value:g}")
        return int(value)

    def numbers(self, key: int) -> tuple[float, ...]:
        """The value of a setting that is an array; empty where it is left out."""
        value = self.settings.get(key, ())
        return value if isinstance(value, tuple) else (value,)


def read_layers(path: Path) -> list[Layer]:
    """The layers of a .param, in their order. Raises ValueError, with the line, for a file that is damaged or has another
    format."""
    if path.stat().st_size > MOST_TEXT:
        raise ValueError(f"a .param must have {MOST_TEXT >> 20} MiB at most, got {path.stat().st_size} bytes")
    try:
        lines = path.read_bytes().decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no .param in text: byte {error.start} is no UTF-8 (a .param.bin is not read)") from error
    if not lines or lines[0].strip() != MAGIC:
        first = shown(lines[0].strip()) if lines else ""
        raise ValueError(f"the first line of a .param must be {MAGIC}, got '{first}'")
    counts = lines[1].split() if len(lines) > 1 else []
    if len(counts) != 2 or not all(_is_count(word) for word in counts):
        raise ValueError("the second line of a .param must be the numbers of its layers and of its blobs")
    numbered = [(number, line.split()) for number, line in enumerate(lines[2:], 3) if line.strip()]
    if len(numbered) != int(counts[0]):
        raise ValueError(f"the .param must have the {counts[0]} layers that its second line says, got {len(numbered)}")
    if len(numbered) > MAX_NODES:
        raise ValueError(f"a network must have {MAX_NODES} layers at most, got {len(numbered)}")
    layers: list[Layer] = []
    made: set[str] = set()
    for number, words in numbered:
        try:
            layer = _layer(words)
            if unknown := [blob for blob in layer.inputs if blob not in made]:
                raise ValueError(f"blob '{shown(unknown[0])}' is read before a layer makes it")
            for blob in layer.outputs:
                if blob in made:
                    raise ValueError(f"blob '{shown(blob)}' is made twice")
                made.add(blob)
        except ValueError as error:
            raise ValueError(f"line {number} of the .param: {error}") from error
        layers.append(layer)
    if len(made) != int(counts[1]):
        raise ValueError(f"the .param must have the {counts[1]} blobs that its second line says, got {len(made)}")
    return layers


def _is_count(word: str) -> bool:
    return word.isascii() and word.isdecimal() and len(word) < 11


def _layer(words: list[str]) -> Layer:
    if len(words) < 4 or not all(map(_is_count, words[2:4])):
        raise ValueError("a layer must have a type, a name, and the numbers of its inputs and outputs")
    inputs, outputs = map(int, words[2:4])
    if len(words) < 4 + inputs + outputs:
        raise ValueError(f"the layer must name {inputs} inputs and {outputs} outputs, but {len(words) - 4} words follow")
    blobs = words[4 : 4 + inputs + outputs]
    settings: dict[int, float | tuple[float, ...]] = {}
    for word in words[4 + inputs + outputs :]:
        key, equals, text = word.partition("=")
        sign = key[:1] == "-"
        if not equals or not _is_count(key[sign:]):
            raise ValueError(f"a setting must be a number, '=' and a value, got '{shown(word)}'")
        if not sign:
            settings[int(key)] = _value(text)
        elif int(key) <= _ARRAYS:
            settings[_ARRAYS - int(key)] = _array(text)
        else:
            raise ValueError(f"settings are numbered from 0, arrays from {_ARRAYS} down, got '{shown(word)}'")
    return Layer(words[0], words[1], tuple(blobs[:inputs]), tuple(blobs[inputs:]), settings)


def _array(text: str) -> tuple[float, ...]:
    count, *values = text.split(",")
    if not _is_count(count) or int(count) != len(values):
        raise ValueError(f"an array must have the {shown(count)} values that it says, got {len(values)}")
    return tuple(map(_value, values))


def _value(text: str) -> float:
    try:
        value = float(text) if len(text) <= 40 and text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not abs(value) <= _LARGEST:
        raise ValueError(f"a value must be a finite number, got '{shown(text)}'")
    return value


class Weights:
    """The bytes of a .bin, read from front to end. Every size is checked against the bytes that are left before an array is
    made."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def tagged(self, count: int) -> np.ndarray:
        """The next weights, float32 [count], in the format that the word before them says."""
        tag = int(self._take(1, "<u4")[0])
        if tag == _FLOAT16:
            values = self._take(count, "<f2")
            self._take(count % 2, "<u2")  # skips to a multiple of four bytes
            return values.astype(np.float32)
        if tag in (_FLOAT32, _FLOAT32_TAGGED):
            return self.plain(count)
        what = "int8" if tag == _INT8 else "a table of 256 values"
        raise ValueError(f"its weights are quantised ({what}, {tag:#010x}): only float32 and float16 are read")

    def plain(self, count: int) -> np.ndarray:
        """The next weights, float32 [count], which the file holds as such."""
        return self._take(count, "<f4").astype(np.float32)

    def _take(self, count: int, kind: str) -> np.ndarray:
        size = count * np.dtype(kind).itemsize
        if not 0 <= size <= len(self.data) - self.place:
            left = len(self.data) - self.place
            raise ValueError(f"it needs {size} bytes of weights, but the .bin has {left} left")
        values = np.frombuffer(self.data, kind, count, self.place)
        self.place += size
        return values

    def check_end(self) -> None:
        if self.place != len(self.data):
            raise ValueError(f"the .bin must end with the last weights, but {len(self.data) - self.place} bytes are left")
