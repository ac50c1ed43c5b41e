"""The choice of a backend: it gives its reasons, and an explicit request never falls back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from problems import ConvProblem, instantiate, runnable_isas

import adabm_kernels
from adabm_kernels import native, registry
from adabm_kernels.backends import devices
from adabm_kernels.config import ConvertConfig
from adabm_kernels.networks.edsr import EDSR, EDSRSpec
from adabm_kernels.nn import ConvertedEDSR
from adabm_kernels.registry import BACKENDS, BackendStatus, Choice, Problem, choose

NOT_BUILT = "library not built: no C++ compiler at install"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither the caller's variables, nor a card of this machine, nor a warning given before."""
    monkeypatch.setattr(devices, "why_no_gpu", lambda: "no GPU in these tests")
    monkeypatch.delenv("ADABM_BACKEND", raising=False)
    monkeypatch.delenv("ADABM_ISA", raising=False)
    registry._warn_slow.cache_clear()
    yield
    registry._warn_slow.cache_clear()


@pytest.fixture
def nothing_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As after an installation without a compiler."""
    monkeypatch.setattr(native, "LIBRARIES", tmp_path)
    native._load.cache_clear()
    yield
    native._load.cache_clear()


@pytest.fixture
def cpu_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the CPU library is there and no other."""
    monkeypatch.setattr(native, "why_missing", lambda name: "" if name == "cpu" else "library not built: no nvcc")


def converted() -> ConvertedEDSR:
    torch.manual_seed(0)
    images = [torch.rand(2, 3, 16, 18) * 255]
    config = ConvertConfig(quantize="body", adaptive=False, bit_aware_clipping=False)
    return adabm_kernels.convert_model(EDSR(EDSRSpec(2, 1, 4)), images, config)


def test_the_choice_names_what_was_passed_over(cpu_built: None) -> None:
    choice = choose(Problem("cpu"))
    assert choice.backend == "cpu"
    assert list(choice.rejected) == ["cuda", "triton"]
    assert choice.rejected["cuda"] == "library not built: no nvcc"
    assert choice.rejected["triton"]
    assert choice == Choice("cpu", dict(choice.rejected))


def test_tensors_on_a_card_are_not_for_the_cpu_library(cpu_built: None) -> None:
    choice = choose(Problem("cuda"))
    assert choice.backend == "reference"
    assert choice.rejected["cpu"] == "the tensors are on cuda"


def test_without_libraries_the_reference_runs_and_says_so_once(nothing_built: None) -> None:
    with pytest.warns(RuntimeWarning, match=f"reference backend, which is slow: cpu: {NOT_BUILT[:20]}") as caught:
        choice = choose(Problem("cpu"))
        again = choose(Problem("cpu"))
    assert choice == again
    assert choice.backend == "reference" and choice.rejected["cpu"] == NOT_BUILT
    assert len(caught) == 1


def test_an_explicit_reference_does_not_warn(nothing_built: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(Problem("cpu"), "reference") == Choice("reference", {})
        assert choose(Problem("cuda")).backend == "reference"


def test_backends_lists_every_backend_with_its_reason(nothing_built: None) -> None:
    found = registry.backends()
    assert tuple(found) == BACKENDS
    assert found["cpu"] == BackendStatus("cpu", False, NOT_BUILT)
    assert found["reference"] == BackendStatus("reference", True, "")
    for status in found.values():
        assert status.available == (status.reason == "")


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_an_explicit_request_never_falls_back(nothing_built: None, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(RuntimeError, match=f"backend '{name}' cannot run: library not built"):
        choose(Problem("cpu"), name)
    monkeypatch.setenv("ADABM_BACKEND", name)
    with pytest.raises(RuntimeError, match=f"ADABM_BACKEND '{name}' cannot run: library not built"):
        choose(Problem("cpu"))
    with pytest.raises(RuntimeError, match=f"ADABM_BACKEND '{name}' cannot run"):
        converted()


def test_the_variable_counts_only_where_the_caller_leaves_it_open(cpu_built: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADABM_BACKEND", "reference")
    assert choose(Problem("cpu")) == Choice("reference")
    assert choose(Problem("cpu"), "cpu") == Choice("cpu")
    for unset in ("", "auto"):
        monkeypatch.setenv("ADABM_BACKEND", unset)
        assert choose(Problem("cpu")).backend == "cpu"


def test_unknown_names_are_told_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    known = "auto, cuda, triton, cpu, reference"
    with pytest.raises(ValueError, match=f"backend must be one of {known}, got 'tpu'"):
        choose(Problem("cpu"), "tpu")
    monkeypatch.setenv("ADABM_BACKEND", "CPU")
    with pytest.raises(ValueError, match=f"ADABM_BACKEND must be one of {known}, got 'CPU'"):
        choose(Problem("cpu"))


def test_a_model_keeps_to_its_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADABM_BACKEND", "reference")
    model = converted()
    assert model.choice == Choice("reference")
    assert all(conv.backend == "reference" for conv in model.convs())
    assert model.backend_summary() == "reference"
    with pytest.raises(ValueError, match="backend must be one of"):
        model.set_backend("tpu")
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run: "):
        model.set_backend("triton")
    assert model.choice == Choice("reference")  # a refused request changes nothing
    assert all(conv.backend == "reference" for conv in model.convs())


# ---- ADABM_ISA


needs_cpu = pytest.mark.skipif(bool(native.why_missing("cpu")), reason="the CPU library was not built")


@needs_cpu
@pytest.mark.parametrize("name", runnable_isas())
def test_the_instruction_set_can_be_forced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = instantiate(ConvProblem("forced", 4, 5, 8, 16, bits=(4,)))
    want = instance.run("reference", "acc")[0]
    monkeypatch.setenv("ADABM_ISA", name)
    assert native.isa() == native.ISAS[name]
    assert native.isa_chosen() == name
    assert native.describe()["isa_chosen"] == name
    instance.layer.set_backend("cpu", 1)
    assert torch.equal(instance.layer(instance.x_q, instance.bits, out="acc")[0], want)


@needs_cpu
def test_auto_takes_the_fastest_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.isa_chosen() == runnable_isas()[-1]
    monkeypatch.setenv("ADABM_ISA", "auto")
    assert native.isa_chosen() == runnable_isas()[-1]
    with native.force_isa("scalar"):
        assert native.isa_chosen() == "scalar"
    assert native.isa_chosen() == runnable_isas()[-1]


@needs_cpu
def test_an_unknown_instruction_set_is_an_error_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = instantiate(ConvProblem("forced", 4, 5, 8, 16, bits=(4,)))
    instance.layer.set_backend("cpu", 1)
    monkeypatch.setenv("ADABM_ISA", "sse9")
    message = "ADABM_ISA must be one of auto, scalar, neon, avx2, avxvnni, avx512vnni.*, got 'sse9'"
    with pytest.raises(ValueError, match=message):
        native.isa_chosen()
    with pytest.raises(ValueError, match=message):
        instance.layer(instance.x_q, instance.bits, out="acc")
    assert "sse9" in native.describe()["isa_chosen"]


@needs_cpu
@pytest.mark.parametrize(
    "state, reason", [((False, True), "not built into the library"), ((True, False), "not present on this processor")]
)
def test_an_instruction_set_that_cannot_run_is_an_error(
    state: tuple[bool, bool], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {"scalar": (True, True), "avx2": state}
    monkeypatch.setattr(native, "isa_built_and_present", lambda name: states.get(name, (False, False)))
    monkeypatch.setenv("ADABM_ISA", "avx2")
    with pytest.raises(RuntimeError, match=f"cpu: instruction set avx2 is {reason}"):
        native.isa_chosen()
    monkeypatch.delenv("ADABM_ISA")
    assert native.isa_chosen() == "scalar"
