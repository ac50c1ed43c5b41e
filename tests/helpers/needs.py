"""The one table of everything the tests need beside the package and the Python packages of requirements-test.txt.

Where something is missing, the tests that need it are skipped with the reason from this table (`needs`). A run that is to prove
everything sets CI=true, as `.ci/run` does: tests/package/test_needs.py then fails for each thing that is missing. Things that a
machine for continuous integration cannot have are in the table too, with the reason.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from shared import SHARED
from triton_releases import BESIDE, is_installed

from adabm_kernels import native
from adabm_kernels.backends import devices


@dataclass(frozen=True)
class Need:
    """One thing that tests need.

    what: its name, as in "missing: WHAT". there: tells whether the machine has it. proves: what is not tested without it. source:
    where it comes from. never: the reason why a machine for continuous integration does not have it, "" where it must have it.
    """

    what: str
    there: Callable[[], bool]
    proves: str
    source: str
    never: str = ""


def _packages(*names: str) -> Callable[[], bool]:
    return lambda: all(find_spec(name) is not None for name in names)


def _program(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name) is not None


def _has_modules(*names: str) -> Callable[[], bool]:
    return lambda: all(importlib.util.find_spec(name) is not None for name in names)


def processor_has(*flags: str) -> bool:
    """Tells whether Linux lists these abilities of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and set(cpuinfo.read_text().split()).issuperset(flags)


def _runs_arm() -> bool:
    emulated = _program("aarch64-linux-gnu-g++")() and _program("qemu-aarch64-static")()
    return platform.machine() == "aarch64" or emulated


def _cuda_tools() -> bool:
    from sass_statistics import find_tools  # a part of benchmarks/gpu, which a source distribution may lack

    return find_tools() is not None


def _has_card(kind: str) -> bool:
    import torch

    return torch.cuda.is_available() and getattr(torch.version, kind) is not None


def _built(*isas: str) -> bool:
    return not native.why_missing("cpu") and all(native.isa_built_and_present(isa)[0] for isa in isas)


def _ray() -> bool:
    try:
        return importlib.util.find_spec("ray.data") is not None and importlib.util.find_spec("pyarrow") is not None
    except ModuleNotFoundError:
        return False


SIMDE = Path("/usr/include/simde/x86/avx512.h")
WHEELS = Path(sys.prefix) / "wheels"  # what a build of the package in isolation takes, as `make test` lays it there
BUILD, APT = "pip install -e .", "apt-get install"

NEEDS = {
    # The libraries, and the instruction sets of the CPU library. AVX2 runs on the processor. AVX-VNNI is made of AVX2 where the
    # processor lacks it, AMX has a matrix unit in C++, and AVX512-VNNI and NEON are emulated.
    "cpu": Need("the CPU library", partial(_built, "scalar"), "the CPU backend", f"{BUILD}, with a C++17 compiler"),
    "cuda": Need("the CUDA library", (native.LIBRARIES / "libadabm_cuda.so").exists, "its machine code", f"{BUILD}, with nvcc"),
    "avx2": Need("AVX2", lambda: processor_has("avx2", "fma") and _built("avx2"), "AVX2 and AVX-VNNI", "the processor"),
    "simde": Need("SIMDe", SIMDE.exists, "AVX512-VNNI on any processor", f"{APT} libsimde-dev"),
    "arm": Need("a compiler and an emulator for ARM", _runs_arm, "NEON", f"{APT} g++-aarch64-linux-gnu qemu-user-static"),
    # Tools
    "g++": Need("g++", _program("g++"), "kernels on other processors, GPU kernels on the CPU, builds", f"{APT} g++"),
    "readelf": Need("readelf", _program("readelf"), "that the libraries are hardened", f"{APT} binutils"),
    "make": Need("make", _program("make"), "the Makefile", f"{APT} make"),
    "wheels": Need("wheels to build by", (WHEELS / ".downloaded").exists, "a build in isolation", "make test"),
    "nvcc": Need("nvcc", _program(os.environ.get("NVCC", "nvcc")), "the CUDA library, and what it spends", "NVIDIA's CUDA toolkit"),
    "cuobjdump": Need("cuobjdump and nvdisasm", _cuda_tools, "what GPU kernels are made of", "NVIDIA's CUDA toolkit, or Triton"),
    "chromium": Need("chromium", _program("chromium"), "the report page in a browser", f"{APT} chromium"),
    "ffmpeg": Need("ffmpeg", _program("ffmpeg"), "frames as another program writes and reads them", f"{APT} ffmpeg"),
    "vapoursynth": Need(
        "VapourSynth with BestSource",
        _packages("vapoursynth"),
        "the filter for VapourSynth in VapourSynth itself",
        "pip install -r requirements-test.txt",
        never="" if sys.version_info >= (3, 12) else "its wheels are for Python 3.12 and newer",
    ),
    "jupyter": Need(
        "nbclient and ipykernel", _packages("nbclient", "ipykernel"), "the notebook", "pip install -r requirements-test.txt"
    ),
    "ray": Need("Ray with Ray Data", _ray, "upscaling on a cluster", "pip install -r requirements-test.txt"),
    "serve": Need(
        "the packages of the extra [serve]",
        _has_modules("fastapi", "fastapi_offline", "httpx2", "prometheus_client", "uvicorn"),
        "the service over HTTP",
        "pip install -r requirements-test.txt",
    ),
    "schemathesis": Need(
        "schemathesis",
        _has_modules("schemathesis"),
        "requests that its description allows, and others",
        "pip install -r requirements-test.txt",
    ),
    # Triton
    "triton": Need("Triton", lambda: not devices.why_no_triton(), "the Triton backend", "pip install -r requirements-test.txt"),
    **{
        f"triton-{version}": Need(f"Triton {version}", partial(is_installed, version), "the kernels built by it", "make test")
        for version in BESIDE
    },
    "onnxruntime": Need(
        "ONNX Runtime",
        lambda: importlib.util.find_spec("onnxruntime") is not None,
        "that exported files run, and compute what the models compute",
        "pip install -r requirements-test.txt",
    ),
    # Things that a machine for continuous integration does not have
    "spandrel": Need(
        "spandrel",
        lambda: importlib.util.find_spec("spandrel") is not None,
        "networks that spandrel itself makes",
        "pip install spandrel",
        never="it brings torchvision and, for that, another release of torch; a stand-in has its place in the other tests",
    ),
    "shared": Need(
        "../shared",
        SHARED.is_dir,
        "published weights and images, outputs of the method's original code",
        "a folder beside the checkout",
        never="it is no part of the repository, and lies beside the checkout only on some machines",
    ),
    "clang++": Need(
        "clang++-14", _program("clang++-14"), "a second compiler", f"{APT} clang-14", never="half a gigabyte for one build"
    ),
    "nvidia": Need(
        "a card of NVIDIA",
        partial(_has_card, "cuda"),
        "tests/gpu/test_gpu.py, and the Triton kernels on a card",
        "a machine that has one",
        never="it has no card; benchmarks/gpu/on_card.py is for the minutes in which one is at hand",
    ),
    "amd": Need(
        "a card of AMD", partial(_has_card, "hip"), "the Triton kernels on it", "a machine that has one", never="it has no card"
    ),
    "valgrind": Need(
        "valgrind",
        _program("valgrind"),
        "the library as it is shipped, byte by byte",
        f"{APT} valgrind",
        never="only `make sanitize` uses it, for minutes",
    ),
    "windows": Need(
        "Windows",
        lambda: platform.system() == "Windows",
        "paths, pipes and builds there",
        "a machine that runs it",
        never="it runs Linux, for which the package is",
    ),
}


def why_missing(name: str) -> str:
    """A sentence that says what is missing and where it comes from; "" where the machine has it."""
    need = NEEDS[name]
    return "" if need.there() else f"missing: {need.what} ({need.source}); not tested without: {need.proves}"


def needs(name: str) -> pytest.MarkDecorator:
    """Skips a test where NEEDS[name] is missing."""
    reason = why_missing(name)
    return pytest.mark.skipif(bool(reason), reason=reason)
