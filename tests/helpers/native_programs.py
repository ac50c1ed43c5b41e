"""Builds the programs that fuzz the C interface, tests/fuzz/native/abi.cpp with one of three libraries.

`own` has the library that the package loads. `with_sanitizers` has all kernels with sanitizers of addresses and undefined
behaviour, of which those for AMX and AVX-VNNI are such that a processor without them runs them. `guided` is for libFuzzer, where
there is a clang that has it, which looks for inputs that reach code not reached before.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from emulated import KERNELS, amx_in_c, avxvnni_flags, choosing_emulated
from needs import processor_has

from adabm_kernels import native

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "tests" / "fuzz" / "native" / "abi.cpp"
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
INCLUDES = [f"-I{ROOT}/csrc", f"-I{ROOT}/csrc/include"]
MAIN = "-DADABM_FUZZ_MAIN"
SANITIZERS = ["-g1", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]


def find_clang() -> str | None:
    """A clang that has libFuzzer; None where there is none."""
    names = ["clang++", *(f"clang++-{version}" for version in range(22, 13, -1))]
    for name in filter(shutil.which, names):
        links = [name, "-fsanitize=fuzzer,address", "-x", "c++", "-", "-o", os.devnull]
        entry = 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }'
        if not subprocess.run(links, input=entry, capture_output=True, text=True).returncode:
            return name
    return None


def own(program: Path, source: Path = SOURCE) -> Path:
    """With the library that the package loads."""
    library = native.LIBRARIES / "libadabm_cpu.so"
    linked = [f"-L{library.parent}", f"-l:{library.name}", f"-Wl,-rpath,{library.parent}"]
    program.parent.mkdir(parents=True, exist_ok=True)
    # The headers of the fuzzer lie beside its source, of which a test may have a copy.
    flags = [*FLAGS, MAIN, *INCLUDES, f"-I{SOURCE.parent}"]
    subprocess.run(["g++", *flags, source, "-o", program, *linked], check=True)
    return program


def build_library(folder: Path, cxx: str, flags: list[str]) -> Path:
    """The CPU library with every instruction set that the compiler knows, in `folder`/lib; its objects are in `folder`/objects."""
    environment = os.environ | {"ADABM_CUDA": "off", "CXX": cxx, "CXXFLAGS": " ".join(flags)}
    where = ["--build-lib", str(folder / "lib"), "--build-temp", str(folder / "objects")]
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", *where], cwd=ROOT, env=environment, check=True)
    return folder / "lib" / "adabm_kernels" / "_lib" / "libadabm_cpu.so"


def with_sanitizers(folder: Path) -> Path:
    """With sanitizers in all kernels."""
    build_library(folder, f"g++ {' '.join(SANITIZERS)}", ["-O1"])
    compiled = [(SOURCE, [*FLAGS, MAIN]), *_emulated(folder / "emulated")]
    return _linked(folder, "g++", compiled, [])


def guided(folder: Path, clang: str) -> Path:
    """For libFuzzer, with sanitizers in all that instruction sets share, whose code also guides it."""
    build_library(folder, clang, ["-O1"])
    shared = [path for part in ("common", "cpu") for path in sorted((ROOT / "csrc" / part).glob("*.cpp"))]
    observed = ["-std=c++17", "-O1", "-ffp-contract=off", "-fsanitize=fuzzer-no-link"]
    compiled = [(path, observed) for path in (*shared, KERNELS / "choose.cpp")]
    return _linked(folder, clang, [(SOURCE, [*FLAGS, "-fsanitize=fuzzer"]), *compiled], ["-fsanitize=fuzzer"])


def _emulated(folder: Path) -> list[tuple[Path, list[str]]]:
    """Sources, each with the flags that compile it, of kernels that a processor without their instructions runs."""
    folder.mkdir(exist_ok=True)
    if platform.machine() != "x86_64":
        return []
    amx, amx_flags = amx_in_c(folder, "avx512vnni" if processor_has("avx512_vnni", "avx512vl") else "scalar")
    plain = ["-std=c++17", "-O1", "-ffp-contract=off"]
    vnni = (KERNELS / "avxvnni.cpp", plain + avxvnni_flags())
    return [(amx, plain + amx_flags), vnni, (choosing_emulated(folder), plain)]


def _linked(folder: Path, cxx: str, compiled: list[tuple[Path, list[str]]], options: list[str]) -> Path:
    """The program of the library's objects, of which those of these sources are compiled anew, with sanitizers."""
    newest = max(path.stat().st_mtime for root in (ROOT / "csrc", SOURCE.parent) for path in root.rglob("*") if path.is_file())
    objects = {path.stem: path for path in (folder / "objects").glob("*.o")}
    (folder / "own").mkdir(exist_ok=True)
    for source, flags in compiled:
        made = objects[source.stem] = folder / "own" / f"{source.stem}.o"
        if made.exists() and made.stat().st_mtime > newest:
            continue
        subprocess.run([cxx, *SANITIZERS, *flags, *INCLUDES, "-c", source, "-o", made], check=True)
    subprocess.run([cxx, *SANITIZERS, *options, *objects.values(), "-pthread", "-o", folder / "abi"], check=True)
    return folder / "abi"
