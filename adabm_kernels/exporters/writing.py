"""An ONNX graph that is being written: its operators, its constants and the sizes of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET, IR_VERSION = 18, 8  # those of ONNX 1.13; what is written needs no newer operator
MOST_BYTES = (1 << 31) - (1 << 20)  # a protocol buffer holds less than 2 GiB
_HOW_TO_GET = "writing ONNX needs the package onnx: pip install onnx"


class Writing:
    """An ONNX graph in the making, with one input "x" float32 [N, channels, H, W].

    sizes: rows and columns of the input where the network takes no others, else None. Tensors are known by their names; those of a
    network keep the names that they have in its graph, where those are free. ranks: the number of axes of tensors that do not have
    four. numbers: the tensors that are sizes, int64 [1]. several: for a name that stands for several tensors, these. Raises
    ValueError where the package onnx is missing.
    """

    def __init__(self, channels: int, sizes: tuple[int, int] | None = None) -> None:
        try:
            from onnx import helper, numpy_helper
        except ModuleNotFoundError as error:
            raise ValueError(_HOW_TO_GET) from error
        self.helper, self.numpy_helper = helper, numpy_helper
        self.channels, self.fixed_sizes = channels, sizes
        self.nodes: list[Any] = []
        self.values: list[Any] = []
        self.taken = {"x"}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.ranks: dict[str, int] = {}
        self.numbers: set[str] = set()
        self.several: dict[str, list[str]] = {}
        self._sides: dict[tuple[str, int], str] = {}
        self._bytes = 0

    def free(self, name: str) -> str:
        """A name that no tensor has yet, which is `name` or begins with it. It is taken from now on."""
        found, number = name, 1
        while found in self.taken:
            number += 1
            found = f"{name}.{number}"
        self.taken.add(found)
        return found

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Adds an operator with one output, and returns the name of that tensor.

        inputs: names of tensors and constants; "" leaves one out. name: that of the output, where it is to have a certain one.
        attributes: those that are None are left out.
        """
        return self.ops(kind, 1, *inputs, name=name, **attributes)[0]

    def ops(self, kind: str, count: int, *inputs: str, name: str = "", **attributes: Any) -> list[str]:
        """Adds an operator with `count` outputs, as `op` does."""
        outputs = [self.free(name or f"{inputs[0]}/{kind}") for _ in range(count)]
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(self.helper.make_node(kind, list(inputs), outputs, name=outputs[0], **given))
        return outputs

    def constant(self, value: Any, dtype: Any, name: str = "constant") -> str:
        """A constant of the file. Equal constants are one. Raises ValueError where the file grows too large, and for floats that
        are not finite."""
        array = np.ascontiguousarray(np.asarray(value, dtype))
        array = array.reshape(np.shape(value))  # ascontiguousarray gives numbers an axis
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"'{name}' must be finite in float32")
        key = str(array.dtype), array.shape, array.tobytes()
        if key not in self._constants:
            self._bytes += array.nbytes
            if self._bytes > MOST_BYTES:
                raise ValueError(f"an ONNX file must have less than 2 GiB, and the weights alone have {self._bytes} bytes or more")
            self._constants[key] = self.free(name)
            self.values.append(self.numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def floats(self, value: Any, name: str = "floats") -> str:
        """A constant of float32."""
        return self.constant(value, np.float32, name)

    def integers(self, value: Any, name: str = "integers") -> str:
        """A constant of int64, as sizes and axes are."""
        return self.constant(value, np.int64, name)

    def side(self, x: str, axis: int) -> str:
        """The size of a tensor along an axis, int64 [1]."""
        if (x, axis) not in self._sides:
            self._sides[x, axis] = self.op("Shape", x, start=axis, end=axis + 1)
        return self._sides[x, axis]

    def sizes(self, *parts: str | int) -> str:
        """A list of sizes, int64, from sizes [1] by name and numbers."""
        whole = [part if isinstance(part, str) else self.integers([part]) for part in parts]
        return self.op("Concat", *whole, axis=0)

    def channels_of(self, values: Any, name: str = "floats") -> str:
        """A float32 constant with one value for all channels, or one for each, which is broadcast to [N, C, H, W]."""
        array = np.asarray(values, np.float64).reshape(-1)
        return self.floats(array[0] if array.size == 1 else array.reshape(-1, 1, 1), name)

    def model(self, outputs: Mapping[str, str], metadata: Mapping[str, str], words: str) -> ModelProto:
        """The finished model, checked by the package onnx.

        outputs: the tensors that it gives, by the names that they get in the file. metadata: what the file says of itself. words:
        what the network is, in words.
        """
        helper, float32 = self.helper, 1
        for name, tensor in outputs.items():
            self.nodes.append(helper.make_node("Identity", [tensor], [name], name=self.free(f"give/{name}")))
        rows, columns = self.fixed_sizes or ("H", "W")
        given = helper.make_tensor_value_info("x", float32, ["N", self.channels, rows, columns])
        made = [helper.make_tensor_value_info(name, float32, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "adabm", [given], made, initializer=self.values, doc_string=words)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="adabm_kernels")
        helper.set_model_props(model, dict(metadata))
        from onnx import checker, shape_inference

        known = shape_inference.infer_shapes(model, data_prop=True).graph.output
        for output, found in zip(model.graph.output, known, strict=True):
            output.CopyFrom(found)
            if not output.type.tensor_type.HasField("shape"):
                raise ValueError(f"the number of axes of output '{output.name}' must be known")
        checker.check_model(model)
        return model


def pads(padding: Iterable[int]) -> list[int]:
    """Zeros around a picture as ONNX takes them, above, left, below, right, from (rows, columns) or from all four."""
    around = list(padding)
    return around if len(around) == 4 else [*around, *around]
