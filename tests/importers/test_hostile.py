"""Files made to harm: whatever bytes they have, the answer is a network or one ValueError, soon, in memory of the file's size."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import ENVIRONMENT
from hypothesis import given, settings
from hypothesis import strategies as st
from imported_networks import SPECS, graph_state, network_of
from ncnn_files import write_ncnn
from onnx import ModelProto, TensorProto, helper, numpy_helper

from adabm_kernels.importers.reading import read_weights

FOLDER = Path(tempfile.mkdtemp(prefix="adabm-hostile-"))
NUMBERS = ["0", "-1", "1", "2", "7", "1000000000", "-233", "4294967296", "99999999999999999999", "1e30", "nan", "-23303=9,1", ""]


@pytest.fixture(autouse=True, scope="module")
def emptied():
    yield
    shutil.rmtree(FOLDER)


def _ncnn() -> tuple[str, bytes]:
    spec = SPECS["edsr"]
    path = write_ncnn(FOLDER / "whole.param", spec.graph(), graph_state(network_of(spec)))
    return path.read_text(), path.with_suffix(".bin").read_bytes()


def _onnx() -> bytes:
    values = {"w": np.ones((3, 3, 3, 3), np.float32), "f": np.array([1, 1, 2, 2], np.float32), "s": np.float32(2)}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Resize", ["c", "", "f"], ["r"], mode="nearest"),
            helper.make_node("Mul", ["r", "s"], ["y"]),
        ],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


TEXT, DATA = _ncnn()
MODEL = _onnx()
EDITS = st.lists(st.tuples(st.floats(0, 1), st.sampled_from(NUMBERS)), min_size=1, max_size=4)
BYTES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=5)), min_size=1, max_size=4)


def _answers(path: Path) -> str:
    """The sentence that a file is answered with; empty where it is a network."""
    before, answer = time.process_time(), ""
    try:
        read_weights(path)
    except ValueError as error:
        answer = str(error)
    assert len(answer) < 2000 and "\n" not in answer and time.process_time() - before < 5
    return answer


def _with_bytes(data: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    for place, left_out, put in edits:
        start = int(place * len(data))
        data = data[:start] + put + data[start + left_out :]
    return data


@settings(max_examples=150)
@given(EDITS)
def test_numbers_of_ncnn_s_layers_may_be_any(edits: list[tuple[float, str]]) -> None:
    words = re.split(r"([ \n=,]+)", TEXT)
    for place, number in edits:
        words[int(place * (len(words) - 1))] = number
    (FOLDER / "a.param").write_text("".join(words))
    (FOLDER / "a.bin").write_bytes(DATA)
    _answers(FOLDER / "a.param")


@settings(max_examples=100)
@given(BYTES, st.booleans())
def test_bytes_of_ncnn_s_files_may_be_any(edits: list[tuple[float, int, bytes]], in_text: bool) -> None:
    (FOLDER / "b.param").write_bytes(_with_bytes(TEXT.encode(), edits) if in_text else TEXT.encode())
    (FOLDER / "b.bin").write_bytes(DATA if in_text else _with_bytes(DATA, edits))
    _answers(FOLDER / "b.param")


@settings(max_examples=300)
@given(BYTES)
def test_bytes_of_onnx_may_be_any(edits: list[tuple[float, int, bytes]]) -> None:
    (FOLDER / "c.onnx").write_bytes(_with_bytes(MODEL, edits))
    _answers(FOLDER / "c.onnx")


# ---- files that ask for much


def _param(lines: list[str]) -> str:
    first = ["Input data 0 1 b0 2=3", "Convolution c 1 1 b0 b1 0=3 1=1 6=9"]
    blobs = sum(int(line.split()[3]) for line in first + lines)
    return "\n".join(["7767517", f"{len(lines) + 2} {blobs}", *first, *lines])


COUNT = 4_900
MANY = {
    "concatenations": [f"Concat same 2 1 b{i} b{i} b{i + 1}" for i in range(1, 60)],
    "growing": [f"Concat same {min(i, 900)} 1 {' '.join(['b1'] * min(i, 900))} b{i + 1}" for i in range(1, 900)],
    "one_name": [f"ReLU same 1 1 b{i} b{i + 1}" for i in range(1, COUNT)],
    "shrinking": [f"Interp same 1 1 b{i} b{i + 1} 0=1 1=0.5 2=0.5" for i in range(1, COUNT)],
    "factors": [f"BinaryOp same 1 1 b{i} b{i + 1} 0=2 1=1 2=1.5" for i in range(1, COUNT)],
    "identities": [f"BinaryOp same 1 1 b{i} b{i + 1} 0=2 1=1 2=1.0" for i in range(1, COUNT)],
    "sums": [f"BinaryOp same 2 1 b{i} b{i} b{i + 1} 0=0" for i in range(1, COUNT)],
    "halves": [
        line
        for i in range(1, COUNT // 2, 2)
        for line in (f"Concat a 2 1 b{i} b{i} b{i + 1}", f"Crop b 1 1 b{i + 1} b{i + 2} -23309=1,0 -23310=1,3 -23311=1,0")
    ],
}


@pytest.mark.parametrize("name", MANY)
def test_long_files_are_answered_soon(name: str) -> None:
    (FOLDER / "d.param").write_text(_param(MANY[name]))
    (FOLDER / "d.bin").write_bytes(bytes(4 + 36))
    _answers(FOLDER / "d.param")


def _nested(depth: int) -> bytes:
    """A graph in an attribute of a node in a graph, and so on, as bytes of a protocol buffer."""
    inner = b""
    for _ in range(depth):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            inner = tag + _size(len(inner)) + inner
    model = helper.make_model(helper.make_graph([], "", [], []))
    return model.SerializeToString() + b"\x3a" + _size(len(inner)) + inner


def _size(size: int) -> bytes:
    """A length as protocol buffers write it."""
    length = bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([*length, size])


ONNX_EDITS: dict[str, Callable[[ModelProto], object]] = {
    "nodes": lambda m: m.graph.node.extend([m.graph.node[0]] * 50_000),
    "values": lambda m: m.graph.initializer.extend([TensorProto(name=f"v{i}", data_type=1, dims=[0]) for i in range(50_000)]),
    "attribute": lambda m: m.graph.node[0].attribute[0].ints.extend([1] * 1_000_000),
    "name": lambda m: setattr(m.graph.node[0], "name", "\x1b[31m\n" * 100_000) or m.graph.node[0].attribute[0].ints.pop(),
}


@pytest.mark.parametrize("name", [*ONNX_EDITS, "nested"])
def test_large_models_are_answered_soon(name: str) -> None:
    model = ModelProto.FromString(MODEL)
    if name != "nested":
        ONNX_EDITS[name](model)
    (FOLDER / "e.onnx").write_bytes(_nested(3000) if name == "nested" else model.SerializeToString())
    assert re.search(r"e.onnx: [ -~]{20,}", _answers(FOLDER / "e.onnx"))


def test_memory_stays_in_proportion(tmp_path: Path) -> None:
    """A process that may hold 64 MB more than it does once it has read a network answers these as any other."""
    for name in ("concatenations", "growing", "sums"):
        (tmp_path / f"{name}.param").write_text(_param(MANY[name]))
        (tmp_path / f"{name}.bin").write_bytes(bytes(4 + 36))
    (tmp_path / "whole.param").write_text(TEXT)
    (tmp_path / "whole.bin").write_bytes(DATA)
    (tmp_path / "n.onnx").write_bytes(MODEL)
    code = f"""
import resource, sys
from pathlib import Path
from adabm_kernels.importers.reading import read_weights
folder = Path({str(tmp_path)!r})
read_weights(folder / "whole.param"), read_weights(folder / "n.onnx")
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (64 << 20),) * 2)
for path in sorted(folder.glob("*.param")):
    try:
        read_weights(path)
    except ValueError as error:
        print(path.name, error)
print("all")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.stdout.endswith("all\n"), done.stderr[-500:]
