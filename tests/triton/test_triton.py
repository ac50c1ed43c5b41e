"""Triton kernels: equal to the reference in Triton's interpreter (and on a GPU), and built for every architecture, by every release
of Triton that is at hand."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
import triton_releases
from triton_releases import BESIDE, NEWEST, OTHERS, OWN, all_passed, folder_of, run_kernel_tests

from adabm_kernels import machine
from adabm_kernels.backends import devices

pytestmark = pytest.mark.skipif(bool(devices.why_no_triton()), reason=devices.why_no_triton())
KERNELS = Path(__file__).with_name("triton_kernels.py")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_a_release_is_installed_once(tmp_path: Path) -> None:
    """And not again when the package's requirements change."""
    installed = tmp_path / f"triton-{NEWEST}" / ".installed"
    installed.parent.mkdir()
    installed.touch()
    os.utime(installed, (0, 0))
    (tmp_path / ".requirements").touch()
    question = ["make", "--question", f"VENV={tmp_path}", str(installed)]  # status 1 where something is to be done
    assert subprocess.run(question, cwd=ROOT, capture_output=True).returncode == 0
    installed.unlink()
    assert subprocess.run(question, cwd=ROOT, capture_output=True).returncode == 1


def test_where_a_release_is_missing_it_says_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_releases, "ROOT", tmp_path)
    for version, command in ((NEWEST, "make test"), ("0.0", "make test-all")):
        with pytest.raises(pytest.skip.Exception, match=f"no .venv/triton-{version}, which `{command}` installs"):
            folder_of(version)


def beside(versions: list[str], often: tuple[str, ...] = ()) -> list:
    """Releases as parameters: those not run by `make test` are marked slow."""
    return [pytest.param(version, marks=[] if version in often else pytest.mark.slow) for version in versions]


NETWORKS = "network or networks or tail or thresholds"


@pytest.mark.parametrize("version", beside([OWN, *OTHERS], (OWN,)))
def test_kernels_equal_the_reference_in_the_interpreter(version: str) -> None:
    all_passed(*(run_kernel_tests(KERNELS, words, interpret=True, version=version) for words in (NETWORKS, f"not ({NETWORKS})")))


@pytest.mark.parametrize("version", BESIDE)
def test_some_kernels_equal_the_reference_in_the_interpreter(version: str) -> None:
    words = "every_width or one_output or between_two or layer_bits"
    all_passed(run_kernel_tests(KERNELS, words, interpret=True, version=version))


def test_kernels_that_are_kept_are_launched_as_triton_launches_them() -> None:
    all_passed(run_kernel_tests(KERNELS.with_name("triton_launch.py"), "", interpret=False))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_equal_the_reference_on_the_gpu() -> None:
    all_passed(run_kernel_tests(KERNELS, "", interpret=False))


def test_the_version_is_that_of_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its distribution is named, and without importing it."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("'''Triton'''\n__version__ = '3.4.9'\nraise ImportError\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    assert machine.describe_versions()["triton"] == "3.4.9"
    assert devices.why_no_triton() == "needs triton 3.5 or newer, found 3.4.9"
    (tmp_path / "triton" / "__init__.py").unlink()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert devices.why_no_triton() == "triton is not installed"  # a folder alone is none


# ---- built ahead of time


triton_compiled = pytest.importorskip("triton_compiled")
FORMS = (*triton_compiled.CONV2D, *triton_compiled.OTHERS)
# Bytes of local memory that a thread may take by other releases than that of the environment, whose compilers take other registers:
# what a tile stores before its products and loads behind them.
OTHER_STACK = 64
Build = tuple[str, str, int]  # release of Triton, form, compute capability
# What `make test` builds: with the release of the environment all forms for these architectures, for the others few and those that
# may put words away; with the releases beside it few for three of them.
ARCHITECTURES = (80, 90, 100, 120)
FEW = ("body", "residual_int16", "box", "tail", "depths_residual")


def _often(version: str, form: str, capability: int) -> bool:
    if version != OWN:
        return version in BESIDE and form in FEW and capability in (80, 90, 120)
    return capability in ARCHITECTURES or form in FEW or (form, capability) in triton_compiled.STACK


def _builds() -> Iterator:
    for version in (OWN, *OTHERS):
        for form in FORMS:
            for capability in triton_compiled.MULTIPROCESSORS:
                if form in triton_compiled.ONLY and (version != OWN or capability not in triton_compiled.ONLY[form]):
                    continue
                build = version, form, capability
                marks = [] if _often(*build) else [pytest.mark.slow]
                yield pytest.param(version, build, marks=marks, id=f"{form}-sm{capability}-triton{version}")


@pytest.fixture(scope="module")
def builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Build, Future]]:
    """All builds by one release of Triton that were asked for under way in two processes, without the cache of an earlier run."""
    folder, cache = folder_of(request.param), tmp_path_factory.mktemp("triton")
    calls = [item.callspec.params for item in request.session.items if getattr(item, "originalname", "") == "test_machine_code"]
    wanted = [call["build"] for call in calls if call["builds"] == request.param]
    setting = str(folder) if folder else None, str(cache)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), triton_compiled.use_triton, setting) as pool:
        yield {build: pool.submit(triton_compiled.compile_kernel, *build[1:]) for build in wanted}


@pytest.mark.parametrize(("builds", "build"), [*_builds()], indirect=["builds"], scope="module")
def test_machine_code(build: Build, builds: dict[Build, Future]) -> None:
    version, name, capability = build
    if version.startswith("3.5.") and capability == 103:
        pytest.skip("the ptxas of Triton 3.5 knows no sm_103")
    kernel = builds[build].result()
    assert kernel.triton == version
    stack = triton_compiled.STACK.get((name, capability), 0) if version == OWN else OTHER_STACK
    local = sum(count for operation, count in kernel.operations.items() if operation.split(".")[0] in ("STL", "LDL"))
    assert kernel.stack <= stack and 4 * local <= 3 * stack  # each word of it is stored in one place and loaded in one or two
    if version == OWN:
        assert kernel.blocks >= triton_compiled.blocks_wanted(name, capability)
    if name in triton_compiled.CONV2D:
        products = [operation for operation in kernel.operations if operation.startswith(("IMMA", "IGMMA", "UTCIMMA"))]
        assert products and all(".S8.S8" in operation for operation in products if operation.startswith("I"))
        assert not [operation for operation in kernel.operations if operation.startswith(("HMMA", "HGMMA", "UTCHMMA", "IDP"))]
        # None that a compiler made of a product and a sum. In a loop over tiles it may put those of two branches into one.
        assert kernel.fused in (kernel.wanted, 2 * kernel.wanted // 3 if name in triton_compiled.ONLY else kernel.wanted)
        assert kernel.operations["FFMA"] + 2 * kernel.operations["FFMA2"] == kernel.fused
        if name == "body":
            check_body(kernel)


BARRIERS = {90: 42}  # of a tile of codes stored in 8 bits; elsewhere MOST_BARRIERS
MOST_BARRIERS = 50


def check_body(kernel: triton_compiled.Compiled) -> None:
    """Of 64 to 64 channels: vectors are as wide as they can be, and codes go through shared memory once."""
    codes, weights, rounds = 128 * 64, 64 * 64, 9
    assert kernel.tiles[8].barriers <= BARRIERS.get(kernel.capability, MOST_BARRIERS)
    for kind in ("LDGSTS", "STG"):
        moves = [operation for operation in kernel.operations if operation.startswith(kind)]
        assert moves and all(operation.endswith((".128", ".64")) for operation in moves)
    # Codes and weights of a round are written once and read at least once.
    assert kernel.tiles[8].shared_bytes >= 2 * rounds * (codes + weights)


MACHINE = """
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/               @P1 BRA `(.L_x_2) ;
.L_x_1:
        /*0020*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0030*/                   LDSM.16.M88.4 R8, [R2] ;
        /*0040*/                   LOP3.LUT R8, R8, 0x80808080, RZ, 0x3c, !PT ;
        /*0050*/                   IMMA.16832.S8.S8.SAT R4, R8.ROW, R12.COL, R4 ;
        /*0060*/              @!P0 CALL.REL.NOINC `(.L_x_3) ;
        /*0070*/                   BRA `(.L_x_1) ;
.L_x_2:
        /*0080*/                   LOP3.LUT R8, R8, 0x3030303, RZ, 0xc0, !PT ;
        /*0090*/                   IMMA.16832.S8.S8.SAT R4, R8.ROW, R12.COL, R4 ;
        /*00a0*/                   IMMA.16832.S8.S8.SAT R4, R8.ROW, R12.COL, R4 ;
.L_x_3:
        /*00b0*/                   BSSY B0, `(.L_x_5) ;
        /*00c0*/               @P2 BRA `(.L_x_4) ;
        /*00d0*/                   STS.128 [R0], R4 ;
        /*00e0*/                   BSYNC B0 ;
.L_x_4:
        /*00f0*/                   STS.U8 [R0], R4 ;
        /*0100*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0110*/                   BSYNC B0 ;
.L_x_5:
        /*0120*/                   EXIT ;
.L_x_6:
        /*0130*/                   BRA `(.L_x_6);
"""


def test_a_tile_is_the_dearest_path() -> None:
    """A loop as often as the products of a tile need it, one of two storages of codes, and the dearer side of a branch."""
    products = 16 * 8 * 32
    tiles = triton_compiled.tiles_of(MACHINE, 4, {8: 5 * products, 2: 2 * products})
    assert tiles[8] == triton_compiled.Tile(5 + 1, 4 * (5 * 512 + 512), 2 + 5 * 6 + 2 + 3 + 1)
    assert tiles[2] == triton_compiled.Tile(1, 4 * 512, 2 + 3 + 2 + 3 + 1)
    with pytest.raises(ValueError, match="7 multiply-accumulates of codes of 8 bits"):
        triton_compiled.tiles_of(MACHINE, 4, {8: 7, 2: 2 * products})
