"""What is fuzzed, and with what: for each parser a strategy of inputs, and a check that fails where one is taken wrongly.

A parser either reads its input, and what it read is then used, or refuses it with an exception that its documentation names, in one
short line. It takes no longer than SECONDS and holds no more memory than the input asks for. `tests/fuzz/test_fuzz.py` tries a few
inputs for each target, `python tests/fuzz/run.py` as many as its time allows.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import os
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from small import small_edsr

from adabm_kernels import cli
from adabm_kernels.backends import tables
from adabm_kernels.calibrate import calibrate
from adabm_kernels.checkpoint import HEADER_KEY, load, read_header, save
from adabm_kernels.commands.common import CommandError
from adabm_kernels.commands.streams import PIXEL_FORMATS, Stream, read_frames, read_y4m
from adabm_kernels.commands.yuv import from_rgb, to_rgb
from adabm_kernels.config import ConvertConfig
from adabm_kernels.convert import convert_model
from adabm_kernels.images import Layout, PictureWriter, ifd, metadata, open_picture
from adabm_kernels.images.formats import EXTENSIONS
from adabm_kernels.networks.checkpoints import load_state
from adabm_kernels.networks.detect import detect, float_network, to_float_state
from adabm_kernels.networks.edsr import EDSRSpec
from adabm_kernels.networks.rdn import RDNSpec
from adabm_kernels.networks.rrdb import RRDBSpec
from adabm_kernels.networks.srresnet import SRResNetSpec
from adabm_kernels.networks.srvgg import SRVGGSpec
from adabm_kernels.planning import times

SECONDS = 1.0  # of the processor, for a small input
_SLACK = 4.0  # times as long where other work runs beside
LONGEST = 2000  # characters of a message
MEMORY = 310 << 20
"""Bytes by which a small input may let the process grow beyond the most it ever had: ten times the input and 300 MB."""
MAX_PIXELS = 1 << 16
"""Of pictures and frames: a larger one is a matter of --max-pixels, not of the parser."""


@dataclass(frozen=True)
class Target:
    """inputs: what is tried. check: raises AssertionError, or what the parser should not have raised. examples: of a short run."""

    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], None]
    examples: int = 50


TARGETS: dict[str, Callable[[], Target]] = {}


def target(make: Callable[[], Target]) -> Callable[[], Target]:
    """Add a target under the name of the function that makes it, once it is asked for."""
    TARGETS[make.__name__] = functools.cache(make)
    return TARGETS[make.__name__]


def refused_or_read(read: Callable[[], Any], *refusals: type[Exception]) -> Any:
    """What `read` gives, None where it refuses with one of these exceptions, in one short line and soon."""
    _count_memory_anew()
    start, held = time.process_time(), _most_held()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except refusals as error:
        text = str(error)
        assert text and len(text) < LONGEST, f"a message of {len(text)} characters: {text[:300]}"
        assert "weights_only=False" not in text and "Re-running" not in text, text
        return None
    finally:
        spent = time.process_time() - start
        assert spent < SECONDS * _SLACK, f"it took {spent:.2f} s"
        assert (grown := _most_held() - held) < MEMORY, f"it took {grown >> 20} MB"


def _count_memory_anew() -> None:
    """Has the system forget the most that this process held before, where it can: an input that takes less would not be seen."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")


def _most_held() -> int:
    """The most bytes of memory that this process has held, since they were last counted anew."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@functools.cache
def folder() -> Path:
    """Where files of inputs are written: in memory, where the system has such a folder."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="adabm-fuzz-", dir=memory if os.access(memory, os.W_OK) else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


# ---- parts of inputs

HOSTILE_NUMBERS = [0, -1, 1, 2, 3, 255, 999, 1000, 10**6, 10**9, 2**31, 2**63, 10**400, -(10**400)]
HOSTILE_FLOATS = [0.0, -0.0, 1e-45, 1e-300, 1.0, 3.4e38, 3.5e38, 1e308, float("inf"), float("-inf"), float("nan"), 1e20]
DEEP = "[" * 100_000 + "]" * 100_000

hostile_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.sampled_from(HOSTILE_NUMBERS) | st.sampled_from(HOSTILE_FLOATS) | st.integers() | st.floats()
    | st.text(max_size=8) | st.sampled_from(["x" * 100_000, "\x1b[2J", "nan", "edsr", "rdn"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip

# Changes of bytes: (kind, where in parts of the whole, what).
byte_changes = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "insert", "repeat", "remove"]), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
    min_size=1,
    max_size=4,
)


def changed(data: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, what in changes:
        place = int(where * len(data))
        match kind:
            case "set":
                data = data[:place] + what + data[place + len(what) :]
            case "cut":
                data = data[:place]
            case "insert":
                data = data[:place] + what + data[place:]
            case "repeat":
                data = data[:place] + data[place : place + 64 * len(what)] + data[place:]
            case "remove":
                data = data[:place] + data[place + len(what) :]
    return data


def places_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in JSON."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [inner for key, item in items for inner in places_in(item, (*path, key))]


def put(value: Any, path: tuple[Any, ...], new: Any, remove: bool) -> None:
    """Change the value at a path where it is still there."""
    for key in path[:-1]:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return
    try:
        if remove:
            del value[path[-1]]
        else:
            value[path[-1]] = new
    except (KeyError, IndexError, TypeError):
        return


# ---- model files


@functools.cache
def model_bytes() -> bytes:
    """A converted model, as small as it can be with an exit, running thresholds and int16 features."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, 18, 17, generator=torch.Generator().manual_seed(0)) * 255
    config = ConvertConfig(batch=2)
    model = convert_model(calibrate(float_network(EDSRSpec(2, 1, 4)), [images], config, check=False))
    model.set_running_thresholds(0.01)
    save(model, folder() / "valid.safetensors")
    return (folder() / "valid.safetensors").read_bytes()


@functools.cache
def model_parts() -> tuple[str, dict[str, torch.Tensor]]:
    model_bytes()
    with safe_open(folder() / "valid.safetensors", framework="pt") as file:
        return file.metadata()[HEADER_KEY], {key: file.get_tensor(key) for key in list(file.keys())}


TENSOR_CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "removed": lambda x: None,
    "NaN": lambda x: x.float() * float("nan"),
    "infinite": lambda x: x.float() + float("inf"),
    "1e20": lambda x: torch.full_like(x.float(), 1e20),
    "negative": lambda x: -x,
    "zero": lambda x: x * 0,
    "float64": lambda x: x.double(),
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.to(torch.bfloat16),
    "float8": lambda x: x.float().to(torch.float8_e4m3fn),
    "int8": lambda x: x.to(torch.int8),
    "int64": lambda x: x.to(torch.int64),
    "bool": lambda x: x > 0,
    "empty": lambda x: x.flatten()[:0],
    "flat": lambda x: x.flatten(),
    "one more": lambda x: torch.cat([x.flatten(), x.flatten()[:1]]),
    "an axis more": lambda x: x[None],
    "twice": lambda x: torch.cat([x, x]) if x.ndim else x,
    "scalar": lambda x: x.flatten()[0] if x.numel() else x,
    "largest": lambda x: torch.full_like(x, 127 if x.dtype == torch.int8 else 3e38 if x.dtype == torch.float32 else 1),
}


@target
def model_files() -> Target:
    """Model files with a few things wrong: in the header, in tensors, in bytes."""
    text, tensors = model_parts()
    header = json.loads(text)
    edits = st.lists(st.tuples(st.sampled_from(places_in(header)), hostile_json, st.booleans()), max_size=3)
    of_tensors = st.lists(st.tuples(st.sampled_from(sorted(tensors)), st.sampled_from(sorted(TENSOR_CHANGES))), max_size=2)
    texts = st.none() | st.sampled_from([DEEP, "", "{", "[]", "7", "1" * 5000, text[:-1] + ', "extra": ' + DEEP + "}"])

    def check(given: Any) -> None:
        edits, changes, raw, other_text = given
        new = json.loads(text)
        for path, value, remove in edits:
            put(new, path, value, remove)
        held = dict(tensors)
        for key, kind in changes:
            if key in held:
                made = TENSOR_CHANGES[kind](held.pop(key))
                held |= {} if made is None else {key: made.contiguous()}
        check_model_file(changed(to_bytes(held, {HEADER_KEY: other_text or _dumped(new)}), raw or []))

    return Target(st.tuples(edits, of_tensors, st.none() | byte_changes, texts), check)


def _dumped(header: Any) -> str:
    """As JSON, whole numbers of any length included."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(header)
    finally:
        sys.set_int_max_str_digits(limit)


def check_model_file(data: bytes) -> None:
    path = folder() / "model.safetensors"
    path.write_bytes(data)
    refused_or_read(lambda: read_header(path), ValueError)
    status, _, errors = run("info", path)
    assert status in (0, 2) and "unexpected" not in errors, errors
    model = refused_or_read(lambda: load(path), ValueError)
    if model is None:
        return
    with torch.no_grad():
        y = model(torch.full((1, 3, 8, 8), 100.0))
        assert y.isfinite().all(), "it was accepted, and what it computes is not finite"
        if model.float_state is not None:
            model.float_model()
    save(model, folder() / "again.safetensors")
    assert torch.equal(load(folder() / "again.safetensors")(torch.zeros(1, 3, 8, 8)), model(torch.zeros(1, 3, 8, 8)))


def run(*argv: Any) -> tuple[int, str, str]:
    """One command in this process: status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = cli.main([str(arg) for arg in argv])
        except SystemExit as stop:
            status = int(stop.code or 0)
    return status, out.getvalue(), err.getvalue()


# ---- state dicts and checkpoints


def _random_state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in network.state_dict().items()}


@functools.cache
def states() -> list[dict[str, torch.Tensor]]:
    """Of the smallest network of each kind, and of one that is calibrated."""
    torch.manual_seed(0)
    specs = [RDNSpec(2, 1, 2, 4, 4), SRResNetSpec(2, 1, 4), SRVGGSpec(2, 1, 4), RRDBSpec(4, 1, 4, 4)]
    found = [_random_state(small_edsr(blocks=1, channels=4)), *(_random_state(float_network(spec)) for spec in specs)]
    config = ConvertConfig(recipe="paper", batch=2)
    calibrated = calibrate(found[0], [torch.rand(2, 3, 16, 16) * 255], config, check=False)
    return [*found, _random_state(calibrated)]


def _nested(x: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([x, x])


STATE_CHANGES: dict[str, Callable[[torch.Tensor], Any]] = {
    **TENSOR_CHANGES,
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse() if x.ndim else x,
    "nested": _nested,
    "quantised": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8),
    "uninitialised": lambda x: torch.nn.parameter.UninitializedParameter(),
    "expanded": lambda x: x.flatten()[:1].clone().expand(1 << 40),
    "expanded to its shape": lambda x: x.flatten()[:1].clone().expand(x.numel()).view(x.shape) if x.numel() else x,
    "complex": lambda x: torch.complex(x.float(), x.float()),
    "a number": lambda x: 1.0,
    "text": lambda x: "x",
    "a list": lambda x: [x],
    "a dictionary": lambda x: {"weight": x},
    "1e300": lambda x: torch.full_like(x.double(), 1e300),
}
_RENAMES = st.sampled_from(
    ["{}x", "module.{}", "a.b.{}", "{}.weight", "model.{}", "body.999.{}", "body.1000.{}", "body." + "9" * 20 + ".{}",
     "body." + "9" * 5000 + ".{}", "RDBs.999.convs.999.{}", "{}" * 50, "\x1b[2J{}", "x" * 100_000 + "{}"]
)  # fmt: skip


@target
def state_dicts() -> Target:
    """State dicts with weights and names changed, in wrappings that hold one another."""
    changes = st.lists(st.tuples(st.integers(0, 200), st.sampled_from(sorted(STATE_CHANGES))), max_size=3)
    renames = st.lists(st.tuples(st.integers(0, 200), _RENAMES), max_size=3)
    wrappings = st.lists(st.sampled_from(["state_dict", "params", "params_ema", "itself", "twice", "beside"]), max_size=3)
    scales = st.sampled_from([*HOSTILE_NUMBERS, *HOSTILE_FLOATS, True, "1", None]) | st.just(1.0)

    def check(given: Any) -> None:
        kind, changes, renames, wrappings, res_scale = given
        check_state(altered(states()[kind], changes, renames, wrappings), res_scale)

    return Target(st.tuples(st.integers(0, 5), changes, renames, wrappings, scales), check)


def altered(state: dict[str, Any], changes: Any, renames: Any, wrappings: Any) -> dict[str, Any]:
    keys, made = list(state), dict(state)
    for index, kind in changes:
        key = keys[index % len(keys)]
        if isinstance(made.get(key), torch.Tensor) and made[key] is state[key]:
            value = STATE_CHANGES[kind](state[key])
            made |= {} if value is None else {key: value}
            if value is None:
                del made[key]
    for index, name in renames:
        key = keys[index % len(keys)]
        if key in made:
            made[name.format(key, *[key] * 60)] = made.pop(key)
    for wrapping in wrappings:
        outer: dict[str, Any] = {"epoch": 3}
        match wrapping:
            case "itself":
                made["again"] = made
                continue
            case "twice":
                outer |= {"a": made, "b": made, "c": {"d": made}}
            case "beside":
                outer |= {"state_dict": made, "discriminator": {"0.weight": torch.ones(2)}}
            case _:
                outer[wrapping] = made
        made = outer
    return made


def check_state(state: Any, res_scale: Any = 1.0) -> None:
    found = refused_or_read(lambda: detect(state, res_scale), ValueError, TypeError)
    if found is not None:
        weights = to_float_state(state, found)
        assert all(value.isfinite().all() for value in weights.values())
        float_network(found.spec).load_state_dict(weights)


@target
def checkpoints() -> Target:
    """Checkpoint files of every kind with bytes changed, and pickles of random instructions."""
    state, whole = states()[0], []
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        buffer = io.BytesIO()
        torch.save({"state_dict": state, "epoch": 3, "psnr": np.float64(30.5)}, buffer, **options)
        whole.append((buffer.getvalue(), ".pt"))
    whole.append((to_bytes(state), ".safetensors"))
    operation = st.sampled_from([bytes([code]) for code in range(256)]) | st.sampled_from(
        [b"cos\nsystem\n", b"ctorch\nload\n", b"X\x03\0\0\0abc", b"K\x01", b"]", b"}", b"(", b"t", b"R", b"b", b"q\0", b"h\0",
         b"\x85",
         b"\x8a\x08" + b"\xff" * 8, b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"cbuiltins\neval\n"]
    )  # fmt: skip
    pickles = st.lists(operation, max_size=30).map(lambda parts: (b"\x80\x02" + b"".join(parts) + b".", ".pt"))
    inputs = st.tuples(st.sampled_from(whole) | pickles, byte_changes | st.just([]))

    def check(given: Any) -> None:
        (data, suffix), changes = given
        check_checkpoint(changed(data, changes), suffix)

    return Target(inputs, check)


def check_checkpoint(data: bytes, suffix: str) -> None:
    path = folder() / f"checkpoint{suffix}"
    path.write_bytes(data)
    state = refused_or_read(lambda: load_state(path), ValueError)
    if state:
        check_state(state)


# ---- tables of times


@target
def json_tables() -> Target:
    """Tables of times of the processor and of cards."""
    text = times.SHIPPED.read_text()
    whole = json.loads(text)
    edits = st.lists(st.tuples(st.sampled_from(places_in(whole)), hostile_json, st.booleans()), min_size=1, max_size=3)
    raw = byte_changes.map(lambda changes: changed(text.encode(), changes)) | st.sampled_from([DEEP.encode(), b"1" * 5000, b"\xff"])

    def check(given: Any) -> None:
        if isinstance(given, bytes):
            check_table(given)
            return
        new = json.loads(text)
        for path, value, remove in given:
            put(new, path, value, remove)
        check_table(_dumped(new).encode())

    return Target(edits | raw, check)


def check_table(data: bytes) -> None:
    path = folder() / "table.json"
    path.write_bytes(data)
    found = refused_or_read(lambda: times.read(path), ValueError)
    for table in (found or {}).values():
        for tile, kinds in table.costs.items():
            assert 0 <= table.time(tile, next(iter(kinds)), 1.0, 8, 8, False) < float("inf")
    assert isinstance(tables.read(path, lambda entry: 0 < entry["us"] < 1e9), dict)


# ---- frames


@target
def y4m() -> Target:
    """Streams of frames of YUV4MPEG2."""
    size = st.sampled_from(["1", "2", "7", "16", "0", "-1", "1_6", "1e3", "", "9" * 20, "9" * 5000, "٣", "+4", "0x10"])
    word = st.sampled_from(
        ["F25:1", "Ip", "It", "A1:1", "C420", "C420jpeg", "C444alpha", "Cmono", "C422p10", "C420p16", "C999", "XYSCSS=420MPEG2",
         "XCOLORRANGE=FULL", "X" + "y" * 5000, "W8", "H8", "\x00", "\xff"]
    )  # fmt: skip
    header = st.tuples(size, size, st.lists(word, max_size=4)).map(
        lambda parts: f"YUV4MPEG2 W{parts[0]} H{parts[1]} {' '.join(parts[2])}\n".encode("latin-1", "replace")
    )
    frames = st.sampled_from([b"FRAME\n", b"FRAME Ip\n", b"FRAME " + b"x" * (1 << 20), b"FRAM", b"frame\n", b"", b"FRAME\r\n"])
    body = st.lists(st.tuples(frames, st.integers(0, 600)), max_size=3)
    inputs = st.tuples(header, body, byte_changes | st.just([]))

    def check(given: Any) -> None:
        header, body, changes = given
        check_y4m(changed(header + b"".join(start + bytes(range(200)) * (count // 200 + 1) for start, count in body), changes))

    return Target(inputs, check, 100)


def check_y4m(data: bytes) -> None:
    source = io.BytesIO(data)
    stream = refused_or_read(lambda: read_y4m(source, None), ValueError)
    if stream is not None and stream.width * stream.height <= MAX_PIXELS:
        check_frames(source, stream)


def check_frames(source: io.BytesIO, stream: Stream) -> None:
    frames = refused_or_read(lambda: list(read_frames(source, stream)), CommandError)
    for planes in (frames or [])[:2]:
        if stream.y4m is not None:
            rgb = to_rgb(planes, stream)
            assert rgb.shape[:2] == (stream.height, stream.width)
            assert [plane.shape for plane in from_rgb(rgb, stream)] == stream.planes
    assert re.fullmatch(rb"(YUV4MPEG2 W\d+ H\d+[^\n]*\n)?", stream.header())


@target
def raw_frames() -> Target:
    """Frames of raw pixels that end anywhere."""
    side = st.integers(1, 9)
    inputs = st.tuples(side, side, st.sampled_from(sorted(PIXEL_FORMATS)), st.binary(max_size=600))
    return Target(inputs, lambda given: check_frames(io.BytesIO(given[3]), Stream(*given[:3])), 100)


# ---- pictures


@functools.cache
def pictures() -> list[bytes]:
    """One of every format that is written, of several kinds, with EXIF and a profile where they can have them."""
    found, generator = [], np.random.default_rng(0)
    for suffix in (".png", ".jpg", ".webp", ".tif", ".bmp"):
        for channels, dtype in ((1, np.uint8), (3, np.uint8), (4, np.uint8), (3, np.uint16)):
            if (channels == 4 and suffix in (".jpg", ".bmp")) or (dtype == np.uint16 and suffix not in (".png", ".tif")):
                continue
            path, layout = folder() / f"picture{suffix}", Layout(11, 9, channels, 8 * np.dtype(dtype).itemsize, dpi=(72.0, 72.0))
            with PictureWriter(path, EXTENSIONS[suffix], layout) as out:
                out.write(generator.integers(0, 256, (9, 11, channels)).astype(dtype))
            found.append(path.read_bytes())
    return found


@target
def picture_files() -> Target:
    """Pictures of every format with bytes changed."""
    return Target(
        st.tuples(st.integers(0, 100), byte_changes),
        lambda given: check_picture(changed(pictures()[given[0] % len(pictures())], given[1])),
        150,
    )


def check_picture(data: bytes) -> None:
    def read() -> Any:
        reader = open_picture(data, max_pixels=MAX_PIXELS)
        return reader, reader.read(reader.layout.height)

    found = refused_or_read(read, ValueError)
    if found is not None:
        reader, rows = found
        layout = reader.layout
        assert rows.shape == (layout.height, layout.width, layout.channels) and rows.dtype == layout.dtype
        if layout.metadata is not None:
            refused_or_read(lambda: layout.metadata.upright(8, 8, layout.dpi), ValueError)
        refused_or_read(lambda: (layout.profile, layout.rgb_profile), ValueError)


def exif(entries: list[tuple[int, int, int, int]], order: str = "<", offset: int = 8) -> bytes:
    """EXIF with one directory. entries: tag, type, how many, value."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", offset)
    table = b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries)
    return head + struct.pack(f"{order}H", len(entries)) + table + bytes(4)


@target
def exif_data() -> Target:
    """EXIF of directories that point anywhere."""
    number = st.sampled_from([0, 1, 2, 8, 9, 2**16 - 1, 2**31, 2**32 - 1]) | st.integers(0, 400)
    tag = st.sampled_from([270, 274, 34665, 34853, 40965, 0x0201, 0x0202, 282, 283, 256, 257]) | st.integers(0, 2**16 - 1)
    entry = st.tuples(tag, st.integers(0, 14), number, number)
    inputs = st.tuples(st.lists(entry, max_size=12), st.sampled_from("<>"), number, st.binary(max_size=64))

    def check(given: Any) -> None:
        entries, order, offset, rest = given
        check_exif(exif(entries, order, offset) + rest)

    return Target(inputs, check, 100)


def check_exif(data: bytes) -> None:
    assert 1 <= metadata.orientation_of(data) <= 8
    found = metadata.Metadata(exif=data).upright(10, 10, (72.0, 72.0)).exif
    assert found is None or len(found) <= len(data)
    tags = refused_or_read(lambda: ifd.of_exif(data), ValueError, struct.error)
    if tags:
        again = ifd.as_exif(tags)
        assert len(again) <= 64 * (len(data) + 1024) and ifd.of_exif(again).keys() <= tags.keys()


def png(*chunks: tuple[bytes, bytes], damaged: bool = False) -> bytes:
    """A picture of one pixel with chunks before it."""
    head, pixels = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0), zlib.compress(b"\0\0")
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in ((b"IHDR", head), *chunks, (b"IDAT", pixels), (b"IEND", b"")):
        checksum = zlib.crc32(data, zlib.crc32(name)) ^ (damaged and (name, data) in chunks)
        parts.append(struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum))
    return b"".join(parts)


# ---- the command line

_OPTIONS = [
    "--window", "--tile", "--halo", "--max-memory", "--bits", "--depth", "--threads", "--scale", "--width", "--height", "--fit",
    "--raw", "--pix-fmt", "--matrix", "--max-pixels", "--quality", "--suffix", "--format", "--existing", "--res-scale",
    "--rgb-range", "--mean-shift", "--weight-bits", "--act-bits", "--steps", "--tolerance", "--seed", "--select", "--downscale",
    "--depth-loss", "--target-bits", "--model", "--backend", "--device", "-o", "--json", "--y4m", "--weights", "--images", "--data",
]  # fmt: skip
_VALUES = [
    "", "-", "0", "-1", "1", "4", "1_0", "٣", "1e400", "1e-400", "nan", "inf", "9" * 30, "9" * 5000, "9" * 400 + "G", "0x10",
    "1,2,3",
    "nan,0,0", "1x1", "0x0", "9" * 5000 + "x1", "auto", "\x1b[2J", "/nowhere/at/all", ".", "\udce9", "a\x00b", "cpu",
    "cuda:99",
    "cuda:" + "9" * 5000, "{scale}", "{scale.__class__}", "png", "exe",
]  # fmt: skip


@target
def command_lines() -> Target:
    """Commands with options that they have or have not, and values that cannot be meant."""
    words = st.sampled_from(_OPTIONS) | st.sampled_from(_VALUES) | st.text(max_size=5)
    commands = st.sampled_from(["upscale", "report", "eval", "calibrate", "info", "completion", "nonsense"])
    return Target(st.tuples(commands, st.lists(words, max_size=6)), lambda given: check_command([given[0], *given[1]]), 150)


def check_command(argv: list[str]) -> None:
    """In an empty folder, where no command has anything to do but to say so."""
    before = os.getcwd()
    empty = folder() / "empty"
    empty.mkdir(exist_ok=True)
    os.chdir(empty)
    try:
        status, _, errors = run(*argv)
    finally:
        os.chdir(before)
    assert not list(empty.iterdir()), "it wrote something"
    assert "unexpected" not in errors and "Traceback" not in errors, errors
    assert status in (0, 1, 2), status
    if status:
        last = errors.strip().splitlines()[-1]
        assert last.startswith("adabm: error: ") and not re.search(r"[\x00-\x08\x0b-\x1f]", last), errors
        assert len(last) < 8 * LONGEST, errors[:300]
