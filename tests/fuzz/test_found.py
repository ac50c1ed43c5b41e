"""Inputs that once hung, crashed or were taken for what they are not, and their kin: each is refused in a sentence, and soon."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import targets
import torch
from safetensors.torch import save as to_bytes
from small import one_thread, small_edsr  # noqa: F401
from targets import DEEP, HOSTILE_NUMBERS, STATE_CHANGES, exif, png, refused_or_read

from adabm_kernels.checkpoint import HEADER_KEY, load
from adabm_kernels.commands.common import CommandError
from adabm_kernels.commands.streams import read_frames, read_y4m
from adabm_kernels.files import parse_json
from adabm_kernels.images import ifd, open_picture, png_chunks, tiff
from adabm_kernels.networks.checkpoints import load_state
from adabm_kernels.networks.detect import detect
from adabm_kernels.planning import times


def refusal(read: Callable[[], Any], *kinds: type[Exception]) -> str:
    """What it is refused with, and that it is, soon."""
    caught: list[Exception] = []

    def reading() -> Any:
        try:
            return read()
        except kinds as error:
            caught.append(error)
            raise

    assert refused_or_read(reading, *kinds) is None and caught, "it was read"
    return str(caught[0])


# ---- numbers of blocks that nothing holds

T = torch.ones(1)


def edsr() -> dict[str, torch.Tensor]:
    return targets.states()[0]


def rdn() -> dict[str, torch.Tensor]:
    return targets.states()[1]


STATES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "a block of 20 digits": (lambda: edsr() | {f"body.{'9' * 20}.body.0.weight": T}, "numbered below 1000"),
    "a block of 5000 digits": (lambda: edsr() | {f"body.{'9' * 5000}.conv1.weight": T}, "numbered below 1000, got 'body.9{55}"),
    "a last block alone": (lambda: edsr() | {"body.998.body.0.weight": T}, "a network of 17 values are numbered below that"),
    "a million layers": (
        lambda: rdn() | {"RDBs.999.LFF.weight": T, "RDBs.0.convs.999.conv.0.weight": T},
        "a network of 20 values are numbered below that",
    ),
    "300,000 blocks": (lambda: {f"body.{i}.body.0.weight": T for i in range(300_000)}, "at most 20000 tensors"),
    "20,000 blocks": (lambda: {f"body.{i}.body.0.weight": T for i in range(20_000)}, "numbered below 1000"),
    "20,000 names": (lambda: {f"layer{i}.weight": T for i in range(20_000)}, "not an EDSR"),
    "10,000 networks": (lambda: {f"p{i}.head.0.weight": T for i in range(10_000)}, "at most 64 networks"),
    "networks in networks": (lambda: {"a." * i + "head.0.weight": T for i in range(200)}, "at most 64 networks"),
    "64 networks": (lambda: {f"p{i}.head.0.weight": T for i in range(64)}, "many networks, .*name one of them"),
    "long names": (lambda: edsr() | {f"{'x' * 1_000_000}{i}": T for i in range(20)}, "unexpected 'x{60}\\.\\.\\.'"),
    "weights of another shape by the thousand": (
        lambda: {key: torch.ones(4, 4, 5, 5) for i in range(900) for key in (f"body.{i}.body.0.weight", f"body.{i}.body.2.weight")}
        | {"head.0.weight": torch.ones(4, 3, 3, 3), "tail.0.0.weight": torch.ones(16, 4, 3, 3)}
        | {"tail.1.weight": torch.ones(3, 4, 3, 3)},
        "; 1792 more \\(EDSR is known by",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_counts_are_compared_with_what_is_held(name: str) -> None:
    make, message = STATES[name]
    state = make()
    with pytest.raises(ValueError, match=message):
        raise ValueError(refusal(lambda: detect(state), ValueError))


def test_dictionaries_that_hold_one_another_are_looked_at_once() -> None:
    state: dict[str, Any] = dict(edsr())
    state["again"] = state
    assert detect(state).spec == detect(edsr()).spec
    bomb: dict[str, Any] = dict(edsr())
    for _ in range(4):
        bomb = {str(i): bomb for i in range(1000)}
    assert refused_or_read(lambda: detect(bomb), ValueError).spec == detect(edsr()).spec


# ---- tensors without values of their own


@pytest.mark.parametrize(
    "kind, message",
    {
        "float8": "must hold floating-point values of 16, 32 or 64 bits, got torch.float8",
        "int8": "must hold floating-point values, got torch.int8",
        "complex": "must hold floating-point values, got torch.complex64",
        "meta": "must hold its own values in memory, .* on the device 'meta'",
        "sparse": "must hold its own values in memory, .* torch.sparse_coo",
        "nested": "must hold its own values in memory, .* nested",
        "quantised": "must hold its own values in memory, .* quantised",
        "uninitialised": "must hold its own values in memory, .* not initialised",
        "expanded": "must hold its own values in memory, .* bytes of values are made of .* bytes",
        "expanded to its shape": "must hold its own values in memory",
        "NaN": "holds NaN or infinite values",
        "infinite": "holds NaN or infinite values",
        "1e20": "must hold values of at most 1e\\+09 in magnitude, got 1e\\+20..1e\\+20",
        "1e300": "must hold values of at most 1e\\+09 in magnitude",
    }.items(),
)
def test_tensors_that_are_no_plain_floats_are_named(kind: str, message: str) -> None:
    state = edsr() | {"body.0.body.0.weight": STATE_CHANGES[kind](edsr()["body.0.body.0.weight"])}
    with pytest.raises(ValueError, match=f"'body.0.body.0.weight' {message}"):
        raise ValueError(refusal(lambda: detect(state), ValueError))
    weight_norm = edsr() | {"x.weight_g": state["body.0.body.0.weight"], "x.weight_v": T}
    refusal(lambda: detect(weight_norm), ValueError)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e308, 3.5e38, 10**400, -1, -1e-9])
def test_residual_scales_are_finite_float32(value: float) -> None:
    assert "res_scale must be finite and at least 0" in refusal(lambda: detect(edsr(), value), ValueError)


def test_calibrated_thresholds_are_in_order() -> None:
    state = dict(targets.states()[-1])
    state["measure_l"] = state["measure_u"] + 1
    assert "'measure_l' must not be above 'measure_u'" in refusal(lambda: detect(state), ValueError)


# ---- model files

MODELS: dict[str, tuple[Callable[[dict[str, Any], dict[str, torch.Tensor]], Any], str]] = {
    "more blocks than tensors": (lambda h, t: h["spec"].update(blocks=900), "at most as many blocks and layers as tensors"),
    "a million layers": (
        lambda h, t: h.update(network="rdn", spec={"scale": 2, "blocks": 1000, "layers": 1000, "growth": 1}),
        "at most as many blocks and layers as tensors",
    ),
    **{
        f"res_scale {value}": (lambda h, t, v=value: h["spec"].update(res_scale=v), "res_scale must be")
        for value in (float("nan"), float("inf"), 1e308, -1, "1", None, True)
    },
    "scale true": (lambda h, t: h["spec"].update(scale=2.0), "scale must be int, got 2.0"),
    "mean_shift of text": (lambda h, t: h["spec"].update(mean_shift="no"), "mean_shift must be bool, got 'no'"),
    "mean 1e20": (lambda h, t: h["spec"].update(mean=[1e20, 0.0, 0.0]), "mean must be three numbers of at most"),
    **{
        f"{section} {kind}": (
            lambda h, t, s=section, k=kind: t.update({s: targets.TENSOR_CHANGES[k](t[s])}),
            f"{section} (holds NaN|must)",
        )
        for section in ("float.head.0.weight", "float.tail.1.bias")
        for kind in ("NaN", "infinite", "1e20", "float64", "float16", "int64", "twice")
    },
    "a float more": (lambda h, t: t.update({"float.head.9.weight": T}), "it has no value float.head.9.weight"),
    "range beyond float32": (lambda h, t: h["convs"]["head.0"].update(lower=-1e300, upper=1e300), "a finite number of float32"),
    "range that float32 makes one": (
        lambda h, t: h["convs"]["head.0"].update(lower=1.0, upper=1.0 + 1e-12),
        "below upper, .* in float32 too",
    ),
    "range too narrow": (lambda h, t: h["convs"]["head.0"].update(lower=0.0, upper=1e-44), "scale and offset float32 holds"),
    "integer range of 400 digits": (lambda h, t: h["convs"]["head.0"].update(upper=10**400), "a whole number of 401 digits"),
    "weights that make alpha infinite": (
        lambda h, t: t.update({"conv.head.0.weight_upper": torch.full_like(t["conv.head.0.weight_upper"], 3e38)}),
        "(alpha|beta) of 'head.0' must be finite in float32",
    ),
    "thresholds in the wrong order": (lambda h, t: h.update(thresholds=[5.0, 1.0]), "the lower and the upper one in this order"),
    "thresholds beyond float32": (lambda h, t: h.update(thresholds=[1.0, 1e300]), "thresholds must be two finite numbers"),
    "thresholds of 400 digits": (lambda h, t: h.update(thresholds=[1, 10**400]), "a whole number of 401 digits"),
    "thresholds true": (lambda h, t: h.update(thresholds=[True, 2]), "thresholds must be two finite numbers"),
    "running thresholds": (lambda h, t: h["running"].update(thresholds=["1", "2"]), "thresholds must be two finite numbers"),
    "provenance of text": (lambda h, t: h.update(provenance="x"), "."),
    "an exit of a million filters": (
        lambda h, t: t.update({"exit.weight": torch.zeros(30_000, 3, 15, 15, dtype=torch.int8)}),
        "exit.weight must have at most 32400 values",
    ),
    "a long name": (lambda h, t: h["spec"].update({"x" * 1_000_000: 1}), "x{60}"),
}  # fmt: skip


def changed_model(path: Path, edit: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]) -> Path:
    text, tensors = targets.model_parts()
    header, held = json.loads(text), dict(tensors)
    edit(header, held)
    path.write_bytes(to_bytes({key: value.contiguous() for key, value in held.items()}, {HEADER_KEY: targets._dumped(header)}))
    return path


@pytest.mark.parametrize("name", MODELS)
def test_model_files_hold_finite_numbers_in_order(tmp_path: Path, name: str) -> None:
    edit, message = MODELS[name]
    path = changed_model(tmp_path / "m.safetensors", edit)
    with pytest.raises(ValueError, match=f"is not a model that this version can read: .*({message})"):
        raise ValueError(refusal(lambda: load(path), ValueError))


def test_whole_thresholds_are_numbers_like_others(tmp_path: Path) -> None:
    def edit(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        header.update(thresholds=[1, 2])
        del header["running"]

    model = load(changed_model(tmp_path / "m.safetensors", edit))
    assert model.thresholds == (1.0, 2.0) and model(torch.zeros(1, 3, 8, 8)).isfinite().all()
    model.set_running_thresholds(0.1)
    assert model(torch.zeros(1, 3, 8, 8)).isfinite().all()


def test_what_a_file_says_cannot_steer_a_terminal(tmp_path: Path) -> None:
    escape = "\x1b[2J\x07\x9b"
    path = changed_model(tmp_path / "m.safetensors", lambda h, t: h["config"].update(recipe=escape))
    status, shown, _ = targets.run("info", path)
    assert status == 0 and "\\x1b[2J\\x07\\x9b" in shown
    assert not any(ord(character) < 32 and character != "\n" or 127 <= ord(character) < 160 for character in shown)
    path = changed_model(tmp_path / "m.safetensors", lambda h, t: h.update(network=escape))
    status, _, errors = targets.run("info", path)
    assert status == 2 and "\x1b" not in errors and len(errors.splitlines()) == 1


# ---- JSON


@pytest.mark.parametrize(
    "text, message",
    [
        (DEEP, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("1" * 5000, "5000 digits"),
        (f"[{10**400}]", "401 digits"),
    ],
    ids=["lists", "objects", "5000 digits", "10^400"],
)
def test_json_that_no_parser_can_hold(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(lambda: parse_json(text), ValueError)
    (tmp_path / "t.json").write_text(text)
    assert message in refusal(lambda: times.read(tmp_path / "t.json"), ValueError)
    (tmp_path / "m.safetensors").write_bytes(to_bytes({"x": T}, {HEADER_KEY: text}))
    assert message in refusal(lambda: load(tmp_path / "m.safetensors"), ValueError)


@pytest.mark.parametrize("value", [number for number in HOSTILE_NUMBERS if abs(number) < 10**19])
def test_whole_numbers_of_a_machine_word_are_read(value: int) -> None:
    assert parse_json(str(value)) == value


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1", "1e400"])
def test_times_are_finite(tmp_path: Path, value: str) -> None:
    text = times.SHIPPED.read_text()
    number = text.split('"box": ')[1].split(",")[0]
    (tmp_path / "t.json").write_text(text.replace(f'"box": {number}', f'"box": {value}', 1))
    assert "negative or not finite" in refusal(lambda: times.read(tmp_path / "t.json"), ValueError)


# ---- checkpoints


class Calls:
    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_a_file_of_too_many_tensors_is_refused_before_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(to_bytes({f"x{i}": T[:0] for i in range(20_001)}))
    message = refusal(lambda: load_state(tmp_path / "m.safetensors"), ValueError)
    assert "must hold at most 20000 tensors in one dictionary" in message


def test_an_archive_that_unpacks_into_far_more_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"x": torch.zeros(1 << 23)}, path)
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for item in plain.infolist():
            packed.writestr(item.filename, plain.read(item))
    assert "must hold about as much as it has bytes" in refusal(lambda: load_state(tmp_path / "bomb.pt"), ValueError)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_not_advised_to_be_run(tmp_path: Path, protocol: int, zipped: bool) -> None:
    import os

    path, marker = tmp_path / "m.pt", tmp_path / "ran"
    held = {"x": Calls(os.system, f"touch {marker}")}
    if zipped:
        torch.save(held, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(held, protocol))
    message = refusal(lambda: load_state(path), ValueError)
    assert not marker.exists()
    for advice in ("weights_only", "Re-running", "safe_globals", "add_safe", "where you trust"):
        assert advice not in message, message


# ---- frames


@pytest.mark.parametrize("width", ["1_6", "+16", " 16", "16.0", "1e1", "٣", "", "9" * 5000, "-1", "0x10"])
def test_a_width_is_digits(width: str) -> None:
    header = io.BytesIO(f"YUV4MPEG2 W{width} H2 C444\n".encode())
    assert "--y4m must be given" in refusal(lambda: read_y4m(header, None), ValueError)


@pytest.mark.parametrize("word", ["C444" + "x" * 3000, "Ix" + "x" * 3000, "C\x1b[2J" + "x" * 3000])
def test_a_long_word_of_a_header_is_shortened(word: str) -> None:
    message = refusal(lambda: read_y4m(io.BytesIO(f"YUV4MPEG2 W2 H2 {word}\n".encode()), None), ValueError)
    assert repr(word[:60] + "...") in message and len(message) < 300 and "\x1b" not in message


@pytest.mark.parametrize("size", [4090, 4096, 1 << 22])
def test_a_frame_header_without_an_end_is_refused(size: int) -> None:
    source = io.BytesIO(b"YUV4MPEG2 W2 H2 C444\nFRAME " + b"x" * size)
    stream = read_y4m(source, None)
    message = refusal(lambda: list(read_frames(source, stream)), CommandError)
    assert "has no end within 4096 bytes: no frame was complete" in message or "ends within frame 1" in message
    assert source.tell() <= len("YUV4MPEG2 W2 H2 C444\n") + 4096


# ---- pictures


def bmp(width: int, height: int, *, core: bool = False) -> bytes:
    head = (
        struct.pack("<IHHHH", 12, width, height, 1, 24) if core else struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)
    )
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + 64, 0, 0, 14 + len(head)) + head + bytes(64)


@pytest.mark.parametrize("size", [(-4, 4), (-4, -4), (0, 4), (4, 0), (-(2**31), 1), (2**31 - 1, 2**31 - 1), (2**31 - 1, -(2**31))])
def test_a_bitmap_has_a_size(size: tuple[int, int]) -> None:
    message = refusal(lambda: open_picture(bmp(*size)), ValueError)
    assert "must have at least one pixel" in message or "more than the limit" in message


def test_a_short_header_of_a_png_is_damage() -> None:
    for length in range(24, 34):
        refusal(lambda length=length: open_picture(png()[:length]), ValueError)
    shorter = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", 4, b"IHDR") + b"\0\0\0\1" * 4
    refusal(lambda: open_picture(shorter), ValueError)


def test_texts_of_a_png_are_unpacked_within_bounds() -> None:
    bomb = (b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20), 9))
    facts = refused_or_read(lambda: png_chunks.facts(io.BytesIO(png(*[bomb] * 4000))))
    assert len(facts.text) <= 65
    faults = png_chunks.facts(io.BytesIO(png(*[(b"tEXt", b"k\0v")] * 4000, damaged=True))).faults
    assert len(faults) == 16


def test_directories_of_a_tiff_end() -> None:
    """Many pages that each name the same many directories below them, and values that lie one over the other."""
    pages, subs = 2000, 4000
    data = bytearray(b"II*\0" + struct.pack("<I", 8))
    for page in range(pages):
        start = 8 + 18 * page
        data += struct.pack("<HHHII", 1, 330, 4, subs, 8 + 18 * pages) + struct.pack("<I", start + 18 if page < pages - 1 else 0)
    data += struct.pack("<I", 8) * subs
    found = refused_or_read(lambda: tiff.directories(io.BytesIO(bytes(data))))
    assert len(found) <= 2 * 4096
    big = b"II+\0" + struct.pack("<HHQ", 8, 0, 2**63 + 1) + bytes(16)
    assert tiff.directories(io.BytesIO(big)) == []


def test_values_of_exif_do_not_outgrow_it() -> None:
    data = exif([(tag, 7, 60_000, 8) for tag in range(1, 5000)] + [(34665, 4, 1, 8)]) + bytes(60_000)
    nested = exif([(34665, 4, 1, 26)]) + data[8:]
    tags = refused_or_read(lambda: ifd.of_exif(nested))
    assert sum(len(value.data) for below in tags.values() for value in (below.below or {}).values()) <= 16 << 20
