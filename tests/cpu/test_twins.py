"""Instruction sets that this processor may lack, against their scalar twin: compiled for where they belong, run by what can."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from emulated import amx_in_c, avxvnni_flags, replaced
from needs import needs

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}/csrc", f"-I{ROOT}/csrc/include"]
NAMES = ("scalar", "neon", "avx2", "avxvnni", "avx512vnni", "amx")
GCC_HEADER_NOISE = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
# Its assembly as the intrinsics that SIMDe knows.
PORTABLE_PRODUCTS = {
    'asm("vpdpbusd %2,%1,%0" : "+v"(acc) : "v"(codes), "v"(weights));': "acc = _mm512_dpbusd_epi32(acc, codes, weights);",
    'asm("vpdpwssd %2,%1,%0" : "+v"(acc) : "v"(codes), "v"(weights));': "acc = _mm512_dpwssd_epi32(acc, codes, weights);",
    'asm volatile("vpdpbusd %1,%1,%0" : "+v"(c[v]) : "v"(ones));': "c[v] = _mm512_dpbusd_epi32(c[v], ones, ones);",
}


def compiler(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def build(cxx: str, name: str, flags: list[str], folder: Path, source_of_it: Path | None = None) -> Path:
    """The comparison as a program; the other instruction sets are compiled without their flags and so are empty."""
    objects, program = [], folder / "kernel_twins"
    sources = {other: ROOT / "csrc" / "cpu" / "isa" / f"{other}.cpp" for other in NAMES}
    if source_of_it is not None:
        sources[name] = source_of_it
    for source in [*sources.values(), ROOT / "tests/cpu/native/kernel_twins.cpp"]:
        extra = [*flags, *GCC_HEADER_NOISE] if source.stem == name else []
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


@needs("avx2")
def test_avxvnni_equals_its_scalar_twin(tmp_path):
    """In AVX512-VNNI's encoding where the processor has that, else with its product made of AVX2's."""
    run(str(build(compiler("g++"), "avxvnni", avxvnni_flags(), tmp_path)), "avxvnni")


@needs("avx2")
def test_avx2_equals_its_scalar_twin(tmp_path):
    run(str(build(compiler("g++"), "avx2", ["-mavx2", "-mfma"], tmp_path)), "avx2")


@needs("simde")
def test_avx512vnni_equals_its_scalar_twin_in_portable_code(tmp_path):
    """On any x86 processor: SIMDe computes what each of AVX-512's intrinsics is defined to."""
    if platform.machine() != "x86_64":
        pytest.skip("the kernels multiply and add in one rounding with x86's FMA")
    source = tmp_path / "avx512vnni.cpp"
    source.write_text(replaced((ROOT / "csrc/cpu/isa/avx512vnni.cpp").read_text(), PORTABLE_PRODUCTS))
    wanted = [f"-D__AVX512{part}__" for part in ("BW", "VL", "DQ", "VNNI")]
    flags = ["-O0", "-mfma", "-w", f"-I{ROOT}/tests/cpu/native/on_simde", *wanted]
    run(str(build(compiler("g++"), "avx512vnni", flags, tmp_path, source)), "avx512vnni")


def test_amx_equals_its_scalar_twin_in_portable_code(tmp_path):
    """With the matrix unit in plain C++, and the scalar kernels for those of AVX512-VNNI."""
    source, flags = amx_in_c(tmp_path)
    run(str(build(compiler("g++"), "amx", flags, tmp_path, source)), "amx")


def test_a_kernel_that_is_not_there_is_named(tmp_path):
    program = build(compiler("g++"), "none", [], tmp_path)
    result = subprocess.run([str(program), "neon" if platform.machine() != "aarch64" else "avx2"], capture_output=True, text=True)
    assert result.returncode == 2 and "no kernels named" in result.stdout
