"""The Triton kernel for the depths of tiles: equal to the reference in Triton's interpreter, and on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from triton_releases import all_passed, run_kernel_tests

from adabm_kernels.backends import devices

pytestmark = pytest.mark.skipif(bool(devices.why_no_triton()), reason=devices.why_no_triton())
DEPTHS = Path(__file__).with_name("triton_depths.py")


def test_depths_equal_the_reference_in_the_interpreter() -> None:
    all_passed(run_kernel_tests(DEPTHS, "", interpret=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_depths_equal_the_reference_on_the_gpu() -> None:
    all_passed(run_kernel_tests(DEPTHS, "", interpret=False))


def test_a_pixel_is_one_load() -> None:
    """Of four bytes: each thread has BLOCK / 128 pixels, and loads each of them and its four neighbours."""
    triton_compiled = pytest.importorskip("triton_compiled")
    from adabm_kernels.backends.triton import depths

    kernel = triton_compiled.compile_kernel("tile_depths", 90)
    loads = {name: count for name, count in kernel.operations.items() if name.startswith("LDG")}
    assert loads == {"LDG.E": 5 * depths.BLOCK // (32 * kernel.warps)}
