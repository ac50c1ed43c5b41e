"""What the tests need beside the package and the Python packages of requirements-test.txt: the one table of it.

Where something is missing, the tests that need it are skipped for the reason that stands here (`needs`). A run that is to prove
everything sets CI=true, as `.ci/run` does: there tests/package/test_needs.py fails for each thing that is missing. What such a
machine cannot have is in the table too, with the reason.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from sass_statistics import find_tools
from shared import SHARED
from triton_releases import BESIDE, OWN, is_installed

from adabm_kernels import native
from adabm_kernels.backends import devices


@dataclass(frozen=True)
class Need:
    """what: in words, as in "WHAT is not there". proves: what stays untested without it. source: where it comes from.
    never: why a machine for continuous integration does not have it, "" where it must."""

    what: str
    there: Callable[[], bool]
    proves: str
    source: str
    never: str = ""


def _program(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name) is not None


def processor_has(*flags: str) -> bool:
    """Whether Linux lists these of the processor's abilities."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and set(cpuinfo.read_text().split()).issuperset(flags)


def _on_x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64")


def _built(*isas: str) -> bool:
    return not native.why_missing("cpu") and all(native.isa_built_and_present(isa)[0] for isa in isas)


SIMDE = Path("/usr/include/simde/x86/avx512.h")
PACKAGE = "the package's build, `pip install -e .`"
APT = "apt-get, see .ci/run"

NEEDS = {
    # The libraries, and the instruction sets of the CPU's: each runs on the processor, or what is written for it does elsewhere.
    "cpu": Need("the CPU library", lambda: _built("scalar"), "the CPU backend", f"{PACKAGE}, with a C++17 compiler"),
    "cuda": Need("the CUDA library", lambda: (native.LIBRARIES / "libadabm_cuda.so").exists(), "its machine code", f"{PACKAGE}, with nvcc"),
    "avx2": Need("AVX2 with FMA", lambda: processor_has("avx2", "fma") and _built("avx2"), "AVX2, and AVX-VNNI made of it", "the processor"),
    "avx512vnni": Need("AVX512-VNNI or SIMDe", lambda: processor_has("avx512_vnni") or SIMDE.exists(), "AVX512-VNNI", f"{APT} libsimde-dev"),
    "amx": Need("AMX or a C++ compiler", lambda: processor_has("amx_int8") or _program("g++")(), "AMX", "the processor, or g++"),
    "neon": Need(
        "an ARM processor or compiler and emulator",
        lambda: platform.machine() == "aarch64" or (_program("aarch64-linux-gnu-g++")() and _program("qemu-aarch64-static")()),
        "NEON",
        f"{APT} g++-aarch64-linux-gnu qemu-user-static",
    ),
    # Tools
    "g++": Need("g++", _program("g++"), "the twins of kernels, the host runtime of the CUDA kernels, builds", f"{APT} g++"),
    "make": Need("make", _program("make"), "the Makefile", f"{APT} make"),
    "nvcc": Need("nvcc", _program(os.environ.get("NVCC", "nvcc")), "the CUDA library's build and counted instructions", "NVIDIA's toolkit"),
    "cuobjdump": Need("cuobjdump with nvdisasm", lambda: find_tools() is not None, "machine code", "NVIDIA's toolkit or Triton"),
    "chromium": Need("chromium", _program("chromium"), "the report page", f"{APT} chromium"),
    "ffmpeg": Need("ffmpeg", _program("ffmpeg"), "frames as other programs write and read them", f"{APT} ffmpeg"),
    # Triton
    "triton": Need("Triton", lambda: not devices.why_no_triton(), "the Triton backend", "requirements-test.txt"),
    **{
        f"triton-{version}": Need(f"Triton {version}", lambda v=version: is_installed(v), "the kernels with it", "`make test`")
        for version in BESIDE
    },
    # What a machine for continuous integration goes without.
    "shared": Need("../shared", SHARED.is_dir, "published weights and images, outputs of the method's own code", "a folder beside the "
                   "checkout", never="it is not part of the repository, and lies beside the checkout on some machines only"),
    "clang++": Need("clang++", _program("clang++"), "a build by another compiler", f"{APT} clang", never="500 MB for one build; "
                    "whoever changes csrc/cpu runs it"),
    "nvidia": Need("a card of NVIDIA", lambda: _cards("cuda"), "tests/gpu/test_gpu.py", "a machine with one", never="no such machine; "
                   "benchmarks/gpu/on_card.py is for one that is at hand"),
    "amd": Need("a card of AMD", lambda: _cards("hip"), "the Triton kernels on it", "a machine with one", never="no such machine"),
    "windows": Need("Windows", lambda: platform.system() == "Windows", "paths, pipes and builds there", "a machine with it",
                    never="no such machine; the package is for Linux, and says so in pyproject.toml"),
}  # fmt: skip


def _cards(kind: str) -> bool:
    import torch

    return torch.cuda.is_available() and getattr(torch.version, kind) is not None


def why_missing(name: str) -> str:
    """A sentence that says what is missing and where it comes from, "" where it is there."""
    need = NEEDS[name]
    return "" if need.there() else f"{need.what} is not there ({need.source}), which the tests of this need: {need.proves}"


def needs(name: str) -> pytest.MarkDecorator:
    """Skips a test where NEEDS[name] is missing."""
    reason = why_missing(name)
    return pytest.mark.skipif(bool(reason), reason=reason)
