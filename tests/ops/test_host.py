"""What the host does beside the kernels: how many calls of Python an operator takes, and that calls made ready are as safe as
checked ones."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from operators import BACKENDS, CONV2D_ERRORS, QUANTIZE, backend, order, outputs, place, prepared, settings_of
from problems import ConvProblem
from small import one_thread, small_edsr  # noqa: F401

from adabm_kernels import ConvertConfig, convert_model, ops
from adabm_kernels.ops import ready
from adabm_kernels.regions import Region

needs_cpu = pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU library was not built")
PROBLEM = ConvProblem("host", 5, 7, 6, 9, bits=(4, 2))


@pytest.fixture(autouse=True)
def nothing_ready():
    ready.READY.clear()
    yield
    ready.READY.clear()


def calls_of(function: Callable[[], object]) -> int:
    """Calls of functions written in Python that `function` makes, itself left out."""
    function()  # what is made once for a signature
    seen: list[str] = []
    sys.setprofile(lambda frame, event, _: seen.append(frame.f_code.co_qualname) if event == "call" else None)
    try:
        function()
    finally:
        sys.setprofile(None)
    return len(seen) - 1


def operators() -> dict[str, Callable[[], object]]:
    """Operators as layers call them."""
    instance = prepared(PROBLEM, "cpu")
    layer, to = instance.layer, outputs(PROBLEM, True, True)
    grid = {"out_grid": instance.out_grid, "out_bits": instance.out_bits}
    image, codes = torch.empty(2, 5, 7, 9, dtype=torch.uint8), torch.empty(2, 5, 7, 12, dtype=torch.uint8)
    features = to["y"].permute(0, 3, 1, 2)
    return {
        "conv2d_out": lambda: layer.into(instance.x_q, instance.bits, **to, **grid),
        "conv2d": lambda: layer(instance.x_q, instance.bits, out="both", **grid),
        "conv2d_pixels_out": lambda: layer.pixels_into(instance.x_q, instance.bits, image),
        "quantize_out": lambda: ops.quantize_out(features, layer.grid, instance.bits, codes),
        "quantize": lambda: ops.quantize(features, layer.grid, instance.bits),
    }


@needs_cpu
@pytest.mark.parametrize("name", ["conv2d_out", "conv2d", "conv2d_pixels_out", "quantize_out", "quantize"])
def test_an_operator_takes_few_calls_of_python(name: str) -> None:
    """They took 113, 91, 95, 60 and 45 when every call was checked anew and its struct filled from keywords."""
    assert calls_of(operators()[name]) <= 20


@needs_cpu
def test_a_block_takes_few_calls_of_python() -> None:
    """Both its convolutions, and what the network does around them: it was 244."""
    x, counts = torch.rand(1, 3, 8, 8) * 255, []
    for blocks in (1, 3):
        config = ConvertConfig(recipe="paper", steps=0, batch=1)
        model = convert_model(small_edsr(blocks=blocks), [torch.rand(2, 3, 16, 16) * 255], config)
        model.set_backend("cpu")
        counts.append(calls_of(lambda model=model: model(x)))
    assert (counts[1] - counts[0]) / 2 <= 40


# ---- a call of a known signature, and one that only looks like it


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises((RuntimeError, ValueError, TypeError)) as raised:
        call()
    return str(raised.value)


def assert_refused_after(good: Callable[[], object], bad: Callable[[], object]) -> None:
    """A wrong call is told the same after a right one, twice over, as by itself."""
    alone = message_of(bad)
    ready.READY.clear()
    good()
    assert ready.READY
    assert [message_of(bad), message_of(bad)] == [alone, alone]
    good()


def conv2d_out_arguments(backend: str) -> dict[str, Any]:
    region = place(Region(own=(1, 1), near=(0, 0), reach=1), 2, 5, 7)
    return settings_of(prepared(PROBLEM, backend), accumulate=False, **outputs(PROBLEM, True, True), **region)


SHIFTED = torch.zeros(2, 5, 7, 12, dtype=torch.uint8)
CONV2D_OUT_ERRORS = [
    *(changes for changes, _ in CONV2D_ERRORS if "out" not in changes),
    {"out_grid": None},
    {"out_bits": torch.zeros(2)},
    {"x_q": torch.zeros(2, 5, 7, 8, dtype=torch.int8)},
    {"alpha": torch.zeros(7, 9, dtype=torch.float64)},
    {"y": torch.zeros(2, 5, 7, 9, dtype=torch.int32)},
    {"y": torch.zeros(2, 5, 9, 7).transpose(2, 3)},
    {"y": torch.zeros(2, 5, 7, 18)[..., ::2]},
    {"y_q": torch.zeros(2, 5, 7, 9, dtype=torch.uint8)},
    {"y_q": torch.zeros(2, 7, 5, 12, dtype=torch.uint8).transpose(1, 2)},
    {"accumulate": True, "residual": torch.zeros(2, 5, 7, 9)},
    {"accumulate": True, "y": None},
    {"y": None, "y_q": None},
    {"features": "int16"},
    {"features": "int32"},
    {"fraction": 3},
    {"packed_codes": True},
    {"backend": "triton"},
    {"residual": torch.zeros(2, 5, 7, 9, device="meta")},
    {"depth": None},
    {"depth": torch.zeros(2, 2, 2, dtype=torch.uint8)},
    {"depth": torch.zeros(2, 3, 2, dtype=torch.uint8).transpose(1, 2)},
    {"depth": torch.zeros(2, 2, 3)},
    {"region": []},
    {"region": [0, 1, 2, 1, 1, 0, 0, 1, 1, 0, 0]},
    {"region": [3, 1, 2, 1, 1, 0, 0, 9, 1, 0, 0]},
]


@needs_cpu
@pytest.mark.parametrize("changes", CONV2D_OUT_ERRORS, ids=lambda changes: "-".join(changes))
def test_a_wrong_conv2d_out_is_told_so_after_a_right_one(changes: dict[str, Any]) -> None:
    arguments = conv2d_out_arguments("cpu")

    def call(changes: dict[str, Any]) -> None:
        torch.ops.adabm.conv2d_out(*order("conv2d_out", arguments | changes))

    assert_refused_after(lambda: call({}), lambda: call(changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"x": torch.zeros(5, 4, 6)},
        {"x": torch.zeros(2, 5, 4, 6, dtype=torch.half)},
        {"x": torch.zeros(2, 5, 4, 6, dtype=torch.int16)},
        {"grid": torch.zeros(2, 7)},
        {"bits": torch.zeros(2)},
        {"shift": torch.zeros(3)},
        {"start": 4},
        {"threads": -2},
        {"backend": "abacus"},
        {"y_q": torch.zeros(2, 4, 6, 4, dtype=torch.uint8)},
        {"y_q": torch.zeros(2, 4, 6, 8)},
        {"y_q": torch.zeros(2, 6, 4, 8, dtype=torch.uint8).transpose(1, 2)},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_wrong_quantize_out_is_told_so_after_a_right_one(changes: dict[str, Any]) -> None:
    y_q = torch.zeros(2, 4, 6, 8, dtype=torch.uint8)
    arguments = QUANTIZE | {"backend": BACKENDS[0], "start": 0, "y_q": y_q}

    def call(changes: dict[str, Any]) -> None:
        torch.ops.adabm.quantize_out(*order("quantize_out", arguments | changes))

    assert_refused_after(lambda: call({}), lambda: call(changes))


@pytest.mark.parametrize("changes, message", [row for row in CONV2D_ERRORS if "out" not in row[0]], ids=lambda row: "")
def test_a_wrong_conv2d_is_told_so_after_a_right_one(changes: dict[str, Any], message: str) -> None:
    arguments = settings_of(prepared(PROBLEM, BACKENDS[0]), out="float")

    def call(changes: dict[str, Any]) -> None:
        torch.ops.adabm.conv2d(*order("conv2d", arguments | changes))

    assert_refused_after(lambda: call({}), lambda: call(changes))


@backend
def test_codes_that_would_be_overwritten_are_noticed_by_their_address(backend: str) -> None:
    problem = ConvProblem("square", 5, 7, 8, 8, bits=(4, 2))
    arguments = settings_of(prepared(problem, backend), accumulate=False, **outputs(problem, False, True))

    def call(changes: dict[str, Any]) -> None:
        torch.ops.adabm.conv2d_out(*order("conv2d_out", arguments | changes))

    assert_refused_after(lambda: call({}), lambda: call({"y_q": arguments["x_q"]}))


@needs_cpu
@pytest.mark.parametrize("name", ["x_bits", "out_bits"])
def test_bits_are_looked_at_in_every_call(name: str) -> None:
    arguments = conv2d_out_arguments("cpu")
    torch.ops.adabm.conv2d_out(*order("conv2d_out", arguments))
    arguments[name][1] = 9  # the same tensor
    with pytest.raises(ValueError, match=rf"{name}\[1\] must be 2..8, got 9"):
        torch.ops.adabm.conv2d_out(*order("conv2d_out", arguments))


@backend
def test_other_strides_and_other_memory_of_a_known_size(backend: str) -> None:
    """Results are those of the arguments of each call, however the one before them lay in memory."""
    problem = ConvProblem("strides", 5, 7, 6, 9, bits=(4, 2), residual=True, activation="prelu")
    arguments = settings_of(prepared(problem, backend), accumulate=False)
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor) and name != "packed"}
    forms: list[dict[str, torch.Tensor]] = [
        {},
        {name: value.clone() for name, value in tensors.items()},
        {name: value.transpose(0, -1).contiguous().transpose(0, -1) for name, value in tensors.items() if name != "weight"},
        {"residual": tensors["residual"] + 1},
    ]
    want = None
    for form in (*forms[:3], *forms[:3]):
        made = outputs(problem, True, True)
        torch.ops.adabm.conv2d_out(*order("conv2d_out", arguments | form | made))
        want = want or made
        assert all(torch.equal(made[name], want[name]) for name in want)
    made = outputs(problem, True, True)
    torch.ops.adabm.conv2d_out(*order("conv2d_out", arguments | forms[3] | made))
    assert not torch.equal(made["y"], want["y"])


@backend
def test_what_is_made_ready_holds_no_tensor(backend: str) -> None:
    arguments = settings_of(prepared(PROBLEM, backend), accumulate=False, **outputs(PROBLEM, True, True))
    arguments |= place(Region(own=(1, 1), near=(0, 0), reach=1), 2, 5, 7)
    to = torch.zeros(2, 4, 6, 8, dtype=torch.uint8)
    quantization = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in QUANTIZE.items()}
    quantization |= {"backend": backend, "start": 0, "y_q": to}
    torch.ops.adabm.conv2d_out(*order("conv2d_out", arguments))
    torch.ops.adabm.conv2d(*order("conv2d", arguments | {"out": "both"}))
    torch.ops.adabm.quantize_out(*order("quantize_out", quantization))
    torch.ops.adabm.quantize(*order("quantize", quantization))
    assert len(ready.READY) == 4
    held = [weakref.ref(value) for value in (*arguments.values(), *quantization.values()) if isinstance(value, torch.Tensor)]
    del arguments, quantization, to
    gc.collect()
    assert len(held) > 15 and [found().shape for found in held if found() is not None] == []


@backend
def test_signatures_are_kept_up_to_a_number(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "MOST", 3)
    grid, bits = QUANTIZE["grid"], torch.tensor([4], dtype=torch.int32)
    for side in range(1, 9):
        x = torch.rand(1, 3, side, side)
        assert torch.equal(ops.quantize(x, grid, bits, backend=backend), ops.quantize(x, grid, bits, backend="reference"))
        assert 1 <= len(ready.READY) <= 3


@backend
def test_a_profiler_sees_the_operators(backend: str) -> None:
    instance, to = prepared(PROBLEM, backend), outputs(PROBLEM, True, False)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        instance.layer.into(instance.x_q, instance.bits, **to)
        instance.layer.into(instance.x_q, instance.bits, **to)
    assert {event.key: event.count for event in profile.key_averages()}["adabm::conv2d_out"] == 2
