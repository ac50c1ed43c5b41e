"""Triton kernels: equal to the reference in Triton's interpreter (and on a GPU), and built for every architecture."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from adabm_kernels.backends import devices

pytestmark = pytest.mark.skipif(bool(devices.why_no_triton()), reason=devices.why_no_triton())
KERNELS = Path(__file__).with_name("triton_kernels.py")


def run_kernel_tests(keywords: str, interpret: bool, file: Path = KERNELS) -> subprocess.Popen:
    """A file of tests of kernels, or what `keywords` select of it, in a process of its own."""
    environment = os.environ | {"TRITON_INTERPRET": "1" if interpret else "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", str(file), "-k", keywords]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def all_passed(*processes: subprocess.Popen) -> None:
    outputs = [process.communicate()[0] for process in processes]
    failed = [output[-6000:] for process, output in zip(processes, outputs, strict=True) if process.returncode]
    assert not failed, "\n".join(failed)


def test_kernels_equal_the_reference_in_the_interpreter() -> None:
    networks = "network or networks or tail or thresholds"
    all_passed(run_kernel_tests(networks, interpret=True), run_kernel_tests(f"not ({networks})", interpret=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_equal_the_reference_on_the_gpu() -> None:
    all_passed(run_kernel_tests("", interpret=False))


# ---- built ahead of time


triton_compiled = pytest.importorskip("triton_compiled")
FORMS = (*triton_compiled.CONV2D, *triton_compiled.OTHERS)
BUILDS = [(name, card) for name in FORMS for card in triton_compiled.ONLY.get(name, triton_compiled.SHARED)]


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory):
    """All builds under way in two processes, without the cache of an earlier run."""
    os.environ["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        yield {build: pool.submit(triton_compiled.compile_kernel, *build) for build in BUILDS}
    del os.environ["TRITON_CACHE_DIR"]


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: f"{build[0]}-sm{build[1]}")
def test_machine_code(build: tuple[str, int], builds: dict[tuple[str, int], Future]) -> None:
    name, capability = build
    kernel = builds[build].result()
    local = sum(count for operation, count in kernel.operations.items() if operation.split(".")[0] in ("STL", "LDL"))
    stack = triton_compiled.STACK.get(name, 0)
    assert kernel.stack <= stack and 4 * local <= 2 * stack  # each word of it is stored and loaded in one place
    assert kernel.shared <= triton_compiled.SHARED[capability]
    assert kernel.registers <= 255 and kernel.registers * kernel.warps * 32 <= 65536
    if name in triton_compiled.CONV2D:
        products = [operation for operation in kernel.operations if operation.startswith(("IMMA", "IGMMA", "UTCIMMA"))]
        assert products and all(".S8.S8" in operation for operation in products if operation.startswith("I"))
        assert not [operation for operation in kernel.operations if operation.startswith(("HMMA", "HGMMA", "UTCHMMA", "IDP"))]
        # None that a compiler made of a product and a sum. Loops may be there again for each way to store the codes that leave.
        assert kernel.fused in (kernel.wanted, 3 * kernel.wanted if name.startswith("kept") else kernel.wanted)
        assert kernel.operations["FFMA"] + 2 * kernel.operations["FFMA2"] == kernel.fused
