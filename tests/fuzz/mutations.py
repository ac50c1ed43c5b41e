"""Parsers that are fuzzed by changing bytes of valid inputs: thousands a second, where drawing whole structures gives a hundred.

Each has seeds, words of its format, and a check as those of targets.py, which has the structures. `changed` makes one input of a
seed; what it makes is decided by the random numbers alone. Under `corpus/` lie inputs that once failed, or that reached lines of a
parser which seeds do not; they are seeds too, and tests/fuzz/test_fuzz.py tries each.
"""

from __future__ import annotations

import functools
import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save as to_bytes
from targets import (
    check_command,
    check_exif,
    check_frames,
    check_state,
    check_table,
    check_y4m,
    exif,
    folder,
    model_parts,
    pictures,
    png,
    refused_or_read,
    states,
)

from adabm_kernels.calibrate import calibrate  # noqa: F401  (what `states` needs is loaded before memory is measured)
from adabm_kernels.checkpoint import HEADER_KEY, load, read_header
from adabm_kernels.commands.streams import PIXEL_FORMATS, Stream
from adabm_kernels.convert import convert_model
from adabm_kernels.files import parse_json
from adabm_kernels.images import jpeg_scan, png_chunks, tiff
from adabm_kernels.importers.reading import read_weights
from adabm_kernels.networks.checkpoints import load_state
from adabm_kernels.planning import times

CORPUS = Path(__file__).parent / "corpus"
LONGEST = 1 << 16  # bytes of an input


@dataclass(frozen=True)
class Parser:
    """seeds: valid inputs. words: pieces of the format. check: raises AssertionError, or what the parser should not have raised."""

    seeds: list[bytes]
    words: tuple[bytes, ...]
    check: Callable[[bytes], None]


PARSERS: dict[str, Callable[[], Parser]] = {}


def parser(make: Callable[[], Parser]) -> Callable[[], Parser]:
    """Add a parser under the name of the function that makes it, once it is asked for, with its corpus among the seeds."""

    @functools.cache
    def made() -> Parser:
        found = make()
        return Parser(found.seeds + kept(make.__name__), found.words, found.check)

    PARSERS[make.__name__] = made
    return made


def kept(name: str) -> list[bytes]:
    """The inputs of a parser that lie under `corpus/`."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


# ---- changes

INTERESTING = (
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    4095,
    4096,
    32767,
    32768,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)
NUMBERS = (
    b"0",
    b"-1",
    b"1",
    b"1e400",
    b"-1e-400",
    b"NaN",
    b"Infinity",
    b"9" * 20,
    b"9" * 5000,
    b"1.5",
    b"0x10",
    b"1_0",
    b"2147483648",
    b"",
)
COMMON = (b"\0", b"\xff" * 8, b"\n", b" ", b'"', b"\\", b"\xed\xb3\xa9", b"\xd9\xa3", b"\x1b[2J", b"%s", b"../", b"[" * 2000)


def _a_number(random: Random, data: bytes) -> bytes:
    """One run of digits becomes another number."""
    starts = [i for i in range(len(data)) if 48 <= data[i] < 58 and not (i and 48 <= data[i - 1] < 58)]
    if not starts:
        return data
    start = random.choice(starts)
    end = start
    while end < len(data) and 48 <= data[end] < 58:
        end += 1
    return data[:start] + random.choice(NUMBERS) + data[end:]


def changed(random: Random, found: Parser) -> bytes:
    """A seed with one to four things changed."""
    data = random.choice(found.seeds)
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        place, size = random.randrange(len(data) + 1), random.choice((1, 1, 2, 4, 8, 16, 64, 256))
        kind = random.randrange(10)
        if kind == 0 and place < len(data):
            data = data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]
        elif kind == 1:
            data = data[:place] + random.randbytes(min(size, 8)) + data[place + min(size, 8) :]
        elif kind == 2:
            data = data[:place]
        elif kind == 3:
            data = data[:place] + data[place + size :]
        elif kind == 4:
            start = random.randrange(len(data) + 1)
            data = data[:place] + data[start : start + size] + data[place:]
        elif kind == 5:
            width, order = random.choice((1, 2, 4, 8)), random.choice(("little", "big"))
            data = data[:place] + (random.choice(INTERESTING) % 256**width).to_bytes(width, order) + data[place + width :]
        elif kind == 6:
            word = random.choice(found.words or COMMON)
            data = data[:place] + word + data[place + random.choice((0, len(word))) :]
        elif kind == 7:
            data = data[:place] + random.choice(COMMON) + data[place:]
        elif kind == 8:
            other = random.choice(found.seeds)
            data = data[:place] + other[random.randrange(len(other) + 1) :]
        else:
            data = _a_number(random, data)
    return data[:LONGEST]


# ---- model files and checkpoints


@functools.cache
def _traced_parts() -> tuple[str, dict[str, torch.Tensor]]:
    """A model of a traced module, whose graph is in its header: (header, tensors)."""
    from safetensors import safe_open

    from adabm_kernels.checkpoint import save

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.PReLU(4), torch.nn.Conv2d(4, 3, 3, padding=1))
    model = convert_model(module.eval(), calibration=[torch.rand(1, 3, 9, 9)])
    save(model, folder() / "traced.safetensors")
    with safe_open(folder() / "traced.safetensors", framework="pt") as file:
        return file.metadata()[HEADER_KEY], {key: file.get_tensor(key) for key in list(file.keys())}


def _headers(text: str, tensors: dict[str, torch.Tensor]) -> Parser:
    path = folder() / "header.safetensors"

    def check(data: bytes) -> None:
        path.write_bytes(to_bytes(tensors, {HEADER_KEY: data.decode("utf-8", "replace")}))
        refused_or_read(lambda: read_header(path), ValueError)
        refused_or_read(lambda: load(path), ValueError)

    words = [f'"{key}"'.encode() for key in sorted(set(_keys(json.loads(text))))]
    return Parser([text.encode()], (*words, b"null", b"true", b"{}", b"[]", *NUMBERS), check)


def _keys(value: object) -> list[str]:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return (list(value) if isinstance(value, dict) else []) + [key for one in inner for key in _keys(one)]


@parser
def model_headers() -> Parser:
    """The JSON headers of model files, of a known network."""
    return _headers(*model_parts())


@parser
def graph_headers() -> Parser:
    """The JSON headers of model files that hold the graph of a traced module."""
    return _headers(*_traced_parts())


@parser
def model_bytes() -> Parser:
    """Model files, of which any byte may be another."""
    path = folder() / "bytes.safetensors"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        refused_or_read(lambda: read_header(path), ValueError)
        refused_or_read(lambda: load_state(path), ValueError)

    text, tensors = model_parts()
    few = {key: tensors[key] for key in list(tensors)[:4]}
    seeds = [
        to_bytes(few, {HEADER_KEY: '{"format":6,"network":"edsr"}'}),
        to_bytes({"x": torch.ones(2, 2)}),
        to_bytes({}),
        to_bytes(few),
    ]
    return Parser(
        seeds, (b'"F32"', b'"F8_E4M3"', b'"I64"', b'"BOOL"', b'"shape"', b'"data_offsets"', b'"__metadata__"', *NUMBERS), check
    )


@parser
def checkpoint_bytes() -> Parser:
    """Checkpoints of both kinds of torch."""
    path = folder() / "bytes.pt"
    state = {"head.0.weight": torch.ones(2, 3, 3, 3), "head.0.bias": torch.ones(2)}
    seeds = []
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        buffer = io.BytesIO()
        torch.save({"state_dict": state, "epoch": 3}, buffer, **options)
        seeds.append(buffer.getvalue())

    def check(data: bytes) -> None:
        path.write_bytes(data)
        state = refused_or_read(lambda: load_state(path), ValueError)
        if state:
            check_state(state)

    words = (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n",
             b"cos\nsystem\n", b"cbuiltins\neval\n", b"\x8a\x08" + b"\xff" * 8, b"R", b"b", b"\x85", b".")  # fmt: skip
    return Parser(seeds, words, check)


@parser
def state_names() -> Parser:
    """State dicts by their names alone, one a line, whose tensors have the shape that the first digit says."""

    def check(data: bytes) -> None:
        names = data.decode("utf-8", "replace").splitlines()[:300]
        check_state({name: SHAPES[sum(name.encode()) % len(SHAPES)] if name not in shapes else shapes[name] for name in names})

    shapes = {name: value for state in states() for name, value in state.items() if isinstance(value, torch.Tensor)}
    seeds = ["\n".join(state).encode() for state in states()]
    return Parser(seeds, (b"module.", b"body.", b".weight", b".bias", b"\n", b"weight_g", b"weight_v", *NUMBERS), check)


SHAPES = [torch.ones(shape) for shape in ((), (1,), (4,), (4, 3, 3, 3), (4, 4, 3, 3), (0,), (3, 4, 3, 3), (16, 4, 3, 3))]


# ---- files of ncnn and ONNX


@functools.cache
def _ncnn() -> tuple[bytes, bytes]:
    from imported_networks import SPECS, graph_state, network_of
    from ncnn_files import write_ncnn

    spec = SPECS["edsr"]
    path = write_ncnn(folder() / "whole.param", spec.graph(), graph_state(network_of(spec)))
    return path.read_bytes(), path.with_suffix(".bin").read_bytes()


@parser
def ncnn_params() -> Parser:
    """The texts of ncnn's networks, beside the weights of a valid one."""
    text, weights = _ncnn()
    path = folder() / "a.param"
    path.with_suffix(".bin").write_bytes(weights)

    def check(data: bytes) -> None:
        path.write_bytes(data)
        refused_or_read(lambda: read_weights(path), ValueError)

    layers = (
        b"Convolution BatchNorm PReLU BinaryOp PixelShuffle Interp Concat Slice Crop Split Input Eltwise ReLU Pooling Padding Reorg"
    )
    words = (*layers.split(), b"7767517\n", b"-23303=2,1,2", b"0=", b"1=", *NUMBERS)
    return Parser([text], tuple(words), check)


@parser
def ncnn_weights() -> Parser:
    """The weights of ncnn's networks, beside a valid text."""
    text, weights = _ncnn()
    path = folder() / "b.param"
    path.write_bytes(text)

    def check(data: bytes) -> None:
        path.with_suffix(".bin").write_bytes(data)
        refused_or_read(lambda: read_weights(path), ValueError)

    return Parser([weights], (b"\x47\x6b\x30\x01", b"\xad\x38\xd5\0", bytes(4), b"\0\0\xc0\x7f", b"\0\0\x80\x7f"), check)


@parser
def onnx_models() -> Parser:
    """Models of ONNX."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    values = {"w": np.ones((3, 3, 3, 3), np.float32), "f": np.array([1, 1, 2, 2], np.float32), "s": np.float32(2)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Resize", ["c", "", "f"], ["r"], mode="nearest"),
        helper.make_node("Mul", ["r", "s"], ["y"]),
    ]
    kind = TensorProto.FLOAT
    ends = [helper.make_tensor_value_info("x", kind, ["n", 3, "h", "w"])], [helper.make_tensor_value_info("y", kind, None)]
    graph = helper.make_graph(nodes, "network", *ends, [numpy_helper.from_array(value, name) for name, value in values.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = folder() / "c.onnx"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        refused_or_read(lambda: read_weights(path), ValueError)

    names = (
        b"Conv Resize Mul Add Relu PRelu DepthToSpace Reshape Transpose Concat Slice Pad Constant Shape Gather Cast nearest pads"
    )
    words = [bytes([len(name)]) + name for name in names.split()]
    return Parser([model.SerializeToString()], (*words, b"\x12\x01y", b"\x0a\x01x", b"\xff" * 9 + b"\x01"), check)


# ---- tables, frames


@parser
def times_tables() -> Parser:
    """Tables of times."""
    whole = json.loads(times.SHIPPED.read_text())
    few = json.dumps(_shortened(whole)).encode()
    return Parser([few, b'{"a": {"us": 1.5, "config": 3}}'], (b"null", b"{}", b"[]", b'"us"', b'"box"', *NUMBERS), check_table)


def _shortened(value: object) -> object:
    """JSON with at most two items in each list, and the objects whole."""
    if isinstance(value, dict):
        return {key: _shortened(inner) for key, inner in value.items()}
    return [_shortened(inner) for inner in value[:2]] if isinstance(value, list) else value


@parser
def json_texts() -> Parser:
    """JSON of any kind."""
    seeds = [b'{"a": [1, -2.5e3, true, null, "x\\u00e9"], "b": {"c": []}}', b"[[[[]]]]", b'"\\ud800"', b"123456789012345678"]
    words = (b"[", b"]", b"{", b"}", b'"', b":", b",", b"\\u", b"\\ud83d", b"null", b"true", *NUMBERS)
    return Parser(seeds, words, lambda data: refused_or_read(lambda: parse_json(data), ValueError))


@parser
def y4m_streams() -> Parser:
    """Streams of YUV4MPEG2."""
    kinds = ("C420jpeg", "C444", "Cmono", "C422p10", "C444alpha", "C410 XYSCSS=410", "XCOLORRANGE=FULL", "Ip A1:1 F25:1")
    seeds = [f"YUV4MPEG2 W4 H2 {kind}\nFRAME\n".encode() + bytes(range(48)) + b"FRAME Ip\n" + bytes(48) for kind in kinds]
    words = (b"FRAME\n", b"YUV4MPEG2 ", b" W", b" H", b" C", b" It", b" X", *(kind.encode() for kind in kinds), *NUMBERS)
    return Parser(seeds, words, check_y4m)


@parser
def raw_streams() -> Parser:
    """Raw frames: of the first three bytes come width, height and the format of pixels."""

    def check(data: bytes) -> None:
        width, height, kind = (data + bytes(3))[:3]
        stream = Stream(width % 9 + 1, height % 9 + 1, sorted(PIXEL_FORMATS)[kind % len(PIXEL_FORMATS)])
        check_frames(io.BytesIO(data[3:]), stream)

    return Parser([bytes(range(200)), b"\1\2\3" + bytes(600)], (), check)


# ---- pictures: what is parsed here and not by libvips


@parser
def exif_bytes() -> Parser:
    """EXIF and the directories of TIFF."""
    inner = exif([(270, 2, 4, 0x41424344), (274, 3, 1, 6), (34665, 4, 1, 26), (513, 4, 1, 8), (514, 4, 1, 9)])
    seeds = [inner + bytes(64), exif([(274, 3, 1, 6), (282, 5, 1, 40)], ">") + bytes(64)]

    def check(data: bytes) -> None:
        check_exif(data)
        refused_or_read(lambda: tiff.directories(io.BytesIO(data)), ValueError)
        refused_or_read(lambda: tiff.exif_of(io.BytesIO(data), 0), ValueError)

    tags = (struct.pack("<HHII", tag, kind, 1, 8) for tag in (330, 34665, 34853, 40965, 513) for kind in (3, 4, 13))
    return Parser(seeds, (*tags, b"II*\0", b"MM\0*", b"II+\0", struct.pack("<I", 8), struct.pack(">I", 8)), check)


@parser
def tiff_files() -> Parser:
    """TIFF files, as far as their directories go."""
    found = [data for data in pictures() if data[:2] in (b"II", b"MM")]

    def check(data: bytes) -> None:
        directories = refused_or_read(lambda: tiff.directories(io.BytesIO(data)), ValueError)
        if directories:
            refused_or_read(lambda: (tiff.full_picture(directories), tiff.pages(directories)), ValueError)
        refused_or_read(lambda: tiff.exif_of(io.BytesIO(data), 0), ValueError)

    return Parser(found, (b"II+\0\x08\0\0\0", struct.pack("<I", 8), struct.pack("<HHII", 330, 4, 2, 8)), check)


@parser
def png_files() -> Parser:
    """PNG files, as far as their chunks go."""
    found = [data for data in pictures() if data.startswith(b"\x89PNG")]
    found += [png((b"tEXt", b"k\0v"), (b"zTXt", b"k\0\0x"), (b"iTXt", b"k\0\0\0\0\0v"), (b"gAMA", bytes(4)), (b"cHRM", bytes(32)))]
    names = (b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"pHYs", b"sRGB", b"acTL", b"IDAT", b"IEND", b"cICP", b"zTXt", b"gAMA")

    def check(data: bytes) -> None:
        refused_or_read(lambda: png_chunks.facts(io.BytesIO(data)), ValueError)

    return Parser(found, names, check)


@parser
def jpeg_files() -> Parser:
    """JPEG files, as far as it is looked for faults in their segments and scans."""
    found = [data for data in pictures() if data.startswith(b"\xff\xd8")]

    def check(data: bytes) -> None:
        jpeg_scan.fault(data)

    return Parser(
        found, tuple(bytes([255, code]) for code in (0, 192, 194, 196, 208, 215, 216, 217, 218, 219, 221, 224, 225, 255)), check
    )


# ---- the command line


@parser
def command_words() -> Parser:
    """Command lines, one word a line."""
    lines = [
        "upscale a.png -o b.png --bits 4 --threads 2",
        "upscale --y4m - --scale 1.5 --matrix bt709",
        "upscale x --raw 16x9 --pix-fmt rgb24",
        "upscale p --fit 10x10 --existing skip --max-memory 1G --suffix _{scale}",
        "info m.safetensors",
        "report p.jpg -o r.html",
        "completion bash",
        "eval --data d --model m --json j",
        "calibrate --weights w.pt --images i -o o --mean-shift 1,2,3 --rgb-range 1",
    ]
    words = (
        b"--window --halo --depth --width --height --quality --format --select --downscale --backend --device auto cuda:1 nan - ="
    )

    def check(data: bytes) -> None:
        argv = data.decode("utf-8", "surrogateescape").split("\n")[:12]
        if argv[0] not in ("bench", "tune", "models"):  # they measure, or print what there is
            check_command(argv)

    return Parser([line.replace(" ", "\n").encode() for line in lines], (*words.split(), b"\n", *NUMBERS), check)
