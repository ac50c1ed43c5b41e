"""The operators as torch sees them: schemas, fakes, compilation, and what each wrong argument is told."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from operators import (
    BACKENDS,
    CONV2D_ERRORS,
    QUANTIZE,
    backend,
    by_border_class,
    fake_outputs,
    order,
    outputs,
    place,
    prepared,
    settings_of,
)
from problems import ConvProblem
from small import OnOtherDevice

from adabm_kernels import ops
from adabm_kernels.ops import library
from adabm_kernels.quantize import act_grid, to_pixels
from adabm_kernels.regions import Region

PROBLEMS = [
    ConvProblem("plain", 5, 7, 6, 9, bits=(4, 2)),
    ConvProblem("residual", 4, 6, 8, 8, bits=(3,), activation="relu", residual=True),
    ConvProblem("box", 4, 5, 5, 12, weight_bits=8, bits=(8,), activation="prelu", shuffle=2),
]


# ---- schemas and fakes


@backend
@pytest.mark.parametrize("out", ops.OUTPUTS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_opcheck_conv2d(problem: ConvProblem, out: str, backend: str) -> None:
    torch.library.opcheck(torch.ops.adabm.conv2d, order("conv2d", settings_of(prepared(problem, backend), out=out)))


@backend
@pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True)], ids=["y", "y_q", "both"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_opcheck_conv2d_out(problem: ConvProblem, wanted: tuple[bool, bool], backend: str) -> None:
    arguments = settings_of(prepared(problem, backend), accumulate=False, **outputs(problem, *wanted))
    torch.library.opcheck(torch.ops.adabm.conv2d_out, order("conv2d_out", arguments))


@backend
@pytest.mark.parametrize("with_codes", [False, True], ids=["y", "both"])
def test_opcheck_accumulating(with_codes: bool, backend: str) -> None:
    problem = PROBLEMS[1]
    arguments = settings_of(prepared(problem, backend), **outputs(problem, True, with_codes))
    arguments |= {"y": arguments["residual"].clone(), "residual": None, "accumulate": True}
    torch.library.opcheck(torch.ops.adabm.conv2d_out, order("conv2d_out", arguments))


@backend
def test_opcheck_int16_features(backend: str) -> None:
    problem = PROBLEMS[1]
    arguments = settings_of(prepared(problem, backend), accumulate=False, **outputs(problem, True, True))
    arguments |= {name: torch.zeros(arguments[name].shape, dtype=torch.int16) for name in ("y", "residual")}
    torch.library.opcheck(torch.ops.adabm.conv2d_out, order("conv2d_out", arguments | {"features": "int16", "fraction": 8}))
    x = QUANTIZE | {"x": torch.arange(240, dtype=torch.int16).view(2, 5, 4, 6), "shift": None, "backend": backend}
    torch.library.opcheck(torch.ops.adabm.quantize, order("quantize", x | {"fraction": 8}))


@backend
def test_opcheck_of_what_reads_images(backend: str) -> None:
    g = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (2, 9, 11, 4), generator=g, dtype=torch.uint8)
    pixels[..., 3] = 0
    torch.library.opcheck(torch.ops.adabm.tile_depths, (pixels, 4, 1, 2, 40, 3, backend, 1))
    x, rules = torch.rand(3, 3, 6, 7, generator=g) * 255, torch.tensor([[4, 1], [8, 0]], dtype=torch.int32)
    torch.library.opcheck(torch.ops.adabm.image_measure, (x, backend))
    torch.library.opcheck(torch.ops.adabm.layer_bits, (x, torch.tensor(5.0), torch.tensor(9.0), rules, backend))


def test_every_operator_is_checked_and_tagged() -> None:
    """By torch.library.opcheck, in this file; of a residual block, which only a card has, the fake alone."""
    own = torch._C._dispatch_get_registrations_for_dispatch_key("CPU")
    names = {name.removeprefix("adabm::") for name in own if name.startswith("adabm::")}
    text = Path(__file__).read_text()
    assert names == set(library.IMPLEMENTATIONS)
    assert {name for name in names if f"opcheck(torch.ops.adabm.{name}," not in text} == {"resblock_out"}
    for name in names:
        assert set(library.TAGS) <= set(getattr(torch.ops.adabm, name).default.tags)
    assert not hasattr(torch.Tag, "needs_exact_strides") or torch.Tag.needs_exact_strides in library.TAGS


@pytest.mark.parametrize("name", library.IMPLEMENTATIONS)
def test_operators_refuse_other_devices_in_a_sentence(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"adabm::{name}", "XPU")
    second = getattr(torch.ops.adabm, name).default._schema.arguments[1].name
    with pytest.raises(RuntimeError, match=f"^{name}: {second} must be on the CPU or on a CUDA device, got xpu"):
        library.refusal(name)(torch.zeros(1), [OnOtherDevice(torch.zeros(1))], 3)


def pixel_arguments(problem: ConvProblem, backend: str, **changes: Any) -> dict[str, Any]:
    return {n: v for n, v in settings_of(prepared(problem, backend), **changes).items() if n not in ("out_grid", "out_bits", "out")}


@backend
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_opcheck_conv2d_pixels(problem: ConvProblem, backend: str) -> None:
    torch.library.opcheck(torch.ops.adabm.conv2d_pixels, order("conv2d_pixels", pixel_arguments(problem, backend)))


@backend
def test_opcheck_with_a_region(backend: str) -> None:
    plain, residual, shuffled = PROBLEMS
    region = place(Region(own=(1, 1), near=(0, 0), reach=1), 2, 5, 7)
    arguments = settings_of(prepared(plain, backend), accumulate=False, **outputs(plain, True, True), **region)
    torch.library.opcheck(torch.ops.adabm.conv2d_out, order("conv2d_out", arguments))
    passing = place(Region(own=(1, 1), passed=(0, 1), pass_reach=2), 1, 4, 6)
    arguments = settings_of(prepared(residual, backend), accumulate=False, **outputs(residual, True, True), **passing)
    torch.library.opcheck(torch.ops.adabm.conv2d_out, order("conv2d_out", arguments))
    image = torch.full((1, 8, 10, 3), 171, dtype=torch.uint8)
    arguments = pixel_arguments(shuffled, backend, image=image, **place(Region(own=(1, 255)), 1, 4, 5))
    torch.library.opcheck(torch.ops.adabm.conv2d_pixels_out, order("conv2d_pixels_out", arguments))
    y_q = torch.full((2, 4, 6, 8), 171, dtype=torch.uint8)
    arguments = QUANTIZE | {"backend": backend, "start": 0, "y_q": y_q} | place(Region(near=(1, 1), reach=1), 2, 4, 6)
    torch.library.opcheck(torch.ops.adabm.quantize_out, order("quantize_out", arguments))


def test_the_fake_of_a_residual_block_checks_its_region() -> None:
    """A block has no kernel but on a card; its fake is the same everywhere."""
    problem = ConvProblem("block", 5, 7, 8, 8, bits=(4, 2))
    instance = prepared(problem, "reference")
    conv = settings_of(instance)
    second = {f"{name}2": conv[name] for name in ("weight", "packed", "alpha", "beta", "box_filter")}
    arguments = conv | second | outputs(problem, True, True) | place(Region(own=(1, 1), passed=(1, 1), pass_reach=2), 2, 5, 7)
    arguments |= {"inner_grid": conv["out_grid"], "inner_bits": conv["out_bits"], "residual": None, "accumulate": True}
    arguments["backend"] = "cuda"
    assert fake_outputs("resblock_out", arguments) is None
    for changes, message in (
        ({"depth": arguments["depth"][:1]}, r"conv2d_out: depth must have shape \[2, 2, 3\], got \[1, 2, 3\]"),
        ({"region": []}, r"conv2d_out: region must be 11 numbers"),
    ):
        with pytest.raises(RuntimeError, match=message):
            fake_outputs("resblock_out", arguments | changes)


def test_a_residual_block_shares_no_memory_with_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """In front of its kernel, which only a card has."""
    ran = []
    stand_in = SimpleNamespace(ready_resblock_out=lambda *convs: lambda *args: ran.append(args))
    monkeypatch.setattr(library, "backend_module", lambda backend: stand_in)
    x_q, bits = CODES, torch.tensor([4], dtype=torch.int32)
    conv = torch.zeros(8, 3, 3, 8, dtype=torch.int8), torch.zeros(0, dtype=torch.uint8), torch.ones(7, 8), torch.zeros(4, 4, 8)
    grid = {"out_grid": act_grid(0, 1), "out_bits": bits}
    for turn in range(2):
        ops.resblock_out(x_q, bits, conv, conv, act_grid(0, 1), bits, y_q=memory(280, torch.uint8), **grid)
        assert len(ran) == turn + 1
        with pytest.raises(RuntimeError, match="resblock_out: y_q must share no memory with x_q, got an overlap of 1 bytes"):
            ops.resblock_out(x_q, bits, conv, conv, act_grid(0, 1), bits, y_q=memory(279, torch.uint8), **grid)


def many_targets(backend: str) -> dict[str, Any]:
    """x on three grids, into slices of buffers."""
    grids, bits = [act_grid(-1.0 - i, 1.0) for i in range(3)], [torch.tensor([2 + i, 8 - i], dtype=torch.int32) for i in range(3)]
    y_q = [torch.full((2, 4, 6, 12), 171, dtype=torch.uint8)[..., 4:12] for _ in range(3)]
    return {"x": QUANTIZE["x"], "grids": grids, "bits": bits, "starts": [0] * 3, "y_q": y_q, "backend": backend} | {
        "packed_codes": False,
        "threads": 1,
    }


@backend
def test_quantising_on_many_grids_is_quantising_on_each(backend: str) -> None:
    arguments = many_targets(backend)
    torch.library.opcheck(torch.ops.adabm.quantize_many_out, order("quantize_many_out", arguments))
    arguments = many_targets(backend)
    ops.quantize_many_out(**arguments)
    for grid, bits, y_q in zip(arguments["grids"], arguments["bits"], arguments["y_q"], strict=True):
        assert torch.equal(y_q, ops.quantize(arguments["x"], grid, bits, backend=backend))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"grids": []}, r"as many grids, bits, starts and y_q must be given, and at least one, got \[0, 3, 3, 3\]"),
        ({"starts": [0, 4, 0]}, "y_q must hold 9 channels"),
        ({"bits": [torch.zeros(2)] * 3}, "bits must be torch.int32"),
    ],
)
def test_many_targets_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.quantize_many_out(**many_targets("reference") | changes)


@backend
@pytest.mark.parametrize("shift", [True, False], ids=["shift", "no_shift"])
def test_opcheck_quantize(shift: bool, backend: str) -> None:
    arguments = QUANTIZE | {"backend": backend} | ({} if shift else {"shift": None})
    torch.library.opcheck(torch.ops.adabm.quantize, order("quantize", arguments))


@backend
@pytest.mark.parametrize("channels", [5, 13, 16, 17])
def test_codes_beyond_the_channels_are_zero(channels: int, backend: str) -> None:
    x = torch.randn(2, channels, 3, 7) * 50
    arguments = {"grid": QUANTIZE["grid"], "bits": QUANTIZE["bits"], "backend": backend}
    wide = torch.full((2, 3, 7, 52), 99, dtype=torch.uint8)
    ops.quantize_out(x, y_q=wide[..., :48], **arguments)
    assert torch.equal(wide[..., :channels], ops.quantize(x, **arguments)[..., :channels])
    assert (wide[..., channels:48] == 0).all() and (wide[..., 48:] == 99).all()


@backend
def test_opcheck_kernels_by_border_class(backend: str) -> None:
    torch.library.opcheck(torch.ops.adabm.conv2d, order("conv2d", by_border_class(backend) | {"out": "both"}))


def shapes(tensors: tuple[torch.Tensor, ...]) -> list[tuple]:
    return [(t.dtype, tuple(t.shape), t.stride() if t.numel() else (), t.device.type) for t in tensors]


@backend
@pytest.mark.parametrize("out", ops.OUTPUTS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_fake_of_conv2d_promises_what_comes(problem: ConvProblem, out: str, backend: str) -> None:
    arguments = settings_of(prepared(problem, backend), out=out)
    real = torch.ops.adabm.conv2d(*order("conv2d", arguments))
    assert shapes(fake_outputs("conv2d", arguments)) == shapes(real)
    assert (real[0].numel() > 0) == (out != "codes")
    assert (real[1].numel() > 0) == (out in ("codes", "both"))
    assert real[0].dtype == (torch.int32 if out == "acc" else torch.float32)


@backend
def test_fake_of_quantize_promises_what_comes(backend: str) -> None:
    arguments = QUANTIZE | {"backend": backend}
    real = torch.ops.adabm.quantize(*order("quantize", arguments))
    assert shapes((fake_outputs("quantize", arguments),)) == shapes((real,))


# ---- compilation


@backend
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_into_one_graph(backend: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    instance = prepared(ConvProblem("compiled", 6, 8, 5, 8, bits=(4, 3), activation="relu"), backend)
    layer = instance.layer

    def function(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
        codes = ops.quantize(x, layer.grid, bits, backend=backend, threads=1)
        y, y_q = layer(codes, bits, out="both", out_grid=instance.out_grid, out_bits=bits)
        buffer = torch.empty_like(y)
        layer.into(codes, bits, y=buffer)
        return y.mean() + y_q.float().mean(), buffer * 2

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    g = torch.Generator().manual_seed(0)
    for height, width in ((6, 8), (5, 9)) if dynamic else ((6, 8),):
        x = torch.randn(2, 5, height, width, generator=g)
        for bits in ((4, 3), (8, 2)):
            bits = torch.tensor(bits, dtype=torch.int32)
            for got, want in zip(compiled(x, bits), function(x, bits), strict=True):
                assert torch.equal(got, want)


# ---- conv2d_out, conv2d_pixels and conv2d are the same function


@backend
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_pixels_are_the_floats_clamped_and_rounded(problem: ConvProblem, backend: str) -> None:
    floats = settings_of(prepared(problem, backend), out="float", residual=None)
    spread = floats["alpha"] * 60, floats["beta"] * 60 + 100  # over and beyond 0..255
    floats |= {"alpha": spread[0], "beta": spread[1]}
    y, _ = torch.ops.adabm.conv2d(*order("conv2d", floats))
    want = y.clamp(0, 255).round().to(torch.uint8)
    arguments = pixel_arguments(problem, backend, residual=None) | {"alpha": spread[0], "beta": spread[1]}
    assert torch.equal(ops.conv2d_pixels(**arguments), want)
    halves = torch.tensor([-0.5, 0.5, 1.5, 2.5, 254.5, 255.5, 300.0, -7.0])
    assert to_pixels(halves).tolist() == [0, 0, 2, 2, 254, 255, 255, 0]


@backend
@pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True)], ids=["y", "y_q", "both"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_conv2d_out_writes_what_conv2d_returns(problem: ConvProblem, wanted: tuple[bool, bool], backend: str) -> None:
    arguments = settings_of(prepared(problem, backend))
    want_y, want_q = torch.ops.adabm.conv2d(*order("conv2d", arguments | {"out": "both"}))
    into = outputs(problem, *wanted)
    ops.conv2d_out(**arguments, **into)
    assert into["y"] is None or torch.equal(into["y"], want_y)
    assert into["y_q"] is None or torch.equal(into["y_q"], want_q)


@backend
@pytest.mark.parametrize("with_codes", [False, True], ids=["y", "both"])
def test_accumulating_is_a_residual_in_place(with_codes: bool, backend: str) -> None:
    problem = PROBLEMS[1]
    arguments = settings_of(prepared(problem, backend))
    want_y, want_q = torch.ops.adabm.conv2d(*order("conv2d", arguments | {"out": "both"}))
    into = outputs(problem, True, with_codes)
    into["y"] = arguments["residual"].clone()
    ops.conv2d_out(**(arguments | {"residual": None}), **into, accumulate=True)
    assert torch.equal(into["y"], want_y)
    assert not with_codes or torch.equal(into["y_q"], want_q)


@backend
def test_arguments_of_any_strides_are_accepted(backend: str) -> None:
    arguments = settings_of(prepared(PROBLEMS[1], backend), out="both")
    strided = {
        name: value.transpose(1, -1).contiguous().transpose(1, -1) if isinstance(value, torch.Tensor) and value.dim() > 1 else value
        for name, value in arguments.items()
    }
    strided["x_bits"] = torch.stack([arguments["x_bits"]] * 2, 1)[:, 0]
    want = torch.ops.adabm.conv2d(*order("conv2d", arguments))
    got = torch.ops.adabm.conv2d(*order("conv2d", strided))
    assert all(map(torch.equal, got, want))
    x = QUANTIZE["x"]
    for view in (x.to(memory_format=torch.channels_last), x.expand(2, 5, 4, 6), x[:, :1].expand(2, 5, 4, 6), x.flip(3)):
        got = ops.quantize(**QUANTIZE | {"x": view, "backend": backend})
        assert torch.equal(got, ops.quantize(**QUANTIZE | {"x": view.contiguous(), "backend": "reference"}))


# ---- messages


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize("changes, message", CONV2D_ERRORS)
def test_conv2d_names_what_is_wrong(changes: dict[str, Any], message: str, fake: bool) -> None:
    arguments = settings_of(prepared(PROBLEMS[0], BACKENDS[0]), out="float") | changes
    with pytest.raises(RuntimeError, match=message):
        fake_outputs("conv2d", arguments) if fake else torch.ops.adabm.conv2d(*order("conv2d", arguments))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"backend": "abacus"}, r"backend must be one of \(.*'reference'\), got 'abacus'"),
        ({"weight": torch.zeros(8, 3, 3, 4)}, "weight must be int8 .K, R, S, C. or .*, got torch.float32 .8, 3, 3, 4."),
        ({"weight": torch.zeros(3, 3, 4, dtype=torch.int8)}, r"weight must be int8 .*, got torch.int8 \[3, 3, 4\]"),
        ({"weight": torch.zeros(8, 3, 3, 4, dtype=torch.int8, device="meta")}, "weight must be in main memory .*, got meta"),
        ({"tile_for_bits": (0,) * 6}, r"tile_for_bits must be 7 whole numbers, got \(0, 0, 0, 0, 0, 0\)"),
        ({"tile_for_bits": (0,) * 8}, "tile_for_bits must be 7 whole numbers"),
        ({"tile_for_bits": (0, -1) + (0,) * 5}, r"tile_for_bits\[1\] must be 0..\d+, got -1"),
        ({"tile_for_bits": ("direct",) * 7}, "tile_for_bits must be 7 whole numbers"),
    ],
)
@pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU library was not built")
def test_pack_weights_names_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    arguments = {"backend": "cpu", "weight": torch.zeros(8, 3, 3, 4, dtype=torch.int8), "tile_for_bits": (0,) * 7}
    with pytest.raises(ValueError, match=f"(pack_weights|adabm_pack_bytes_cpu): {message}"):
        ops.pack_weights(**arguments | changes, box_filter=False, shuffle=1)


def memory(offset: int, dtype: torch.dtype, channels: int = 8) -> torch.Tensor:
    """[1, 5, 7, channels] at a byte of the same 4096."""
    size = 35 * channels * dtype.itemsize
    return SHARED[offset : offset + size].view(dtype).view(1, 5, 7, channels)


SHARED = torch.zeros(4096, dtype=torch.uint8)
CODES = memory(0, torch.uint8)  # 280 bytes


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"y_q": CODES}, "y_q must share no memory with x_q, got an overlap of 280 bytes"),
        ({"y_q": memory(64, torch.uint8)}, "y_q must share no memory with x_q, got an overlap of 216 bytes"),
        ({"y_q": memory(280, torch.uint8)}, None),
        ({"x_q": memory(64, torch.uint8), "y_q": CODES}, "y_q must share no memory with x_q, got an overlap of 216 bytes"),
        ({"y": memory(276, torch.float32)}, "y must share no memory with x_q, got an overlap of 4 bytes"),
        ({"y": memory(280, torch.float32)}, None),
        ({"y": memory(280, torch.float32), "y_q": memory(1400, torch.uint8)}, None),
        (
            {"y": memory(280, torch.float32), "y_q": memory(1399, torch.uint8)},
            "y_q must share no memory with y, got an overlap of 1 bytes",
        ),
        ({"y": memory(1000, torch.float32), "residual": memory(1000, torch.float32)}, None),
        (
            {"y": memory(1000, torch.float32), "residual": memory(1032, torch.float32)},
            "y must share no memory with residual, unless it is the residual, got an overlap of 1088 bytes",
        ),
        ({"y_q": memory(1000, torch.uint8), "residual": memory(1000, torch.float32)}, "y_q must share no memory with residual"),
        ({"y": memory(280, torch.float32, 20)[..., :8], "residual": memory(280, torch.float32, 20)[..., 8:16]}, None),
        (
            {"y": memory(280, torch.float32, 20)[..., 7:15], "residual": memory(280, torch.float32, 20)[..., :8]},
            "y must share no memory with residual",
        ),
        ({"y": memory(0, torch.float32, 20)[..., 12:]}, "y must share no memory with x_q, got an overlap of 232 bytes"),
    ],
)
def test_what_is_written_shares_no_memory_with_what_is_read(changes: dict[str, Any], message: str | None) -> None:
    """Of a block of memory that holds all of them; told by the bytes that are shared, at a later call of a known signature too."""
    weight, bits = torch.zeros(8, 3, 3, 8, dtype=torch.int8), torch.tensor([4], dtype=torch.int32)
    packed = ops.pack_weights("reference", weight, (0,) * 7, False, 1)
    given = {"x_q": CODES, "out_grid": act_grid(0, 1), "out_bits": bits, "backend": "reference"} | changes
    tables = bits, weight, packed, torch.ones(7, 8), torch.zeros(4, 4, 8)
    x_q = given.pop("x_q")
    apart = {name: given[name].clone() for name in ("y", "y_q", "residual") if name in given}
    ops.conv2d_out(x_q.clone(), *tables, **given | apart)
    with pytest.raises(RuntimeError, match=f"conv2d_out: {message}") if message else nullcontext():
        ops.conv2d_out(x_q, *tables, **given)


def test_pixels_share_no_memory_with_the_codes_they_are_made_of() -> None:
    weight, bits = torch.zeros(8, 3, 3, 8, dtype=torch.int8), torch.tensor([4], dtype=torch.int32)
    packed = ops.pack_weights("reference", weight, (0,) * 7, False, 1)
    with pytest.raises(RuntimeError, match="conv2d_pixels_out: image must share no memory with x_q, got an overlap of 216 bytes"):
        ops.conv2d_pixels_out(
            CODES, bits, weight, packed, torch.ones(7, 8), torch.zeros(4, 4, 8), image=memory(64, torch.uint8), backend="reference"
        )


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"y": None}, "conv2d_out: one of y and y_q must be given"),
        (
            {"accumulate": True, "residual": torch.zeros(2, 5, 7, 9)},
            "conv2d_out: accumulate needs y, and takes the place of residual",
        ),
        (
            {"accumulate": True, "y": None, "y_q": torch.zeros(2, 5, 7, 12, dtype=torch.uint8)},
            "conv2d_out: accumulate needs y",
        ),
        ({"y": torch.zeros(2, 5, 7, 8)}, r"conv2d_out: y must have shape \[2, 5, 7, 9\], got \[2, 5, 7, 8\]"),
        ({"y": torch.zeros(2, 5, 7, 9).double()}, "conv2d_out: y must be torch.float32, got torch.float64"),
        (
            {"y_q": torch.zeros(2, 5, 7, 9, dtype=torch.uint8)},
            r"conv2d_out: y_q must have shape \[2, 5, 7, 12\], got \[2, 5, 7, 9\]",
        ),
        ({"y": torch.zeros(2, 5, 9, 7).transpose(2, 3)}, "conv2d_out: y must be contiguous"),
        ({"x_bits": torch.tensor([4, 2])}, "conv2d: x_bits must be torch.int32, got torch.int64"),
    ],
)
def test_conv2d_out_names_what_is_wrong(changes: dict[str, Any], message: str, fake: bool) -> None:
    problem = PROBLEMS[0]
    arguments = settings_of(prepared(problem, BACKENDS[0]), accumulate=False, **outputs(problem, True, False)) | changes
    with pytest.raises(RuntimeError, match=message):
        fake_outputs("conv2d_out", arguments) if fake else torch.ops.adabm.conv2d_out(*order("conv2d_out", arguments))


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x": torch.zeros(5, 4, 6)}, r"quantize: x must be \[N, C, H, W\], got shape \[5, 4, 6\]"),
        ({"x": torch.zeros(2, 5, 0, 6)}, r"quantize: x must not be empty, got shape \[2, 5, 0, 6\]"),
        ({"x": torch.zeros(2, 5, 4, 6, dtype=torch.half)}, "quantize: x must be torch.float32 or torch.int16, got torch.float16"),
        ({"grid": torch.zeros(2, 7)}, r"quantize: grid must have shape \[7, 2\], got \[2, 7\]"),
        ({"bits": torch.zeros(3, dtype=torch.int32)}, r"quantize: bits must have shape \[2\], got \[3\]"),
        ({"shift": torch.zeros(3)}, r"quantize: shift must have shape \[5\], got \[3\]"),
        ({"backend": "abacus"}, r"quantize: backend must be one of \(.*\), got 'abacus'"),
        ({"threads": -2}, r"quantize: threads must be 0 \(as torch\) or more, got -2"),
    ],
)
def test_quantize_names_what_is_wrong(changes: dict[str, Any], message: str, fake: bool) -> None:
    arguments = QUANTIZE | {"backend": BACKENDS[0]} | changes
    with pytest.raises(RuntimeError, match=message):
        fake_outputs("quantize", arguments) if fake else torch.ops.adabm.quantize(*order("quantize", arguments))


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU library was not built")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation, of_nan", [("none", float("nan")), ("relu", 0.0), ("prelu", float("nan"))])
def test_activations_of_nan_and_infinity(activation: str, of_nan: float, backend: str) -> None:
    weight, bits, inf = torch.zeros(4, 1, 1, 4, dtype=torch.int8), torch.tensor([4], dtype=torch.int32), float("inf")
    packed = ops.pack_weights(backend, weight, (0,) * 7, False, 1)
    beta = torch.tensor([float("nan"), inf, -inf, -2.0]).view(1, 1, 4)
    settings = {"slope": torch.full((4,), 0.5), "activation": activation, "backend": backend}
    y, _ = ops.conv2d(torch.zeros(1, 1, 9, 4, dtype=torch.uint8), bits, weight, packed, torch.ones(7, 4), beta, **settings)
    below = {"none": (-inf, -2.0), "relu": (0.0, 0.0), "prelu": (-inf, -1.0)}[activation]
    assert torch.equal(y.nan_to_num(7.0), torch.tensor([of_nan, inf, *below]).expand(1, 1, 9, 4).nan_to_num(7.0))


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU library was not built")
@pytest.mark.parametrize("offset", [1, 16, 60])
def test_packed_weights_may_lie_anywhere(offset: int) -> None:
    """AOTInductor lays the constants of a program at multiples of 16 bytes."""
    arguments = settings_of(prepared(PROBLEMS[1], "cpu"))
    want = torch.ops.adabm.conv2d(*order("conv2d", arguments | {"out": "both"}))
    want_pixels = ops.conv2d_pixels(**pixel_arguments(PROBLEMS[1], "cpu"))
    room = torch.zeros(arguments["packed"].numel() + 128, dtype=torch.uint8)
    start = -room.data_ptr() % 64 + offset
    packed = room[start : start + arguments["packed"].numel()].copy_(arguments["packed"])
    assert packed.data_ptr() % 64 == offset
    got = torch.ops.adabm.conv2d(*order("conv2d", arguments | {"out": "both", "packed": packed}))
    assert all(map(torch.equal, got, want))
    assert torch.equal(ops.conv2d_pixels(**pixel_arguments(PROBLEMS[1], "cpu") | {"packed": packed}), want_pixels)


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_outside_the_grids_are_named_by_value(bits: int) -> None:
    """Bits are data: only the kernel sees them."""
    wrong = torch.tensor([4, bits], dtype=torch.int32)
    arguments = settings_of(prepared(PROBLEMS[0], "cpu"), out="both")
    for name in ("x_bits", "out_bits"):
        with pytest.raises(ValueError, match=rf"{name}\[1\] must be 2..8, got {bits}"):
            torch.ops.adabm.conv2d(*order("conv2d", arguments | {name: wrong}))
    with pytest.raises(ValueError, match=rf"bits\[1\] must be 2..8, got {bits}"):
        ops.quantize(**QUANTIZE | {"bits": wrong, "backend": "cpu"})


# ---- special values


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU library was not built")
def test_nan_and_infinity_have_codes() -> None:
    """Below the range 0, above it the last code, and 0 for NaN, on every backend."""
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([-inf, -3e38, nan, 3e38, inf]).view(1, 1, 1, 5)
    arguments = QUANTIZE | {"x": x, "shift": None, "bits": torch.tensor([5], dtype=torch.int32)}
    for name in BACKENDS:
        codes = ops.quantize(**arguments | {"backend": name})[0, 0, :, 0]
        assert codes.tolist() == [0, 0, 0, 31, 31]


@pytest.mark.parametrize("bits", [1, 9])
def test_the_reference_refuses_bits_it_has_no_grid_for(bits: int) -> None:
    grid = act_grid(-1.0, 1.0)
    with pytest.raises(ValueError, match=rf"quantize: bits must be 2..8, got \[{bits}\]"):
        ops.quantize(torch.zeros(1, 1, 1, 1), grid, torch.tensor([bits], dtype=torch.int32), backend="reference")


# ---- slices of wider features


@backend
@pytest.mark.parametrize("offset", [0, 3, 8])
def test_outputs_can_be_slices_of_wider_features(offset: int, backend: str) -> None:
    problem = ConvProblem("slice", 5, 7, 6, 9, bits=(4, 2), activation="relu", residual=True)
    instance = prepared(problem, backend)
    arguments = settings_of(instance)
    want, want_q = torch.ops.adabm.conv2d(*order("conv2d", arguments | {"out": "both"}))
    wide, other = torch.full((2, 5, 7, 20), -1e9), torch.zeros(2, 5, 7, 20)
    y, residual = wide[..., offset : offset + 9], other[..., offset : offset + 9]
    residual.copy_(instance.residual)
    y_q = torch.empty_like(want_q)
    changes = {"y": y, "y_q": y_q, "residual": residual, "accumulate": False}
    torch.ops.adabm.conv2d_out(*order("conv2d_out", arguments | changes))
    assert torch.equal(y, want) and torch.equal(y_q, want_q)
    untouched = torch.ones(20, dtype=torch.bool)
    untouched[offset : offset + 9] = False
    assert (wide[..., untouched] == -1e9).all()
    y.copy_(instance.residual)
    changes = {"y": y, "y_q": None, "residual": None, "accumulate": True}
    torch.ops.adabm.conv2d_out(*order("conv2d_out", arguments | changes))
    assert torch.equal(y, want) and (wide[..., untouched] == -1e9).all()


@backend
@pytest.mark.parametrize(("offset", "fill"), [(0, 6), (4, 6), (5, 8), (12, 8)])
def test_codes_can_be_made_from_and_into_slices(offset: int, fill: int, backend: str) -> None:
    g = torch.Generator().manual_seed(1)
    features = torch.randn(2, 3, 5, 17, generator=g)
    x, grid, bits = features[..., 2:8].permute(0, 3, 1, 2), act_grid(-1.0, 2.0), torch.tensor([3, 6], dtype=torch.int32)
    want = ops.quantize(x.contiguous(), grid, bits, backend=backend, threads=1)
    wide = torch.full((2, 3, 5, 20), 171, dtype=torch.uint8)
    y_q = wide[..., offset : offset + fill]
    ops.quantize_out(x, grid, bits, y_q, backend=backend, threads=1)
    assert torch.equal(y_q[..., :6], want[..., :6]) and not y_q[..., 6:].any()
    untouched = torch.ones(20, dtype=torch.bool)
    untouched[offset : offset + fill] = False
    assert (wide[..., untouched] == 171).all()
    arguments = {
        "x": x,
        "shift": None,
        "grid": grid,
        "bits": bits,
        "packed_codes": False,
        "start": 0,
        "backend": backend,
        "threads": 1,
    }
    torch.library.opcheck(torch.ops.adabm.quantize_out, order("quantize_out", arguments | {"y_q": torch.empty_like(want)}))


@backend
def test_codes_of_an_image_one_pixel_wide_go_where_they_belong(backend: str) -> None:
    """Its columns have any stride, and it is contiguous all the same."""
    y_q = torch.zeros(6 * 6 * 8, dtype=torch.uint8).as_strided((1, 6, 1, 8), (48, 8, 48, 1))
    x, grid, bits = torch.rand(1, 6, 6, 1), act_grid(0.0, 1.0), torch.tensor([8], dtype=torch.int32)
    assert y_q.is_contiguous()
    ops.quantize_out(x, grid, bits, y_q, backend=backend, threads=1)
    assert torch.equal(y_q, ops.quantize(x, grid, bits, backend="reference"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": torch.zeros(2, 7, 5, 9).transpose(1, 2)}, "y must be contiguous or a slice of the channels"),
        ({"y": torch.zeros(2, 5, 7, 18)[..., ::2]}, "y must be contiguous or a slice of the channels"),
        ({"y": torch.zeros(2, 5, 7, 12)[..., :9], "residual": torch.zeros(2, 5, 7, 9)}, "residual must have the strides of y"),
    ],
)
def test_slices_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    arguments = settings_of(prepared(ConvProblem("slice", 5, 7, 6, 9, bits=(4, 2)), "reference"))
    with pytest.raises(RuntimeError, match=message):
        torch.ops.adabm.conv2d_out(*order("conv2d_out", arguments | {"y_q": None, "accumulate": False} | changes))


def test_codes_that_do_not_fit_are_named() -> None:
    x, bits = torch.zeros(1, 6, 3, 5), torch.tensor([4], dtype=torch.int32)
    for y_q, message in (
        (torch.zeros(1, 3, 5, 4, dtype=torch.uint8), "y_q must hold 6 channels"),
        (torch.zeros(1, 3, 5, 8), "y_q must be torch.uint8"),
        (torch.zeros(1, 5, 3, 8, dtype=torch.uint8).transpose(1, 2), "y_q must be contiguous or a slice"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.quantize_out(x, act_grid(0.0, 1.0), bits, y_q, backend="reference")
