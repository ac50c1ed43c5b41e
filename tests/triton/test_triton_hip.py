"""Cards of AMD: the choice on a pretended one, and the Triton kernels built for each architecture, their machine code read."""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton_releases import all_passed, run_kernel_tests

from adabm_kernels import registry
from adabm_kernels.backends import amd, cards, devices
from adabm_kernels.registry import Choice, Problem, choose

pytestmark = pytest.mark.skipif(bool(devices.why_no_triton()), reason=devices.why_no_triton())
PORTABLE = Path(__file__).with_name("triton_portable.py")


# ---- the choice


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A pretended card of AMD under a torch for ROCm: change its facts in the dictionary."""
    facts: dict[str, Any] = {"arch": "gfx942:sramecc+:xnack-", "available": True, "fails": None, "probed": []}

    def probe(device: torch.device) -> None:
        facts["probed"].append(device)
        if facts["fails"] is not None:
            raise facts["fails"]

    def init() -> None:
        raise facts["fails"]

    monkeypatch.delenv("ADABM_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.import_module("adabm_kernels.backends.triton"), "probe", probe)
    monkeypatch.setattr(torch.version, "hip", "6.4.43483")
    monkeypatch.setattr(torch.version, "cuda", None)
    pretended = {
        "is_available": lambda: facts["available"],
        "init": init,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda index: "AMD Card",
        "get_device_capability": lambda index: (9, 0),  # a gfx90a's, as torch gives it
        "get_device_properties": lambda index: SimpleNamespace(gcnArchName=facts["arch"]),
    }
    for name, value in pretended.items():
        monkeypatch.setattr(torch.cuda, name, value)
    asked = (devices._why_not_on, cards._amd_architecture)
    for function in asked:
        function.cache_clear()
    yield facts
    for function in asked:
        function.cache_clear()


NOT_FOR_AMD = r"torch \S+ is for AMD cards \(ROCm 6\.4\.43483\), the CUDA library is for NVIDIA's alone"


def test_triton_computes_on_a_card_of_amd_and_the_cuda_library_says_why_not(card: dict[str, Any]) -> None:
    choice = choose(Problem("cuda"))
    assert choice == Choice("triton", {"cuda": choice.rejected["cuda"]}) and re.fullmatch(NOT_FOR_AMD, choice.rejected["cuda"])
    assert card["probed"] == [torch.device("cuda", 0)]
    assert choose(Problem("cuda:0"), "triton") == Choice("triton") == choose(Problem("cpu"), "triton")
    with pytest.raises(RuntimeError, match=f"backend 'cuda' cannot run: {NOT_FOR_AMD}"):
        choose(Problem("cuda"), "cuda")
    assert "cuda" in choose(Problem("cpu")).rejected and choose(Problem("cpu")).backend != "triton"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"arch": "gfx906:sramecc-"}, rf"AMD Card is a gfx906, the kernels are built for {', '.join(amd.ARCHITECTURES)}"),
        (
            {"arch": "gfx90a", "fails": RuntimeError("no code object\nat line 3")},
            r"triton \S+ cannot run on AMD Card \(gfx90a\): no code object",
        ),
        ({"available": False, "fails": RuntimeError("No HIP GPUs are available")}, "no usable GPU: No HIP GPUs are available"),
    ],
    ids=["unknown", "fails", "absent"],
)
def test_what_keeps_triton_from_running_is_told(card: dict[str, Any], facts: dict[str, Any], reason: str) -> None:
    card |= facts
    with pytest.raises(RuntimeError, match=f"backend 'triton' cannot run: {reason}$"):
        choose(Problem("cuda"), "triton")
    assert re.fullmatch(reason, registry.backends()["triton"].reason)


def test_info_says_what_the_card_is_and_what_runs(card: dict[str, Any], adabm: Callable) -> None:
    status, out, _ = adabm("info")
    assert status == 0 and "AMD Card (gfx942)" in out
    assert re.search(rf"^ +cuda +no +{NOT_FOR_AMD}$", out, re.MULTILINE) and re.search(r"^ +triton +yes", out, re.MULTILINE)
    card |= {"available": False, "fails": RuntimeError("No HIP GPUs are available")}
    assert re.search(r"GPU +none usable: torch \S+ with ROCm 6\.4\.43483 finds no card or driver", adabm("info")[1])


def test_a_card_of_amd_has_entries_of_its_own(card: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gives a gfx90a the compute capability of a Hopper, 9.0: what was measured there says nothing here."""
    from adabm_kernels.backends.triton import launch, tuning

    card["arch"] = "gfx90a:sramecc+:xnack-"
    found, shape = launch.capability(torch.device("cuda", 0)), (64, 3, 64, 512 * 512)
    assert found == "gfx90a" and tuning.shape_class(found, *shape) == "gfx90a-c64-k3-o64-p65536"
    nvidia, own = tuning.Config(32, 16, 2, 2), tuning.Config(64, 16, 2, 1)
    entries = {tuning.shape_class(90, *shape): {"config": vars(nvidia)}}
    monkeypatch.setattr(tuning, "measured", lambda: entries)
    assert tuning.conv2d_config(90, *shape) == nvidia != tuning.conv2d_config(found, *shape)
    entries[tuning.shape_class(found, *shape)] = {"config": vars(own)}
    assert tuning.conv2d_config(found, *shape) == own


def test_a_grid_of_more_threads_than_a_card_of_amd_counts_is_named(card: dict[str, Any]) -> None:
    from adabm_kernels.backends.triton import launch

    place, most = torch.device("cuda", 0), 2**32 // (4 * 64)
    launch.check_programs("conv2d", place, most - 1, 4)
    with pytest.raises(ValueError, match=f"conv2d: an image must take at most {2**32 - 1} threads on gfx942, got {2**32}"):
        launch.check_programs("conv2d", place, most, 4)
    launch.check_programs("conv2d", torch.device("cpu"), most, 4)
    card["arch"] = "gfx1100"
    cards._amd_architecture.cache_clear()
    launch.check_programs("conv2d", place, most, 4)  # waves of 32


# ---- the form without assembly


def test_the_form_without_assembly_equals_the_reference_in_the_interpreter() -> None:
    all_passed(run_kernel_tests(PORTABLE, "not bytes", interpret=True))


# ---- built ahead of time


triton_amd = pytest.importorskip("triton_amd")
EVERY = [*itertools.product(triton_amd.FORMS, amd.ARCHITECTURES)]
# Each way of multiplying, the largest forms of each, and each kernel without products: the others are variations on them.
CHOSEN = {
    *(("residual_int16", arch) for arch in amd.ARCHITECTURES),
    ("tail", "gfx942"), ("box", "gfx1100"), ("depths_inside", "gfx90a"), ("fusion", "gfx1201"), ("wide", "gfx950"),
    ("quantize_int16", "gfx942"), ("measure", "gfx1100"), ("decide", "gfx1201"), ("tile_depths", "gfx942"),
}  # fmt: skip
BUILDS = [pytest.param(b, marks=[] if b in CHOSEN else pytest.mark.slow, id="-".join(b)) for b in EVERY]


@pytest.fixture(scope="module")
def builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Future]]:
    """The builds that this run asks for, under way in two processes, without the cache of an earlier run."""
    items = [item for item in request.session.items if getattr(item, "originalname", "") == "test_machine_code_of_amd"]
    asked = [item.callspec.params["build"] for item in items]
    os.environ["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        yield {build: pool.submit(triton_amd.compile_kernel, *build) for build in asked}
    del os.environ["TRITON_CACHE_DIR"]


@pytest.mark.parametrize("build", BUILDS)
def test_machine_code_of_amd(build: tuple[str, str], builds: dict[tuple[str, str], Future]) -> None:
    name, arch = build
    if triton_amd.refused(arch):
        pytest.skip(triton_amd.refused(arch))
    kernel = builds[build].result()
    assert kernel.spilled == kernel.scratch == 0
    assert kernel.shared <= amd.ARCHITECTURES[arch].shared
    assert kernel.occupancy * triton_amd.SIMDS >= kernel.warps  # a workgroup fits
    assert not kernel.wrong_settings() and not kernel.wrong_products()
    assert bool(kernel.products()) == (name in triton_amd.triton_compiled.CONV2D)
    assert kernel.fused == kernel.asked  # and none that a compiler made of a product and a sum


def test_a_multiply_add_that_the_compiler_makes_would_be_seen() -> None:
    """The image measure adds products up, and asks for none fused."""
    plain, fused = (triton_amd.compile_kernel("measure", "gfx1100", enable_fp_fusion=fusion) for fusion in (False, True))
    assert plain.fused == plain.asked == 0 < fused.fused


SEEN = [  # an instruction, and whether it multiplies int8 as the kernels mean it
    ("gfx942", "v_mfma_i32_32x32x16_i8 v[2:17], v[38:39], v[30:31], v[2:17]", True),
    ("gfx942", "v_mfma_f32_32x32x16_bf8_bf8 v[2:17], v[38:39], v[30:31], v[2:17]", False),
    ("gfx90a", "v_mfma_i32_32x32x8i8 a[0:15], v56, v60, 0", True),
    ("gfx90a", "v_dot4_i32_i8 v1, v2, v3, v1", False),
    ("gfx1100", "v_wmma_i32_16x16x16_iu8 v[2:9], v[10:13], v[14:17], v[2:9] neg_lo:[1,1,0]", True),
    ("gfx1100", "v_wmma_i32_16x16x16_iu8 v[2:9], v[10:13], v[14:17], v[2:9]", False),
    ("gfx1201", "v_wmma_i32_16x16x16_iu8 v[2:9], v[10:11], v[14:15], v[2:9] neg_lo:[0,1,0]", False),
    ("gfx1201", "v_wmma_i32_16x16x16_iu8 v[2:9], v[10:11], v[14:15], v[2:9] neg_lo:[1,1,0] clamp", False),
    ("gfx1030", "v_dot4c_i32_i8 v1, v2, v3", True),
    ("gfx1030", "v_dot4_i32_i8 v1, v2, v3, v1", True),
    ("gfx1030", "v_dot4_i32_i8 v1, v2, v3, v1 clamp", False),
    ("gfx1030", "v_dot4_u32_u8 v1, v2, v3, v1", False),
]


@pytest.mark.parametrize(("arch", "line", "right"), SEEN)
def test_products_of_another_kind_would_be_seen(arch: str, line: str, right: bool) -> None:
    text = f"\t{line}\n\t.amdhsa_float_round_mode_32 1\n    .vgpr_count: 8\n    .vgpr_spill_count: 0\n"
    text += "    .sgpr_spill_count: 0\n    .private_segment_fixed_size: 0\n"
    kernel = triton_amd.read(text, arch, SimpleNamespace(shared=0, num_warps=4), 0)
    assert kernel.products() and (kernel.wrong_products() == []) == right
    assert kernel.wrong_settings()[0] == "float_round_mode_32 1"
