"""Builds csrc/ into the shared libraries in adabm_kernels/_lib with ninja. Needs no torch.

CXX, CXXFLAGS and NVCC name the compilers and extra flags. ADABM_CUDA=auto|on|off: whether to build the CUDA library ("auto": if
nvcc is found and succeeds). Without a C++ compiler, or elsewhere than on Linux, the package installs all the same and runs on the
reference backend.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
COMMON = ["common/status.cpp", "common/rules.cpp"]
_CONV2D = (
    "spans",
    "bands",
    "convolution",
    "conv2d",
    "conv2d_direct",
    "conv2d_general",
    "conv2d_depthwise",
    "conv2d_tiled",
    "conv2d_kn2row",
)
_CPU = ("isa/choose", "thread_pool", "pack", "general", "sums16", *_CONV2D, "quantize", "depths", "interpolate", "peak")
CPU_SOURCES = [*COMMON, *(f"cpu/{name}.cpp" for name in _CPU)]
# One instruction set per file; nothing else is compiled with these flags.
# A file whose flags the compiler or the processor family does not know is built without: it then provides nothing.
ISA_SOURCES = {
    "cpu/isa/scalar.cpp": [],
    "cpu/isa/neon.cpp": ["-march=armv8.2-a+dotprod"],
    "cpu/isa/avx2.cpp": ["-mavx2", "-mfma"],
    "cpu/isa/avxvnni.cpp": ["-mavx2", "-mfma", "-mavxvnni"],
    "cpu/isa/amx.cpp": ["-mamx-tile", "-mamx-int8"],
    "cpu/isa/avx512vnni.cpp": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"],
}
_CUDA = ("pack.cpp", "tensor_map.cpp", "device.cu", "quantize.cu", "depths.cu", "image_bits.cu", "conv2d.cu")
CUDA_SOURCES = [*COMMON, *(f"cuda/{name}" for name in _CUDA)]
# Machine code for these, and PTX of the last for newer ones.
CUDA_ARCHITECTURES = ("80", "86", "89", "90")
# Files with instructions of sm_90a, which no other architecture has and no PTX carries on.
SM90A_SOURCES = ["cuda/conv2d_sm90.cu", "cuda/resblock_sm90.cu"]
NVCC_FLAGS = [
    "-std=c++17",
    "-O2",
    "--fmad=false",  # as -ffp-contract=off
    "--threads=2",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-Xptxas=--warn-on-spills,--warning-as-error",
]
NVCC_TARGETS = [
    *(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in CUDA_ARCHITECTURES),
    f"-gencode=arch=compute_{CUDA_ARCHITECTURES[-1]},code=compute_{CUDA_ARCHITECTURES[-1]}",
]
SM90A_TARGET = "-gencode=arch=compute_90a,code=sm_90a"
# Without contraction every backend rounds where the written formula rounds.
# Tables are filled by name, as C++20 has it and every compiler here knows already; clang warns of that.
CXX_FLAGS = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-c++20-designator"]
# What makes a fault in memory harder to use, each where the compiler and the processor family know it: checked copies, canaries in
# frames that hold arrays, relocations that are read-only once the library is loaded, and a stack that runs no code. A system may
# have set _FORTIFY_SOURCE already. Sanitizers check more than it does, and cannot see through its copies.
STACK_PROTECTOR = ["-fstack-protector-strong"]
FORTIFY_SOURCE = [["-U_FORTIFY_SOURCE", f"-D_FORTIFY_SOURCE={level}"] for level in (3, 2)]  # the C library warns of 3 before GCC 12
HARDENED_LINK = ["-z,relro", "-z,now", "-z,noexecstack"]
GCC_HEADER_NOISE = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # GCC 12 warns inside its own intrinsics


def find_compiler() -> str | None:
    named = os.environ.get("CXX")
    if named:
        if not shutil.which(shlex.split(named)[0]):
            raise SystemExit(f"setup.py: CXX must name a C++ compiler, got {named!r}")
        return named
    return next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)


def knows(cxx: str, flags: list[str]) -> bool:
    """Whether the compiler takes these flags for the processors it compiles for."""
    command = [*shlex.split(cxx), *flags, "-Werror", "-x", "c++", "-fsyntax-only", os.devnull]
    return not flags or subprocess.run(command, capture_output=True).returncode == 0


def hardened(cxx: str) -> list[str]:
    """The flags of these that compiler and C library take without a warning, for host code."""
    protector = STACK_PROTECTOR if knows(cxx, STACK_PROTECTOR) else []
    levels = [] if "-fsanitize" in cxx else FORTIFY_SOURCE
    return protector + next((flags for flags in levels if knows(cxx, ["-O2", *flags, "-include", "cstdlib"])), [])


def find_ninja() -> str:
    try:
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        return shutil.which("ninja") or "ninja"


def unserialised(command: str) -> str:
    """The shell command that compiles, and fails where ptxas says that it lets products of a warpgroup wait for one another.

    That costs them most of their speed, and ptxas calls it information: no flag makes an error of it. In ninja's spelling, where $$
    is a dollar, with nothing but what the shell itself has.
    """
    said = 'case "$$line" in *wgmma*serialized*) status=1;; esac'
    read = f"while IFS= read -r line; do printf '%s\\n' \"$$line\"; {said}; done < $out.log"
    return f"status=0; {command} > $out.log 2>&1 || status=1; {read}; exit $$status"


def ninja_file(cxx: str, nvcc: str | None, out: Path) -> str:
    """The build as text: object files beside the file itself, libraries in `out`."""
    hard = hardened(cxx)
    flags = " ".join([*CXX_FLAGS, *hard, *shlex.split(os.environ.get("CXXFLAGS", "")), f"-I{CSRC}", f"-I{CSRC}/include"])
    gcc = "clang" not in subprocess.run([*shlex.split(cxx), "--version"], capture_output=True, text=True).stdout
    lines = [
        f"cxx = {cxx}",
        f"flags = {flags}",
        "rule compile",
        "  command = $cxx $flags $isa -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = $cxx -shared -pthread -Wl,--no-undefined {' '.join(f'-Wl,{option}' for option in HARDENED_LINK)} -o $out $in",
    ]
    objects = []
    for source in [*CPU_SOURCES, *ISA_SOURCES]:
        objects.append(f"{Path(source).stem}.o")
        isa = ISA_SOURCES.get(source, [])
        isa = [*(isa if knows(cxx, isa) else []), *(GCC_HEADER_NOISE if gcc else [])]
        lines += [f"build {objects[-1]}: compile {CSRC / source}", f"  isa = {' '.join(isa)}"]
    lines.append(f"build {out / 'libadabm_cpu.so'}: link {' '.join(objects)}")
    if nvcc:
        host = f"-Xcompiler={','.join(hard)}" if hard else ""
        includes = f"-I{CSRC} -I{CSRC}/include -MMD -MF $out.d"
        compile_cuda = f"{nvcc} {' '.join(NVCC_FLAGS)} {host} $targets {includes} -x cu -c $in -o $out"
        lines += [
            "rule nvcc",
            f"  command = {unserialised(compile_cuda)}",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule nvlink",
            f"  command = {nvcc} -shared -Xlinker={','.join(HARDENED_LINK)} -o $out $in",
        ]
        objects = []
        for source in [*CUDA_SOURCES, *SM90A_SOURCES]:
            objects.append(f"cuda_{Path(source).stem}.o")
            targets = SM90A_TARGET if source in SM90A_SOURCES else " ".join(NVCC_TARGETS)
            lines += [f"build {objects[-1]}: nvcc {CSRC / source}", f"  targets = {targets}"]
        lines.append(f"build {out / 'libadabm_cuda.so'}: nvlink {' '.join(objects)}")
    return "\n".join(lines) + "\n"


class BuildNative(build_ext):
    """Replaces setuptools' compilation: the libraries are loaded with ctypes and are no Python extensions."""

    def finalize_options(self) -> None:
        self.build_temp = self.build_temp or str(ROOT / "build" / "native")  # builds with other flags are told another
        super().finalize_options()

    def _lib(self) -> Path:
        inplace = self.inplace or getattr(self, "editable_mode", False)
        return (ROOT if inplace else Path(self.build_lib).resolve()) / "adabm_kernels" / "_lib"

    def run(self) -> None:
        wanted = os.environ.get("ADABM_CUDA", "auto")
        if wanted not in ("auto", "on", "off"):
            raise SystemExit(f"setup.py: ADABM_CUDA must be auto, on or off, got {wanted!r}")
        lib = self._lib()
        lib.mkdir(parents=True, exist_ok=True)
        for stale in lib.glob("*.so"):
            stale.unlink()
        if not sys.platform.startswith("linux"):
            if wanted == "on":
                raise SystemExit(f"setup.py: ADABM_CUDA=on needs Linux, and this is {sys.platform}")
            print(
                f"adabm_kernels: the native libraries are made for Linux, and this is {sys.platform}: installing without them "
                "(reference backend only)",
                file=sys.stderr,
            )
            return
        cxx = find_compiler()
        if cxx is None:
            if wanted == "on":
                raise SystemExit("setup.py: ADABM_CUDA=on needs a C++ compiler, and none was found (c++, g++, clang++ or CXX)")
            print(
                "adabm_kernels: no C++ compiler found: installing without native libraries (reference backend only)",
                file=sys.stderr,
            )
            return
        nvcc = None if wanted == "off" else shutil.which(os.environ.get("NVCC", "nvcc"))
        if wanted == "on" and nvcc is None:
            raise SystemExit("setup.py: ADABM_CUDA=on needs nvcc, and none was found (PATH or NVCC)")
        work = Path(self.build_temp).resolve()
        work.mkdir(parents=True, exist_ok=True)
        (work / "build.ninja").write_text(ninja_file(cxx, nvcc, lib))
        self._ninja(work, lib / "libadabm_cpu.so")
        if nvcc:
            try:
                self._ninja(work, lib / "libadabm_cuda.so")
            except subprocess.CalledProcessError:
                if wanted == "on":
                    raise
                print(
                    "adabm_kernels: nvcc failed: installing without the CUDA library (ADABM_CUDA=on makes this an error)",
                    file=sys.stderr,
                )

    def _ninja(self, work: Path, target: Path) -> None:
        subprocess.run([find_ninja(), "-C", str(work), str(target)], check=True)

    def get_outputs(self) -> list[str]:
        return [str(path) for path in self._lib().glob("*.so")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return [str(path.relative_to(ROOT)) for path in CSRC.rglob("*") if path.is_file()]


class Wheel(bdist_wheel):
    """One wheel for every Python of a platform: the libraries are loaded with ctypes and know nothing of the interpreter."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("adabm_kernels._lib.libadabm", sources=[])],  # its presence makes setuptools run build_ext
    cmdclass={"bdist_wheel": Wheel, "build_ext": BuildNative},
)
