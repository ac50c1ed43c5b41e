"""Writes calls of torch that stay in floats (`Float`) as operators of ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..graph.nodes import Float, called
from .writing import Writing

Values = Callable[[str], Any]


def write_call(to: Writing, node: Float, inputs: list[str], values: Values) -> str:
    raise ValueError(f"'{node.name}': a call of {called(node)} is not written as ONNX")
