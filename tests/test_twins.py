"""Instruction sets that this processor may lack, against their scalar twin: compiled for where they belong, run by what can."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}/csrc", f"-I{ROOT}/csrc/include"]
NAMES = ("scalar", "neon", "avx2", "avxvnni", "avx512vnni")
GCC_HEADER_NOISE = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
# AVX-VNNI's products have the same meaning as those that AVX512-VNNI has on 256 bits, which this encodes them as.
VNNI_ON_256_BITS = [
    "-mavx2",
    "-mfma",
    "-mavx512vl",
    "-mavx512vnni",
    "-D__AVXVNNI__",
    "-D_mm256_dpbusd_avx_epi32=_mm256_dpbusd_epi32",
]


def compiler(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def build(cxx: str, name: str, flags: list[str], folder: Path) -> Path:
    """The comparison as a program; the other instruction sets are compiled without their flags and so are empty."""
    objects, program = [], folder / "kernel_twins"
    for source in [*(ROOT / "csrc" / "cpu" / f"tile_{other}.cpp" for other in NAMES), ROOT / "tests/native/kernel_twins.cpp"]:
        extra = [*flags, *GCC_HEADER_NOISE] if source.stem == f"tile_{name}" else []
        objects.append(str(folder / f"{source.stem}.o"))
        subprocess.run([cxx, *FLAGS, *extra, "-c", str(source), "-o", objects[-1]], check=True)
    subprocess.run([cxx, "-static", *objects, "-o", str(program)], check=True)
    return program


def run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{command[-1]}: " in result.stdout and " 0 failures" in result.stdout


def test_neon_equals_its_scalar_twin(tmp_path):
    if platform.machine() == "aarch64":
        emulator, cxx = [], compiler("g++")
    else:
        emulator, cxx = ["qemu-aarch64-static"], compiler("aarch64-linux-gnu-g++")
    program = build(cxx, "neon", ["-march=armv8.2-a+dotprod"], tmp_path)
    if emulator and not shutil.which(emulator[0]):
        pytest.skip(f"compiled, but {emulator[0]} is not installed to run it")
    run(*emulator, str(program), "neon")


def test_avxvnni_equals_its_scalar_twin(tmp_path):
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if not ("avx512_vnni" in flags and "avx512vl" in flags):
        pytest.skip("this processor lacks AVX512-VNNI, in whose encoding the kernels are run")
    run(str(build(compiler("g++"), "avxvnni", VNNI_ON_256_BITS, tmp_path)), "avxvnni")


def test_avx2_equals_its_scalar_twin(tmp_path):
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "avx2" not in flags or "fma" not in flags:
        pytest.skip("this processor lacks AVX2")
    run(str(build(compiler("g++"), "avx2", ["-mavx2", "-mfma"], tmp_path)), "avx2")


def test_a_kernel_that_is_not_there_is_named(tmp_path):
    program = build(compiler("g++"), "none", [], tmp_path)
    result = subprocess.run([str(program), "neon" if platform.machine() != "aarch64" else "avx2"], capture_output=True, text=True)
    assert result.returncode == 2 and "no kernels named" in result.stdout
