"""The table of backends: what each module offers is what the protocols ask for, and what the operators say of an ability that a
backend lacks."""

from __future__ import annotations

import functools
import inspect
import re
from dataclasses import replace

import pytest
import torch

from adabm_kernels import ops
from adabm_kernels.backends import BACKENDS, CHOICES, TABLE, devices, kernels
from adabm_kernels.backends.call import ABILITIES, Kernels
from adabm_kernels.quantize import Geometry, act_grid
from adabm_kernels.regions import NUMBERS


def signatures(protocol: type) -> dict[str, inspect.Signature]:
    """Of the functions of a protocol, as functions of a module have them."""
    found = {}
    for name, function in vars(protocol).items():
        if inspect.isfunction(function) and not name.startswith("_"):
            whole = inspect.signature(function)
            found[name] = whole.replace(parameters=list(whole.parameters.values())[1:])
    return found


@pytest.mark.parametrize("backend", TABLE)
def test_a_backend_offers_what_the_protocols_ask_for(backend: str) -> None:
    if backend == "triton" and devices.why_no_triton():
        pytest.skip(devices.why_no_triton())
    module = kernels(backend)
    abilities = {ability: protocol for ability, protocol in ABILITIES.items() if getattr(TABLE[backend], ability)}
    for protocol in (Kernels, *abilities.values()):
        asked = signatures(protocol)
        assert asked
        for name, signature in asked.items():
            assert inspect.signature(getattr(module, name)) == signature, f"{backend}.{name}"
    for ability in ABILITIES.keys() - abilities.keys():
        assert not [name for name in signatures(ABILITIES[ability]) if name in vars(module)], f"{backend} has {ability}"


def test_users_are_offered_every_backend() -> None:
    assert CHOICES == ("auto", "cpu", "reference", "triton", "cuda") and set(CHOICES) == {"auto", *BACKENDS}


CODES, BITS = torch.zeros(1, 4, 5, 4, dtype=torch.uint8), torch.tensor([4], dtype=torch.int32)
LAYER = torch.zeros(4, 1, 1, 4, dtype=torch.int8), torch.zeros(0, dtype=torch.uint8), torch.ones(7, 4), torch.zeros(1, 1, 4)
IMAGE = torch.zeros(1, 4, 5, 4, dtype=torch.uint8)
PLACE = {"depth": torch.zeros(1, 1, 1, dtype=torch.uint8), "region": [8, 0, 0, *[0] * (NUMBERS - 5), 1, 0]}
CALLS = {
    "packed_codes": ("conv2d: packed_codes needs", lambda: ops.conv2d(CODES, BITS, *LAYER, packed_codes=True, backend="reference")),
    "int16_features": (
        "quantize: features of int16 need",
        lambda: ops.quantize(torch.zeros(1, 4, 4, 5, dtype=torch.int16), act_grid(0, 1), BITS, backend="reference"),
    ),
    "pixels": ("conv2d_pixels: pixels need", lambda: ops.conv2d_pixels(CODES, BITS, *LAYER, backend="reference")),
    "depths": (
        "conv2d_out: depth needs",
        lambda: ops.conv2d_out(CODES, BITS, *LAYER, y=torch.zeros(1, 4, 5, 4), backend="reference", **PLACE),
    ),
}


STRIDED = {"stride": 2, "padding": 0}


@pytest.mark.parametrize("backend", TABLE)
def test_backends_say_why_they_cannot_compute_a_geometry(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        ops.why_not_geometry(backend, Geometry(), (3, 3)) == ops.why_not_geometry(backend, Geometry(padding=(1, 1)), (3, 3)) == ""
    )
    asked = Geometry((2, 1), (1, 3), 2, (1, 0)), (3, 3)
    why = rf"stride 2x1, dilation 1x3, 2 groups needs a backend of \(.*\), got '{backend}'"
    if TABLE[backend].any_geometry:
        assert ops.why_not_geometry(backend, *asked) == ""
        monkeypatch.setitem(TABLE, backend, replace(TABLE[backend], any_geometry=False))
    assert re.fullmatch(why, ops.why_not_geometry(backend, *asked))
    with pytest.raises(ValueError, match=f"pack_weights: {why}"):
        ops.pack_weights(backend, torch.zeros(4, 3, 3, 4, dtype=torch.int8), (0,) * 7, False, 1, asked[0])


def test_a_geometry_that_a_backend_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    call = functools.partial(ops.conv2d, CODES, BITS, *LAYER, backend="reference", **STRIDED)
    ops.library.READY.clear()
    assert call()[0].shape == (1, 2, 3, 4)
    ops.library.READY.clear()
    monkeypatch.setitem(TABLE, "reference", replace(TABLE["reference"], any_geometry=False))
    with pytest.raises(RuntimeError, match=r"conv2d: stride 2x2 needs a backend of \(.*\), got 'reference'"):
        call()


@pytest.mark.parametrize("ability", CALLS)
def test_an_ability_that_a_backend_lacks_is_refused(ability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message, call = CALLS[ability]
    ops.library.READY.clear()
    call()
    ops.library.READY.clear()
    monkeypatch.setitem(TABLE, "reference", replace(TABLE["reference"], **{ability: False}))
    with pytest.raises(RuntimeError, match=rf"{message} a backend of \(.*\), got 'reference'"):
        call()


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_codes_that_overlap_their_features_are_refused(many: bool) -> None:
    memory = torch.zeros(4 * 4 * 20 + 80, dtype=torch.uint8)
    x = memory[:320].view(torch.float32).view(1, 4, 4, 5)
    for start, overlap in ((320, 0), (319, 1), (0, 80)):
        y_q = memory[start : start + 80].view(1, 4, 5, 4)

        def call(y_q: torch.Tensor = y_q) -> None:
            if many:
                ops.quantize_many_out(x, [act_grid(0, 1)], [BITS], [y_q], backend="reference")
            else:
                ops.quantize_out(x, act_grid(0, 1), BITS, y_q, backend="reference")

        if not overlap:
            call()
            continue
        with pytest.raises(RuntimeError, match=f"y_q must share no memory with x, got an overlap of {overlap} bytes"):
            call()
