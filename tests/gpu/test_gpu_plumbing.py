"""What a GPU needs above the kernels, as far as a machine without one can tell: choice, devices, packed codes, graphs, configs."""

from __future__ import annotations

import copy
import importlib
import json
import multiprocessing
import pickle
import re
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import features_int16
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import QUANTIZE, fake_outputs, order, settings_of
from problems import ConvProblem, instantiate
from small import NETWORKS, images, one_thread, small_edsr  # noqa: F401
from torch._subclasses.fake_tensor import FakeTensorMode

from adabm_kernels import ConvertConfig, convert_model, ops, registry
from adabm_kernels.backends import devices, gpu_times
from adabm_kernels.backends.counted import ConvShape
from adabm_kernels.models import configure
from adabm_kernels.nn import ConvertedNetwork, graph, lanes, network
from adabm_kernels.nn.graph import _RECORDING
from adabm_kernels.nn.workspace import Workspace
from adabm_kernels.quantize import act_grid, pack_codes, packed_pitch, padded_channels, storage_bits, to_pixels, unpack_codes
from adabm_kernels.registry import GPU_BACKENDS, Choice, Problem, choose, device_for
from adabm_kernels.upscale import upscale


def converted(name: str = "edsr", quantize: str = "full") -> torch.nn.Module:
    torch.manual_seed(0)
    config = ConvertConfig(quantize=quantize, recipe="paper", steps=0, batch=2, bit_aware_clipping=False)
    return convert_model(NETWORKS[name](), [images(2, 3, 16, 18)], config)


# ---- packed codes


def test_storage_and_pitch() -> None:
    assert [storage_bits(bits) for bits in range(2, 9)] == [2, 4, 4, 8, 8, 8, 8]
    assert [packed_pitch(c, 8) for c in (1, 4, 5, 64)] == [4, 4, 8, 64]
    assert [packed_pitch(c, 4) for c in (1, 8, 9, 64, 576)] == [4, 4, 8, 32, 288]
    assert [packed_pitch(c, 2) for c in (1, 16, 17, 64)] == [4, 4, 8, 16]


def test_packed_bytes_are_where_the_contract_says() -> None:
    codes = torch.zeros(3, 1, 2, 12, dtype=torch.uint8)
    codes[..., :10] = torch.arange(1, 61).view(3, 1, 2, 10) % 4
    packed = pack_codes(codes, torch.tensor([2, 3, 8])).view(3, 24)
    first = codes[0, 0].tolist()
    assert (
        packed[0].tolist()
        == [sum(code << 2 * i for i, code in enumerate(pixel[start : start + 4])) for pixel in first for start in (0, 4, 8, 12)]
        + [0] * 16
    )
    second = codes[1, 0].tolist()
    assert (
        packed[1].tolist()
        == [pixel[i] | pixel[i + 1] << 4 for pixel in second for i in range(0, 12, 2)][:6]
        + [0, 0]
        + [second[1][i] | second[1][i + 1] << 4 for i in range(0, 12, 2)]
        + [0] * 10
    )
    assert packed[2].tolist() == codes[2].reshape(-1).tolist()


@settings(max_examples=30)
@given(
    size=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 40)),
    bits=st.lists(st.integers(2, 8), min_size=1, max_size=3),
)
def test_unpacking_undoes_packing(size: tuple[int, int, int], bits: list[int]) -> None:
    h, w, c = size
    widths = torch.tensor(bits, dtype=torch.int32)
    codes = torch.zeros(len(bits), h, w, padded_channels(c), dtype=torch.uint8)
    codes[..., :c] = (torch.rand(len(bits), h, w, c) * (2**widths).view(-1, 1, 1, 1)).to(torch.uint8)
    packed = pack_codes(codes, widths)
    assert torch.equal(unpack_codes(packed, widths), codes)
    for image, width in zip(packed, bits, strict=True):
        assert not image.reshape(-1)[h * w * packed_pitch(c, width) :].any()


@pytest.mark.parametrize("out", ["both", "float", "codes", "acc"])
def test_the_reference_takes_and_gives_packed_codes(out: str) -> None:
    instance = instantiate(ConvProblem("packed", 3, 5, 10, 9, bits=(2, 4, 6), out_bits=(4, 8, 2), residual=True, activation="relu"))
    instance.layer.set_backend("reference", 1)
    arguments = settings_of(instance, out=out, residual=None if out == "acc" else instance.residual)
    y, y_q = torch.ops.adabm.conv2d(*order("conv2d", arguments))
    packed = arguments | {"x_q": pack_codes(instance.x_q, instance.bits), "packed_codes": True}
    got_y, got_q = torch.ops.adabm.conv2d(*order("conv2d", packed))
    assert torch.equal(got_y, y)
    assert torch.equal(got_q, pack_codes(y_q, instance.out_bits) if y_q.numel() else y_q)


def test_the_reference_makes_packed_codes_side_by_side() -> None:
    x, bits, grid = torch.randn(2, 20, 3, 5), torch.tensor([2, 5], dtype=torch.int32), act_grid(-1.0, 1.0)
    y_q = torch.zeros(2, 3, 5, 20, dtype=torch.uint8)
    for start, end in ((0, 8), (8, 20)):
        ops.quantize_out(x[:, start:end], grid, bits, y_q, backend="reference", packed_codes=True, start=start)
    want = ops.quantize(x, grid, bits, backend="reference")
    assert torch.equal(unpack_codes(y_q, bits), want)
    assert torch.equal(ops.quantize(x, grid, bits, backend="reference", packed_codes=True), pack_codes(want, bits))


WIDE_CODES = torch.zeros(1, 3, 5, 12, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": 2, "packed_codes": True}, "start must be a multiple of 4, got 2"),
        ({"start": -4, "packed_codes": True}, "start must be a multiple of 4, got -4"),
        ({"start": 4}, r"start must be 0 without packed_codes \(y_q is then the slice\), got 4"),
        ({"start": 8, "packed_codes": True}, "y_q must hold 14 channels"),
        ({"y_q": WIDE_CODES[..., :8], "packed_codes": True}, ".*all of a code buffer with packed_codes"),
        ({"packed_codes": True, "backend": "cpu"}, "packed_codes needs a backend of .*, got 'cpu'"),
    ],
)
def test_packed_slices_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"x": torch.zeros(1, 6, 3, 5), "grid": act_grid(0.0, 1.0)}
    arguments |= {"bits": torch.tensor([4], dtype=torch.int32), "y_q": WIDE_CODES, "backend": "reference"}
    with pytest.raises(RuntimeError, match=f"quantize.*: {message}"):
        ops.quantize_out(**arguments | changes)


def test_packed_codes_must_be_a_whole_buffer() -> None:
    instance = instantiate(ConvProblem("packed", 4, 4, 8, 9, bits=(4,)))
    instance.layer.set_backend("reference", 1)
    arguments = settings_of(instance, out="float", packed_codes=True, x_q=instance.x_q.transpose(1, 2))
    with pytest.raises(RuntimeError, match="conv2d: x_q must be contiguous with packed_codes, got strides"):
        torch.ops.adabm.conv2d(*order("conv2d", arguments))


# ---- devices


def on_fake_cards(values: dict[str, Any], elsewhere: tuple[str, ...] = (), other: str = "cuda:1") -> dict[str, Any]:
    """The tensors as if on cuda:0, those named `elsewhere` on another device; for use inside a FakeTensorMode."""
    place = {name: torch.device(other if name in elsewhere else "cuda:0") for name in values}
    return {
        name: torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=place[name]) if isinstance(v, torch.Tensor) else v
        for name, v in values.items()
    }


@pytest.mark.parametrize("name", ["x_bits", "weight", "packed", "alpha", "beta", "slope", "residual", "out_grid", "out_bits"])
@pytest.mark.parametrize("other", ["cuda:1", "cpu"])
def test_tensors_on_different_devices_are_named(name: str, other: str) -> None:
    instance = instantiate(ConvProblem("devices", 4, 5, 6, 8, bits=(4,), activation="prelu", residual=True))
    arguments = settings_of(instance, out="both", backend="triton")
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes = on_fake_cards(arguments, (name,), other)
        with pytest.raises(RuntimeError, match=f"conv2d: {name} must be on the device of x_q, cuda:0, got {other}"):
            torch.ops.adabm.conv2d(*order("conv2d", fakes))


def test_outputs_and_inputs_of_the_others_too() -> None:
    instance = instantiate(ConvProblem("devices", 4, 5, 6, 8, bits=(4,)))
    outputs = {"y": torch.empty(1, 4, 5, 8), "y_q": torch.empty(1, 4, 5, 8, dtype=torch.uint8), "accumulate": False}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for name in ("y", "y_q"):
            fakes = on_fake_cards(settings_of(instance, backend="triton") | outputs, (name,))
            with pytest.raises(RuntimeError, match=f"conv2d_out: {name} must be on the device of x_q, cuda:0, got cuda:1"):
                torch.ops.adabm.conv2d_out(*order("conv2d_out", fakes))
        for name in ("shift", "grid", "bits"):
            fakes = on_fake_cards(QUANTIZE | {"backend": "triton"}, (name,))
            with pytest.raises(RuntimeError, match=f"quantize: {name} must be on the device of x, cuda:0, got cuda:1"):
                torch.ops.adabm.quantize(*order("quantize", fakes))
        values = {"x": torch.empty(1, 3, 4, 4), "lower": torch.empty(()), "upper": torch.empty(())}
        values |= {"rules": torch.empty(2, 2, dtype=torch.int32), "backend": "triton"}
        for name in ("lower", "upper", "rules"):
            with pytest.raises(RuntimeError, match=f"layer_bits: {name} must be on the device of x, cuda:0, got cuda:1"):
                torch.ops.adabm.layer_bits(*order("layer_bits", on_fake_cards(values, (name,))))
        assert torch.ops.adabm.layer_bits(*order("layer_bits", on_fake_cards(values))).shape == (2, 1)


def test_the_cpu_library_is_not_given_device_memory() -> None:
    instance = instantiate(ConvProblem("devices", 4, 5, 6, 8, bits=(4,)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        with pytest.raises(RuntimeError, match="conv2d: backend 'cpu' needs tensors in main memory, x_q is on cuda:0"):
            torch.ops.adabm.conv2d(*order("conv2d", on_fake_cards(settings_of(instance, out="float", backend="cpu"))))


def test_triton_is_not_given_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    instance = instantiate(ConvProblem("devices", 4, 5, 6, 8, bits=(4,)))
    with pytest.raises(RuntimeError, match="conv2d: backend 'triton' needs tensors on a CUDA device, x_q is on cpu"):
        torch.ops.adabm.conv2d(*order("conv2d", settings_of(instance, out="float", backend="triton")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(1, 4, 5, 5)}, r"x must be \[N, 3, H, W\] and not empty, got shape \[1, 4, 5, 5\]"),
        ({"x": torch.zeros(1, 3, 0, 5)}, r"x must be \[N, 3, H, W\] and not empty, got shape \[1, 3, 0, 5\]"),
        ({"x": torch.zeros(1, 3, 5, 5).double()}, "x must be torch.float32, got torch.float64"),
        ({"lower": torch.zeros(1)}, r"lower must have shape \[\], got \[1\]"),
        ({"upper": torch.zeros((), dtype=torch.int32)}, "upper must be torch.float32, got torch.int32"),
        ({"rules": torch.zeros(4, dtype=torch.int32)}, r"rules must be \[L, 2\], got shape \[4\]"),
        ({"rules": torch.zeros(4, 3, dtype=torch.int32)}, r"rules must have shape \[4, 2\], got \[4, 3\]"),
        ({"backend": "abacus"}, "backend must be one of .*, got 'abacus'"),
    ],
)
def test_layer_bits_names_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    arguments = {"x": torch.zeros(1, 3, 5, 5), "lower": torch.zeros(()), "upper": torch.zeros(())}
    arguments |= {"rules": torch.zeros(4, 2, dtype=torch.int32), "backend": "reference"}
    for run in (lambda a: torch.ops.adabm.layer_bits(*order("layer_bits", a)), lambda a: fake_outputs("layer_bits", a)):
        with pytest.raises(RuntimeError, match=f"layer_bits: {message}"):
            run(arguments | changes)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_opcheck_of_measure_and_bits(backend: str) -> None:
    x, lower, upper = images(2, 3, 6, 7), torch.tensor(3.0), torch.tensor(40.0)
    rules = torch.tensor([[4, 1], [8, 0]], dtype=torch.int32)
    torch.library.opcheck(torch.ops.adabm.image_measure, (x, backend))
    torch.library.opcheck(torch.ops.adabm.layer_bits, (x, lower, upper, rules, backend))


# ---- the choice


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A pretended card: change its facts in the dictionary."""
    facts: dict[str, Any] = {"capability": (9, 0), "triton": "3.6.0", "cuda": "13.0", "available": True, "fails": None}

    def probe(device: torch.device) -> None:
        if facts["fails"] is not None:
            raise facts["fails"]

    def init() -> None:
        raise facts["fails"]

    backend = importlib.import_module("adabm_kernels.backends.triton")  # needs Triton itself

    monkeypatch.delenv("ADABM_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backend, "probe", probe)
    monkeypatch.setattr(devices, "triton_version", lambda: facts["triton"] or "not installed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: facts["available"])
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: facts["capability"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Card")
    monkeypatch.setattr(torch.version, "cuda", facts["cuda"])
    devices._why_not_on.cache_clear()
    yield facts
    devices._why_not_on.cache_clear()


needs_triton = pytest.mark.skipif(bool(devices.why_no_triton()), reason=devices.why_no_triton())
REASONS = [
    ({"triton": None}, "triton is not installed"),
    ({"triton": "3.1.0"}, "needs triton 3.5 or newer, found 3.1.0"),
    (
        {"available": False, "fails": RuntimeError("The NVIDIA driver on your system is too old (found 11040).\nPlease update")},
        r"no usable GPU: The NVIDIA driver on your system is too old \(found 11040\)\.$",
    ),
    ({"capability": (7, 5)}, r"Card has compute capability 7\.5, the kernels need 8\.0 or newer"),
    (
        {"capability": (13, 0), "fails": ValueError("sm_130 is not a known architecture\nat line 3")},
        r"triton 3\.6\.0 cannot run on Card \(compute capability 13\.0\): sm_130 is not a known architecture$",
    ),
    ({"fails": RuntimeError()}, r"triton 3\.6\.0 cannot run on Card \(compute capability 9\.0\): RuntimeError"),
]


@needs_triton
@pytest.mark.parametrize(("facts", "reason"), REASONS)
def test_what_keeps_triton_from_running_is_told(card: dict[str, Any], facts: dict[str, Any], reason: str) -> None:
    card |= facts
    with pytest.raises(RuntimeError, match=f"backend 'triton' cannot run: {reason}"):
        choose(Problem("cuda"), "triton")
    choice = choose(Problem("cuda"))
    assert choice.backend == "reference" and re.match(reason, choice.rejected["triton"])
    status = registry.backends()["triton"]
    assert not status.available and status.reason == choice.rejected["triton"]


@needs_triton
def test_a_card_whose_memory_is_full_is_asked_again(card: dict[str, Any]) -> None:
    card["fails"] = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.\nMore")
    assert choose(Problem("cuda")).rejected["triton"] == "triton cannot be tried: CUDA out of memory. Tried to allocate 2.00 MiB."
    card["fails"] = None
    assert choose(Problem("cuda")).backend == "triton"


@pytest.fixture
def both(card: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A pretended card that both GPU backends can use, with nothing measured."""
    monkeypatch.setattr(devices, "why_not_cuda", lambda device: "" if device != "cpu" else "the tensors are on cpu")
    monkeypatch.setattr(gpu_times, "TABLE", tmp_path / "package.json")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gpu_times.measured.cache_clear()
    yield card
    gpu_times.measured.cache_clear()


BODY = ConvShape(64, 64, 3, 3, bits=(3, 5), four_bits=True)
EIGHT = ConvShape(64, 64, 3, 3, bits=(8, 8))
NARROW = ConvShape(64, 16, 3, 3, bits=(8, 8))


@needs_triton
@pytest.mark.parametrize(
    ("capability", "shape", "backend"),
    [
        ((8, 0), BODY, "cuda"),  # 4-bit products
        ((8, 6), BODY, "cuda"),
        ((8, 9), BODY, "cuda"),
        ((9, 0), BODY, "cuda"),  # wgmma with the weights in registers
        ((12, 0), BODY, "cuda"),  # no 4-bit products there, but Triton's nine loads of a pixel come through a narrow L2
        ((8, 0), EIGHT, "cuda"),
        ((8, 6), EIGHT, "cuda"),  # for the same reason
        ((8, 0), NARROW, "triton"),  # 16 of the 32 bytes that a product of the CUDA kernels takes of a tap
        ((9, 0), ConvShape(64, 3, 3, 3), "triton"),  # unfolded: mma.sync there, wgmma in Triton
        ((9, 0), ConvShape(3, 64, 3, 3), "cuda"),  # few outputs: nine times the loads weigh more than wgmma
        ((9, 0), ConvShape(48, 64, 5, 5, shuffle=4, border_kernels=True), "cuda"),
    ],
)
def test_the_choice_is_by_architecture_and_shape(
    both: dict[str, Any], capability: tuple[int, int], shape: ConvShape, backend: str
) -> None:
    both["capability"] = capability
    choice = choose(Problem("cuda", shape))
    other = "triton" if backend == "cuda" else "cuda"
    assert choice.backend == backend and list(choice.rejected) == [other]
    place = re.escape(f"{shape}, on compute capability {capability[0]}.{capability[1]}: ")
    limit = r"\((tensor cores|shared memory|loads from L2)(, [\w ]+)?\)"
    figures = rf"([\d.]+) {limit} against ([\d.]+) {limit} clocks of a multiprocessor a pixel by {backend}, counted, not measured"
    found = re.fullmatch(place + figures, choice.rejected[other])
    assert found and float(found[1]) >= float(found[4])
    for asked in GPU_BACKENDS:  # by name: no shape changes it
        assert choose(Problem("cuda", shape), asked) == Choice(asked)


@needs_triton
def test_info_says_where_layers_run_and_why(both: dict[str, Any], adabm: Callable) -> None:
    both["capability"] = (9, 0)
    status, out, _ = adabm("info", "--json")
    layers = json.loads(out)["gpu_convolutions"]
    assert status == 0 and layers["body"]["backend"] == "cuda" and layers["head"]["backend"] == "triton"
    status, out, _ = adabm("info")
    assert status == 0 and "Convolutions on this GPU" in out and f"triton  {layers['head']['reason']}" in out
    both |= {"available": False, "fails": RuntimeError("no driver")}
    assert "Convolutions on this GPU" not in adabm("info")[1]


@needs_triton
def test_what_was_measured_goes_before_what_was_counted(both: dict[str, Any]) -> None:
    both["capability"] = (8, 6)
    source = {"card": "Card", "date": "2026-01-02"}
    entries = {
        gpu_times.key(86, BODY, stored): {"us": {"cuda": 3.0 * stored, "triton": 2.5 * stored}} | source for stored in (8, 4)
    }
    first, *rest = entries
    gpu_times.write_entries(gpu_times.TABLE, {first: entries[first]})
    assert choose(Problem("cuda", BODY)).backend == "cuda"  # codes of 3 to 5 bits: stored in 4 and in 8
    gpu_times.write_entries(gpu_times.user_table(), {key: entries[key] for key in rest})
    choice = choose(Problem("cuda", BODY))
    assert choice == Choice("triton", {"cuda": choice.rejected["cuda"]})
    assert choice.rejected["cuda"] == (
        "64 to 64 channels, 3x3, codes of 3 to 5 bits, 4-bit weights, on compute capability 8.6: "
        "16 against 13.33 us by triton, measured (Card, 2026-01-02)"
    )
    both["capability"] = (8, 0)
    assert choose(Problem("cuda", BODY)).backend == "cuda"  # another architecture's say nothing
    for broken in (
        {"us": {"cuda": 1.0}} | source,
        {"us": {"cuda": 1.0, "triton": 0.0}} | source,
        {"us": {"cuda": 1.0, "triton": 2.0}},
    ):
        with pytest.raises(ValueError, match="write_entries: one must have us by cuda, triton, and card and date, got"):
            gpu_times.write_entries(gpu_times.TABLE, {"one": broken})


@needs_triton
def test_a_network_takes_each_convolution_to_the_faster_backend(both: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    both["capability"] = (8, 6)
    model = converted()
    monkeypatch.setattr(type(model), "_device", lambda self: torch.device("cuda"))
    packed_for: list[str] = []

    def pack(backend: str, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        packed_for.append(backend)
        return torch.zeros(1, dtype=torch.uint8)

    monkeypatch.setattr(ops, "pack_weights", pack)
    monkeypatch.setattr(ops, "why_not_resblock", lambda *args: "not here")
    assert model.set_backend("auto") == Choice("cuda")
    chosen = {name: choice.backend for name, choice in model.choices.items()}
    assert chosen == {conv.name: conv.backend for conv in model.convs()} and set(chosen.values()) == {"cuda", "triton"}
    assert chosen == {conv.name: choose(Problem("cuda", conv.shape)).backend for conv in model.convs()}
    assert packed_for == list(chosen.values())
    elsewhere = list(chosen.values()).count("triton")
    assert model.backend_summary() == f"cuda, {elsewhere} of {len(chosen)} convolutions on triton"
    model.set_backend("triton")
    assert {conv.backend for conv in model.convs()} == {"triton"} and model.backend_summary() == "triton"


@needs_triton
def test_the_choice_is_for_the_card_that_has_the_tensors(both: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for the current one, which is 0."""
    cards = {0: (9, 0), 1: (8, 6), 2: (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", cards.__getitem__)
    monkeypatch.setattr(torch.cuda, "get_device_name", "Card {}".format)
    for device, backend in (("cuda", "cuda"), ("cuda:0", "cuda"), ("cuda:1", "triton")):
        assert choose(Problem(device, NARROW)).backend == backend
    assert "compute capability 8.6" in choose(Problem("cuda:1", NARROW)).rejected["cuda"]
    with pytest.raises(RuntimeError, match=r"'triton' cannot run: Card 2 has compute capability 7\.5"):
        choose(Problem("cuda:2"), "triton")
    with pytest.raises(RuntimeError, match="'triton' cannot run: the tensors are on xpu:1"):
        choose(Problem("xpu:1"), "triton")
    model = converted()
    asked: list[Problem] = []
    monkeypatch.setattr(network, "choose", lambda problem, requested: asked.append(problem) or Choice("reference"))
    for device in ("cuda:1", "cpu"):
        monkeypatch.setattr(type(model), "_device", lambda self, device=device: torch.device(device))
        model.set_backend("auto")
        assert {problem.device for problem in asked} == {device}
        asked.clear()


def test_the_cuda_library_is_asked_about_the_card_that_has_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(devices, "why_no_gpu", lambda: "")
    monkeypatch.setattr(devices.native, "why_missing", lambda name: "")
    monkeypatch.setattr(devices.native, "library", lambda name: SimpleNamespace(call=lambda entry, index: asked.append(index)))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    devices._why_no_kernels_on.cache_clear()
    found = [devices.why_not_cuda(device) for device in ("cuda:1", "cuda", None, "cpu", "xpu:0")]
    assert found == ["", "", "", "the tensors are on cpu", "the tensors are on xpu:0"]
    devices._why_no_kernels_on.cache_clear()
    assert asked == [1, 3]  # once each


@needs_triton
def test_a_card_that_can_is_taken(card: dict[str, Any]) -> None:
    choice = choose(Problem("cuda"))
    assert choice.backend == "triton" and list(choice.rejected) == ["cuda"]
    assert choose(Problem("cuda"), "triton").backend == "triton"
    assert registry.backends()["triton"].available
    assert choose(Problem("cpu")).rejected["triton"] == "the tensors are on cpu"
    assert choose(Problem("cpu"), "triton").backend == "triton"  # the model may move there later


@pytest.mark.skipif(torch.cuda.is_available(), reason="here they can run")
@pytest.mark.parametrize("name", GPU_BACKENDS)
def test_the_command_line_never_falls_back(name: str, adabm: Callable, empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    picture = Path(registry.__file__).parent / "assets" / "sample.png"
    status, _, err = adabm("upscale", picture, "-o", "out.png", "--backend", name)
    assert status and f"backend '{name}' cannot run: " in err and not Path("out.png").exists()


def test_a_backend_asked_for_takes_the_model_to_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    names = ("triton", "cpu", "reference", "auto")
    monkeypatch.delenv("ADABM_BACKEND", raising=False)
    assert [device_for(name) for name in names] == ["cuda", None, None, None]
    monkeypatch.setenv("ADABM_BACKEND", "cuda")
    assert [device_for(name) for name in names] == ["cuda", None, None, "cuda"]
    monkeypatch.delenv("ADABM_BACKEND")
    calls: list[str] = []
    place = torch.device("cpu")
    model = SimpleNamespace(set_backend=calls.append, to=calls.append, buffers=lambda: iter([SimpleNamespace(device=place)]))
    configure(model, None, "triton", None)
    configure(model, None, "reference", None)
    configure(model, None, "triton", None, "cpu")  # the device that was asked for stays
    assert calls == ["triton", "cuda", "reference", "triton"]
    calls.clear()
    place = torch.device("cuda:1")
    configure(model, None, "triton", None)
    assert calls == ["triton"]  # it stays on its own card, whichever is the current one
    calls.clear()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for current, device, moved in ((1, "cuda", 0), (0, "cuda:1", 0), (0, "cuda", 1), (1, "cuda:0", 1), (1, "cpu", 1)):
        monkeypatch.setattr(torch.cuda, "current_device", lambda current=current: current)
        configure(model, None, None, None, device)
        assert calls == [torch.device(device)] * moved  # only where it is elsewhere
        calls.clear()


def test_the_interpreter_runs_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(devices, "why_no_triton", lambda: "")
    assert "only when asked for" in choose(Problem("cpu")).rejected["triton"]
    assert choose(Problem("cpu"), "triton").backend == "triton"
    assert device_for("triton") == "cpu"
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1 runs kernels on the CPU only"):
        choose(Problem("cuda"), "triton")


# ---- networks


@pytest.mark.parametrize("quantize", ["full", "body"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_compiles_into_one_graph(name: str, quantize: str) -> None:
    torch._dynamo.reset()
    model, x = converted(name, quantize), images(2, 3, 8, 9)
    want = model(x)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), want)


@pytest.mark.parametrize("quantize", ["full", "body"])
def test_slices_quantised_early_give_the_same_and_compile(quantize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the cuda backend, with the operator that does one grid after the other."""
    torch._dynamo.reset()
    model, x = converted("rdn", quantize), images(2, 3, 8, 9)
    assert not model.quantizes_early
    want = model(x)
    monkeypatch.setattr(type(model), "quantizes_early", True)
    model.set_backend("auto")
    assert torch.equal(model(x), want)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), want)


@pytest.mark.parametrize("quantize", ["full", "body"])
@pytest.mark.parametrize("name", NETWORKS)
def test_pixels_of_a_network_are_its_floats_rounded(name: str, quantize: str) -> None:
    model, x = converted(name, quantize), images(2, 3, 8, 9)
    want = to_pixels(model(x))
    got = model.pixels(x)
    assert got.dtype == torch.uint8 and torch.equal(got, want) and len(want.unique()) > 20
    offset = torch.tensor([1, -1], dtype=torch.int32)
    assert torch.equal(model.pixels(x, offset), to_pixels(model(x, offset)))
    with pytest.raises(ValueError, match="x must be float32"):
        model.pixels(x.double())


def test_pixels_of_an_upsampler_with_two_digits() -> None:
    torch.manual_seed(0)
    config = ConvertConfig(recipe="paper", steps=0, batch=2, bit_aware_clipping=False, tail_digits=2)
    model, x = convert_model(NETWORKS["edsr"](), [images(2, 3, 16, 18)], config), images(2, 3, 8, 9)
    assert model.collapsed.rest is not None
    assert torch.equal(model.pixels(x), to_pixels(model(x)))
    x = images(1, 3, 4, 5)  # too small for the collapsed upsampler
    assert torch.equal(model.pixels(x), to_pixels(model(x)))


@pytest.mark.parametrize("graph", [False, True])
def test_a_compiled_network_follows_its_settings(graph: bool) -> None:
    """Running thresholds among them, which are state: as without compiling, image by image, and the calibrated ones stay."""
    torch._dynamo.reset()
    model = converted()
    plain = copy.deepcopy(model)
    model.set_backend("auto", graph=graph)  # nothing to record in there
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = images(2, 3, 8, 9)
    decided = []
    for change in (
        lambda m: m.set_running_thresholds(0.2),
        lambda m: m.set_running_thresholds(0.2, start=tuple(t * 0.7 for t in m.thresholds)),
        lambda m: m.set_bits(3),
        lambda m: m.set_bits("auto"),
        lambda m: m.set_running_thresholds(0),
    ):
        for each in (model, plain):
            change(each)
        for contrast in (0.1, 1.0, 0.4):
            want = plain(x * contrast)
            assert torch.equal(compiled(x * contrast), want)
            assert model.running_thresholds == plain.running_thresholds
            decided.append(model.running_thresholds)
    assert decided[0] != decided[1] and decided[-1] is None
    assert torch.equal(model._running.calibrated, torch.tensor(model.thresholds, dtype=torch.float64))
    model.set_running_thresholds(0.2)
    compiled(x)
    model.set_running_thresholds(0)
    model.set_running_thresholds(0.2)
    assert model.running_thresholds == pytest.approx(model.thresholds)


def test_a_graph_needs_a_card() -> None:
    model = converted()
    model.set_backend("auto", graph=True)
    with pytest.raises(RuntimeError, match="ConvertedEDSR: graph=True needs images on a CUDA device, x is on cpu"):
        model(images(1, 3, 8, 9))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(RuntimeError, match="graph=True needs"):
            copied(images(1, 3, 8, 9))
    model.set_backend("auto")  # leaves it on
    with pytest.raises(RuntimeError, match="graph=True needs"), graph.recorded_by_default():  # asked for: never falls back
        model(images(1, 3, 8, 9))
    model.set_backend("auto", graph=False)
    model(images(1, 3, 8, 9))
    with pytest.raises(TypeError, match="graph must be True, False or None, got 1"):
        model.set_graph(1)
    with pytest.raises(RuntimeError, match="graph must be left out or False unless the model is on a CUDA device, it is on cpu"):
        configure(model, None, None, None, graph=True)
    configure(model, None, None, None, graph=False)


class Recorder:
    """Stands for CudaGraph: what would be recorded, and how often it ran."""

    made: list[tuple] = []
    on: list[Any] = []  # streams
    held_bytes = 1

    def __init__(self, function: Callable, inputs: tuple[torch.Tensor, ...], *shared: Any):
        Recorder.made.append(tuple(x.shape for x in inputs))
        Recorder.on.append(shared[-1])
        self.function = function

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*inputs)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    Recorder.made, Recorder.on = [], []
    monkeypatch.setattr(graph, "CudaGraph", Recorder)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: object())
    monkeypatch.setattr(torch.cuda, "Event", object)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(device=device))
    return Recorder


def test_graphs_are_recorded_once_a_shape(recorder: type[Recorder]) -> None:
    graphs, double = graph.Graphs(), lambda x: x * 2
    for size in (3, 4, 3, 4, 3):
        x = torch.arange(size)
        assert torch.equal(graphs.run(double, x), x * 2)
    assert recorder.made == [((3,),), ((4,),)]
    for size in range(5, 5 + graph.Graphs.LIMIT - 1):  # one more than fits: the shape that was used longest ago goes
        graphs.run(double, torch.arange(size))
    graphs.run(double, torch.arange(3))
    assert len(recorder.made) == 2 + graph.Graphs.LIMIT - 1
    graphs.run(double, torch.arange(4))
    assert len(recorder.made) == 2 + graph.Graphs.LIMIT
    graphs.run(double, torch.arange(3).int())
    graphs.clear()
    graphs.run(double, torch.arange(3))
    assert len(recorder.made) == 2 + graph.Graphs.LIMIT + 2
    assert torch.equal(graphs.run(lambda x: x * 3, torch.arange(3), kind="other"), torch.arange(3) * 3)


def test_where_nobody_asked_a_shape_is_recorded_when_it_comes_the_third_time(recorder: type[Recorder]) -> None:
    graphs, ran = graph.Graphs(), []

    def run(size: int) -> str:
        """Which of the two ways it went."""
        x, ran[:] = torch.arange(size), []
        launched = lambda x: ran.append("launched") or x * 2  # noqa: E731
        assert torch.equal(graphs.launch_then_record(lambda x: x * 2, launched, x), x * 2)
        return ran[0] if ran else "replayed"

    assert [run(size) for size in (3, 4, 3, 4)] == ["launched"] * 4 and not recorder.made
    assert [run(size) for size in (3, 3, 4, 5)] == ["replayed", "replayed", "replayed", "launched"]
    assert recorder.made == [((3,),), ((4,),)]
    with lanes.lanes(torch.device("cpu"), 1)[0]:
        assert run(3) == "launched"  # each lane counts for itself
    # In turn, one more than are kept: as many as are kept stay, the others are launched, none is recorded twice.
    graphs.clear()
    recorder.made.clear()
    for _ in range(5):
        ways = [run(size) for size in range(10, 10 + graphs.LIMIT + 2)]
    assert len(recorder.made) == graphs.LIMIT and ways.count("launched") == 2
    # One that comes more often than the one that ran longest ago takes its place.
    assert [run(size) for size in (100, 100, 100)] == ["launched", "launched", "replayed"]
    assert len(recorder.made) == graphs.LIMIT + 1 and run(10) == "launched"


def test_graphs_that_hold_much_are_fewer(recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "held_bytes", graph.Graphs.MOST_BYTES // 2)
    graphs = graph.Graphs()
    for size in (1, 2, 3, 3, 1):  # 3 takes the place of 1
        graphs.run(lambda x: x, torch.arange(size))
    assert len(recorder.made) == 4
    monkeypatch.setattr(Recorder, "held_bytes", graph.Graphs.MOST_BYTES + 1)
    graphs.run(lambda x: x, torch.arange(4))
    graphs.run(lambda x: x, torch.arange(4))
    assert len(recorder.made) == 5  # one is kept whatever it holds


def test_a_recording_that_fails_is_warned_of_once(recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, tried = graph.Graphs(), []

    class Failing:
        def __init__(self, *arguments: Any):
            tried.append(arguments)
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    x = torch.arange(3)
    for _ in range(3):
        graphs.launch_then_record(lambda x: x, lambda x: x * 3, x[:1])
    assert len(recorder.made) == 1
    (recorded,) = map(weakref.ref, graphs._lanes[0].values())
    held: list[bool] = []  # whether a launched pass finds memory taken by what was recorded
    monkeypatch.setattr(graph, "CudaGraph", Failing)
    with pytest.warns(RuntimeWarning, match="kernel by kernel .* failed: operation not permitted when stream is capturing"):
        for _ in range(4):
            launched = lambda x: held.append(recorded() is not None) or x * 3  # noqa: E731
            assert torch.equal(graphs.launch_then_record(lambda x: x, launched, x), x * 3)
    assert held == [True, True, False, False]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in (2, 2, 2, 2, 1):  # nor another shape; what was recorded before has gone, with its memory
            assert torch.equal(graphs.launch_then_record(lambda x: x, lambda x: x * 3, x[:size]), x[:size] * 3)
    assert len(tried) == 1
    with pytest.raises(RuntimeError, match="operation not permitted"):  # asked for: no way round
        graphs.run(lambda x: x, x)
    graphs.clear()  # a setting has changed
    for _ in range(2):
        graphs.launch_then_record(lambda x: x, lambda x: x, x)
    with pytest.warns(RuntimeWarning, match="kernel by kernel"):
        graphs.launch_then_record(lambda x: x, lambda x: x, x)


def test_who_records_without_being_asked(recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    """`upscale` and `forward_many` do, `forward` does not; what they give is the same."""
    model, x, seen = converted(), images(1, 3, 8, 9), (images(8, 9, 3)).to(torch.uint8).numpy()
    want, picture = model(x), upscale(seen, model)
    # As on a card: all that is left out is the question where x lies.
    by_default = lambda self, x: self._graph is None and graph.records_by_default()  # noqa: E731
    monkeypatch.setattr(network.ConvertedNetwork, "_records_by_default", by_default)
    for asked, count in ((None, 1), (False, 0), (None, 1)):
        model.set_graph(asked)
        recorder.made.clear()
        assert all(torch.equal(model(x), want) for _ in range(3)) and not recorder.made
        assert all(torch.equal(y, want) for y in model.forward_many([x] * 3)) and len(recorder.made) == count
        recorder.made.clear()
        assert all((upscale(seen, model) == picture).all() for _ in range(3)) and len(recorder.made) == count


def test_what_launched_passes_worked_in_is_given_back_when_one_is_recorded(
    recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = converted(), images(1, 3, 8, 9)
    monkeypatch.setattr(network.ConvertedNetwork, "_records_by_default", lambda self, x: True)
    outputs, held = [], []
    for _ in range(4):
        with model.lending_output():  # what was lent stays the caller's
            outputs.append(model(x))
        held.append(len(model._workspace._buffers))
    assert held[0] == held[1] > 0 == held[2] == held[3] and all(torch.equal(y, outputs[0]) for y in outputs)


def test_nothing_is_recorded_elsewhere_than_on_a_card_nor_inside_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    model, capturing = converted(), False
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    x = {place: SimpleNamespace(device=torch.device(place)) for place in ("cpu", "cuda:1")}
    monkeypatch.setattr(model, "choice", Choice("triton"))
    assert not model._records_by_default(x["cuda:1"])  # nobody who runs many passes
    with graph.recorded_by_default():
        assert model._records_by_default(x["cuda:1"]) and not model._records_by_default(x["cpu"])
        capturing = True
        assert not model._records_by_default(x["cuda:1"])
        capturing = False
        monkeypatch.setattr(model, "choice", Choice("reference"))  # which asks the host
        assert not model._records_by_default(x["cuda:1"])
        monkeypatch.setattr(model, "choice", Choice("cuda"))
        for asked in (False, True):
            model.set_graph(asked)
            assert not model._records_by_default(x["cuda:1"])
    assert not graph.records_by_default()


def test_graphs_are_recorded_on_streams_of_their_device(recorder: type[Recorder]) -> None:
    """One for the graphs that share memory, as torch asks; it would take one of the device that recorded first for all."""
    graphs, same = graph.Graphs(), lambda x: x
    for size, device in enumerate(("cpu", "meta", "cpu", "meta"), 1):
        graphs.run(same, torch.empty(size, device=device))
    assert [stream.device.type for stream in recorder.on] == ["cpu", "meta", "cpu", "meta"]
    assert recorder.on[0] is recorder.on[2] and recorder.on[1] is recorder.on[3]


def test_what_changes_a_forward_forgets_its_graphs(recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    model = converted()
    model.set_backend("auto", graph=True)
    x = images(1, 3, 8, 9)
    for count, change in enumerate(
        (
            lambda: None,
            lambda: model.set_bits(3),
            lambda: model.set_bits("auto"),
            lambda: model.set_running_thresholds(0.1),
            lambda: model.set_running_thresholds(0),
            lambda: model.set_backend("reference"),
            lambda: model.to("cpu"),
        ),
        1,
    ):
        change()
        plain = copy.deepcopy(model)
        want = plain._forward(x, plain._bit_table(x, learn=False))
        for _ in range(2):
            # As on a card: the check of the device is all that is left out.
            table = model._bit_table(x, learn=False)
            got = model._graphs.run(model._forward, x, table)
            assert torch.equal(got, want)
        assert len(recorder.made) == count


def test_settings_that_are_there_already_leave_graphs_alone(recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    """`upscale` sets all of them for every picture."""
    model, x, seen = converted(), torch.arange(3), images(8, 9, 3).to(torch.uint8).numpy()
    chosen = "reference"
    monkeypatch.setattr(network, "choose", lambda problem, requested: Choice(chosen))
    wanted: dict[str, Any] = {"bits": 4, "depth": "full", "backend": "auto", "device": "cpu", "threads": 1, "graph": False}

    def forgets(change: Callable) -> bool:
        """Whether a change forgets the graphs; if so, recording is tried again, too, where it had failed."""
        model._graphs.run(lambda x: x, x)
        model._graphs.failed, made = "no memory", len(recorder.made)
        change()
        model._graphs.run(lambda x: x, x)
        assert (len(recorder.made) > made) == (not model._graphs.failed)
        return len(recorder.made) > made

    assert forgets(lambda: upscale(seen, model, **wanted))
    assert not forgets(lambda: upscale(seen, model, **wanted))
    assert not forgets(lambda: model.set_depth(1))  # "full" by another name: the network's blocks
    assert forgets(lambda: upscale(seen, model, **wanted | {"bits": 5}))
    assert forgets(lambda: model.set_graph(None))
    assert forgets(lambda: model.to("cpu"))  # a move does, wherever it goes
    assert not forgets(lambda: model.set_backend("auto"))
    chosen = "cpu"  # ADABM_BACKEND, say, is another now
    monkeypatch.setattr(ops, "pack_weights", lambda *settings: torch.zeros(1, dtype=torch.uint8))
    assert forgets(lambda: model.set_backend("auto")) and model.choice.backend == "cpu"


def test_graphs_serve_features_of_16_bits(recorder: type[Recorder]) -> None:
    """A network with int16 features and one with float32 features take turns in one workspace, eagerly and recorded: each finds
    buffers of its own type under the names that both use, and computes what it computes alone."""
    models = [features_int16.converted(), features_int16.converted()]
    models[0].fraction = None
    inputs = [features_int16.images(height, 13, count=1) for height in (9, 12, 9)]
    want = [[copy.deepcopy(model)(x) for x in inputs] for model in models]
    assert not torch.equal(want[0][0], want[1][0])
    models[1]._workspace = models[0]._workspace
    graphs, buffers = graph.Graphs(), models[0]._workspace._buffers

    def recorded(model: ConvertedNetwork, x: torch.Tensor) -> torch.Tensor:
        def forward(x: torch.Tensor) -> torch.Tensor:
            with model._workspace.fresh():
                y = model._finished(x, model._bit_table(x, learn=False), False, (0, 0))
                found = {key[0]: (key[1], buffer.dtype) for key, buffer in model._workspace._buffers.items()}
            kind = torch.float32 if model.fraction is None else torch.int16
            assert all(found[name] == (kind, kind) for name in features_int16.STREAM)
            return y

        return graphs.run(forward, x, kind=str(model.fraction))

    for i, x in enumerate(inputs):
        for model, own in zip(models, want, strict=True):
            assert torch.equal(model(x), own[i]) and torch.equal(recorded(model, x), own[i])
    assert len(recorder.made) == 4  # two sizes of two models
    assert {key[1] for key in buffers if key[0] == features_int16.STREAM[0]} == {torch.float32, torch.int16}


def test_buffers_of_a_recording_are_its_own() -> None:
    workspace = Workspace()
    kept = workspace.get("a", (4,), torch.float32, torch.device("cpu"))
    with workspace.fresh():
        assert workspace.get("a", (4,), torch.float32, torch.device("cpu")).data_ptr() != kept.data_ptr()
    assert workspace.get("a", (4,), torch.float32, torch.device("cpu")).data_ptr() == kept.data_ptr()


class FakeCuda:
    """The calls that recording and replaying make, in order, with a graph that computes when it is replayed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.calls: list[str] = []
        stream = self._object("here", "wait_stream", "wait_event")
        self.aside = self._object("aside", "wait_stream")
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self._object("graph", "replay"))
        monkeypatch.setattr(torch.cuda, "graph", self._record)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, on: self.calls.append(f"{type(on).__name__} holds {x[0]}"))
        self.event = self._object("event", "record")

    @contextmanager
    def _record(self, graph: Any, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert stream is self.aside and not _RECORDING.acquire(blocking=False)
        yield

    def _object(self, name: str, *methods: str) -> Any:
        made = {method: lambda self_, *args, m=method: self.calls.append(f"{name}.{m}") for method in methods}
        return type(name, (), made)()


def test_a_graph_copies_in_and_out_between_waiting_and_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, x = FakeCuda(monkeypatch), torch.arange(4.0)
    runs: list[torch.Tensor] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        cuda.calls.append("function")
        runs.append(x)
        return x.mul(1)

    recorded = graph.CudaGraph(function, (x,), None, cuda.event, cuda.aside)
    assert cuda.calls == ["aside.wait_stream", "function", "here.wait_stream", "function"]
    assert runs[0] is runs[1] and runs[0] is not x  # a buffer of its own, both to warm up and to record
    cuda.calls.clear()
    first = recorded(torch.full((4,), 7.0))
    assert cuda.calls == ["here.wait_event", "here holds 7.0", "graph.replay", "event.record"]
    assert torch.equal(runs[0], torch.full((4,), 7.0))  # what the replay reads
    assert first.data_ptr() != recorded(x).data_ptr()  # the caller's own


# ---- several in flight


class FakeStreams:
    """Streams, events and memory of a pretended device, whose calls are written down in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.calls: list[str] = []
        self.made, self.on, self.on_card = 0, [self.stream("home")], True
        monkeypatch.setattr(torch.cuda, "Stream", self._new_stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.on[-1])
        monkeypatch.setattr(torch.cuda, "stream", self._context)
        monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=self._end))
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: self.calls.append(f"{stream.name} holds {int(x[0])}"))
        monkeypatch.setattr(lanes, "_lies_on_card", lambda x: self.on_card)
        lanes._stream.cache_clear()

    def stream(self, name: str) -> SimpleNamespace:
        made = SimpleNamespace(name=name, device=torch.device("cuda:0"))
        made.wait_stream = lambda other: self.calls.append(f"{name} waits for {other.name}")
        made.wait_event = lambda event: self.calls.append(f"{name} waits for an end")
        return made

    def _end(self, stream: SimpleNamespace) -> None:
        self.calls.append(f"end of {stream.name}")

    def _new_stream(self, device: torch.device) -> SimpleNamespace:
        self.made += 1
        return self.stream(f"lane {self.made}")

    @contextmanager
    def _context(self, stream: SimpleNamespace) -> Iterator[None]:
        self.on.append(stream)
        yield
        self.on.pop()


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStreams]:
    yield FakeStreams(monkeypatch)
    lanes._stream.cache_clear()


def test_work_in_lanes_is_ordered_by_events_and_results_come_in_order(streams: FakeStreams) -> None:
    def function(x: torch.Tensor, unused: None) -> torch.Tensor:
        streams.calls.append(f"run {int(x[0])} on {streams.on[-1].name}, lane {lanes.current_lane()}")
        return x + 100

    two = lanes.lanes(torch.device("cuda:0"), 2)
    results = lanes.in_order(function, ((torch.tensor([i]), None) for i in range(3)), two)
    start = ["lane {0} waits for home"] * 2 + ["run {1} on lane {0}, lane {0}", "lane {0} holds {1}", "end of lane {0}"]
    first, second, third = ([line.format(lane, i) for line in start] for lane, i in ((1, 0), (2, 1), (1, 2)))
    assert next(results).item() == 100
    assert streams.calls == first + second + ["home waits for an end", "home holds 100"]  # two under way, none before its turn
    streams.calls.clear()
    assert next(results).item() == 101 and lanes.current_lane() == 0
    assert streams.calls == third + ["home waits for an end", "home holds 101"]
    assert [y.item() for y in results] == [102]
    again = lanes.lanes(torch.device("cuda:0"), 2)
    assert [lane.stream for lane in again] == [lane.stream for lane in two] and streams.made == 2  # buffers belong to streams


def test_tensors_in_main_memory_are_held_by_no_stream(streams: FakeStreams) -> None:
    streams.on_card = False
    two = lanes.lanes(torch.device("cuda:0"), 2)
    results = lanes.in_order(lambda x: x + 1, ((torch.tensor([i]),) for i in range(3)), two)
    assert [y.item() for y in results] == [1, 2, 3]
    assert not [call for call in streams.calls if "holds" in call]


def test_every_lane_has_graphs_and_memory_of_its_own(recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[tuple] = []

    class Noting(Recorder):
        def __init__(self, function: Callable, inputs: tuple[torch.Tensor, ...], *own: Any):
            super().__init__(function, inputs, *own)
            shared.append(own)

    monkeypatch.setattr(graph, "CudaGraph", Noting)
    graphs, cpu = graph.Graphs(), torch.device("cpu")
    for _ in range(2):
        for lane in lanes.lanes(cpu, 2):
            with lane:
                graphs.run(lambda x: x * 2, torch.arange(3))
        graphs.run(lambda x: x * 2, torch.arange(3))
        graphs.run(lambda x: x * 2, torch.arange(4))
    assert len(shared) == 4 and [len(set(map(id, each))) for each in zip(*shared, strict=True)] == [3, 3, 3]
    assert shared[2] == shared[3]  # those of one lane run one at a time
    graphs.clear()
    graphs.run(lambda x: x * 2, torch.arange(3))
    assert len(shared) == 5


def test_an_error_comes_when_its_turn_comes(streams: FakeStreams) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        if x[0] == 1:
            raise RuntimeError("the second")
        return x

    results = lanes.in_order(function, ((torch.tensor([i]),) for i in range(3)), lanes.lanes(torch.device("cuda:0"), 3))
    assert next(results).item() == 0
    with pytest.raises(RuntimeError, match="the second"):
        next(results)


def test_an_error_leaves_the_lane(streams: FakeStreams) -> None:
    with pytest.raises(RuntimeError, match="inside"), lanes.lanes(torch.device("cuda:0"), 1)[0]:
        raise RuntimeError("inside")
    assert lanes.current_lane() == 0


def test_many_forward_passes_are_those_one_by_one() -> None:
    model = converted()
    inputs = [images(1, 3, 8, 9), images(2, 3, 7, 5), images(1, 3, 8, 9) / 9, images(1, 3, 8, 9) * 0.5]
    want = [model(x) for x in inputs]
    assert all(torch.equal(a, b) for a, b in zip(model.forward_many(iter(inputs), 3), want, strict=True))
    assert all(torch.equal(a, to_pixels(b)) for a, b in zip(model.forward_many(inputs, pixels=True), want, strict=True))
    assert list(model.forward_many([])) == []
    with pytest.raises(ValueError, match="in_flight must be an integer of at least 1, got 0"):
        next(model.forward_many(inputs, 0))
    several = model.forward_many([inputs[0], inputs[0].double()])
    next(several)
    with pytest.raises(ValueError, match="x must be float32"):
        next(several)


@pytest.mark.parametrize("count", [1, 2])
def test_results_come_before_the_next_input_is_asked_for_and_before_its_error(count: int) -> None:
    seen: list[str] = []

    def camera() -> Iterator[tuple[torch.Tensor]]:
        for i in range(3):
            seen.append(f"asked for {i}")
            yield (torch.tensor(i),)
        raise OSError("image 3 is damaged")

    with pytest.raises(OSError, match="image 3 is damaged"):
        for y in lanes.in_order(lambda x: x, camera(), lanes.lanes(torch.device("cpu"), count)):
            seen.append(f"result {int(y)}")
    assert seen.index("result 0") == count and seen[-1] == "result 2"
    assert [entry for entry in seen if "result" in entry] == ["result 0", "result 1", "result 2"]


def test_running_thresholds_follow_many_images_in_order() -> None:
    one, many = converted(), converted()
    inputs = [images(1, 3, 8, 9) * scale for scale in (0.1, 1.0, 0.3, 0.9, 0.02)]
    for model in (one, many):
        model.set_running_thresholds(0.2)
    want = [one(x) for x in inputs]
    assert all(torch.equal(a, b) for a, b in zip(many.forward_many(inputs, 2), want, strict=True))
    assert many.running_thresholds == one.running_thresholds


# ---- configs


def _write(path: Path, key: str) -> None:
    from adabm_kernels.backends.triton.tuning import Config, write_entries

    for i in range(20):
        write_entries(path, {f"{key}{i}": (Config(64, 64, 4, 1 + i), {"card": key})})


@needs_triton
def test_tables_are_whole_however_many_write(tmp_path: Path) -> None:
    from adabm_kernels.backends.triton import tuning

    path = tmp_path / "deep" / "tuning.json"
    context = multiprocessing.get_context("fork")  # they only write files
    writers = [context.Process(target=_write, args=(path, key)) for key in "ab"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        existed, table = path.exists(), tuning.read_table(path)
        assert not existed or (table and all(set(entry) == {"config", "card"} for entry in table.values()))
    assert all(writer.exitcode == 0 for writer in writers)
    assert [file.name for file in path.parent.iterdir()] == ["tuning.json"]
    assert len({key[0] for key in tuning.read_table(path)}) >= 1


@needs_triton
def test_measured_configs_go_before_the_heuristic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adabm_kernels.backends.triton import tuning

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "TABLE", tmp_path / "package.json")
    tuning.measured.cache_clear()
    try:
        shape = (90, 64, 3, 64, 256 * 256)
        guessed = tuning.conv2d_config(*shape)
        package, own = tuning.Config(64, 32, 4, 2), tuning.Config(32, 32, 2, 2)
        key = tuning.shape_class(*shape)
        assert key == "sm90-c64-k3-o64-p65536"
        tuning.write_entries(tuning.TABLE, {key: (package, {"card": "one"})})
        assert tuning.conv2d_config(*shape) == package != guessed
        assert tuning.conv2d_config(80, *shape[1:]) == guessed
        tuning.write_entries(tuning.user_table(), {key: (own, {"card": "other"})})
        assert tuning.conv2d_config(*shape) == own
        assert json.loads(tuning.user_table().read_text())[key]["card"] == "other"
        for broken in ("", "[]", '{"a": 1}', '{"a": {"config": {"block_m": 1}}}'):
            tuning.user_table().write_text(broken)
            tuning.measured.cache_clear()
            assert tuning.conv2d_config(*shape) == package
        whole = {"config": vars(own)}
        for broken in (1, [], {}, {"config": {"block_m": 1}}, {"config": vars(own) | {"block_m": "32"}}):
            tuning.user_table().write_text(json.dumps({"a": broken, key: whole}))
            assert tuning.read_table(tuning.user_table()) == {key: whole}  # one that is broken leaves the others
    finally:
        tuning.measured.cache_clear()
