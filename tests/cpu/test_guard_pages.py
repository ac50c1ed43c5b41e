"""Convolutions of any geometry read and write nothing beside their tensors, wherever those lie.

tests/fuzz/native/abi.cpp has the same for plain convolutions, quantisation, depths and interpolation.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from dataclasses import replace

import pytest
import torch
from drawn import drawn_geometries, drawn_problems
from guarded import PLACES, guarded, guarded_bytes, guarded_empty
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from needs import needs
from problems import GEOMETRIES, ConvProblem, instantiate, int16_features, runnable_isas

from adabm_kernels import native
from adabm_kernels.backends import cpu
from adabm_kernels.backends.call import Conv, Outputs
from adabm_kernels.quantize import padded_channels

pytestmark = [
    needs("cpu"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect and fork"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]


def status_in_a_child(run) -> int:
    """0, a positive number where it raised, or minus the number of the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            faulthandler.disable()  # the status says it all
            run()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def moved(conv: Conv, place: str) -> Conv:
    tensors = {name: guarded(t, place, 64 if name == "packed" else 0) for name, t in conv.tensors.items() if t is not None}
    return replace(conv, **tensors)


def outputs_of(p: ConvProblem) -> list[dict[str, torch.Tensor]]:
    """What a convolution can be asked for, by the names of Outputs."""
    images, rows, columns = p.out_size
    channels = p.outputs // p.shuffle**2
    shape = (images, rows, columns, channels)
    codes = torch.zeros(images, rows, columns, padded_channels(channels), dtype=torch.uint8)
    wanted = [{"y": torch.zeros(shape), "y_q": codes}, {"y_q": codes}, {"y": torch.zeros(shape, dtype=torch.int32)}]
    if p.shuffle == 1:
        wanted.append({"y": torch.zeros(shape, dtype=torch.int16), "y_q": codes})
    return wanted


def check(p: ConvProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every instruction set that runs here gives in guarded memory what it gives elsewhere."""
    plain = instantiate(p).conv("cpu")
    for place in PLACES:
        with monkeypatch.context() as patch:
            patch.setattr(cpu, "_aligned_bytes", lambda count, place=place: guarded_empty(count, 64, place))
            layer = instantiate(p).layer
            layer.weight = guarded(layer.weight, place)
            layer.set_backend("cpu", 1)
            assert torch.equal(layer.packed, plain.packed)
        for wanted in outputs_of(p):
            dtype = wanted["y"].dtype if "y" in wanted else None
            conv = int16_features(plain, 4) if dtype == torch.int16 else plain
            conv = replace(conv, residual=None) if dtype == torch.int32 else conv
            own = moved(conv, place)
            for isa in runnable_isas():
                with native.force_isa(isa):
                    expected = {name: t.clone() for name, t in wanted.items()}
                    cpu.conv2d_out(conv, Outputs(**expected))
                    got = {name: guarded(t, place) for name, t in wanted.items()}
                    cpu.conv2d_out(own, Outputs(**got))
                assert all(torch.equal(got[name], expected[name]) for name in wanted), (isa, place, list(wanted))


@pytest.mark.parametrize("p", GEOMETRIES, ids=str)
def test_named_geometries(p: ConvProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    assert status_in_a_child(lambda: check(p, monkeypatch)) == 0


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(p=st.one_of(drawn_geometries(), drawn_problems()))
def test_drawn_problems(p: ConvProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    assert status_in_a_child(lambda: check(p, monkeypatch)) == 0


@pytest.mark.parametrize("place, beside", [("start", -1), ("end", 0)])
def test_it_would_tell(place: str, beside: int) -> None:
    room, offset = guarded_bytes(12, 4, place)
    assert status_in_a_child(lambda: room[offset + (0 if beside else 11)]) == 0
    assert status_in_a_child(lambda: room[offset + (beside or 12)]) < 0
