"""Builds the CUDA kernels with g++ for the fiber runtime in cuda_host/, once by ninja in build/, and loads them with ctypes."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from adabm_kernels import native

ROOT = Path(__file__).resolve().parents[2]
CSRC, HOST = ROOT / "csrc", Path(__file__).with_name("cuda_host")
FLAGS = [
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
]
ORDERS = {"ascending": 0, "descending": 1, "random": 2}
LANDINGS = {"late": 0, "early": 1, "random": 2}


def _ninja_file(cxx: str) -> str:
    flags = " ".join([*FLAGS, f"-I{HOST}/include", f"-I{HOST}", f"-I{CSRC}", f"-I{CSRC}/include"])
    lines = [
        "rule compile",
        f"  command = {cxx} {flags} -MMD -MF $out.d -x c++ -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {cxx} -shared -Wl,--no-undefined -o $out $in",
    ]
    sources = [*CSRC.glob("common/*.cpp"), *CSRC.glob("cuda/*.c*"), *HOST.glob("*.c*")]
    sources = sorted(path for path in sources if path.suffix in (".cu", ".cpp"))
    objects = [f"{source.stem}.o" for source in sources]
    lines += [f"build {name}: compile {source}" for name, source in zip(objects, sources, strict=True)]
    return "\n".join([*lines, f"build libadabm_cuda_host.so: link {' '.join(objects)}", ""])


@functools.cache
def host_library() -> native.Library:
    """The library with every entry of the CUDA library and those of the runtime. Skips the test where it cannot be built."""
    cxx = shutil.which("g++") or shutil.which("clang++")
    if cxx is None or not CSRC.exists():
        pytest.skip("no C++ compiler, or no csrc beside the tests")
    ninja = pytest.importorskip("ninja")
    work = ROOT / "build" / "cuda_host"
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests may run in several processes
        (work / "build.ninja").write_text(_ninja_file(cxx))
        done = subprocess.run([str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(work)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return native.Library(work / "libadabm_cuda_host.so", native._ENTRIES["cuda"])


@functools.cache
def runtime() -> SimpleNamespace:
    """The functions of the runtime that only tests call (cuda_host/cuda_host.h, driver.cpp)."""
    dll = ctypes.CDLL(str(host_library().path))
    dll.adabm_host_error.restype = ctypes.c_char_p
    dll.adabm_host_last_stream.restype = ctypes.c_void_p
    dll.adabm_host_allow.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int]
    dll.adabm_host_owner.argtypes = [ctypes.c_void_p, ctypes.c_int]
    dll.adabm_host_broken.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    return SimpleNamespace(
        dll=dll,
        error=lambda: dll.adabm_host_error().decode(),
        owner=dll.adabm_host_owner,
        broken=dll.adabm_host_broken,
        current_device=dll.adabm_host_current_device,
        sticky_error=dll.adabm_host_sticky_error,
        last_stream=dll.adabm_host_last_stream,
        last_blocks=dll.adabm_host_last_blocks,
    )


@contextmanager
def policy(order: str = "ascending", landing: str = "late", seed: int = 0, detect: bool = True) -> Iterator[None]:
    """Inside the context the runtime runs kernels in this way."""
    set_policy = runtime().dll.adabm_host_policy
    set_policy(ORDERS[order], LANDINGS[landing], seed, detect)
    try:
        yield
    finally:
        set_policy(0, 0, 0, 1)


@contextmanager
def driver(**answers: int) -> Iterator[None]:
    """Inside the context the pretended driver gives these answers: devices, major, minor, shared_limit, multiprocessors, current,
    and the errors count_error (when asked for devices), image_error (when asked for a kernel) and launch_error."""
    dll = runtime().dll
    try:
        for name, value in answers.items():
            assert dll.adabm_host_answer(name.encode(), value) == 0, name
        yield
    finally:
        dll.adabm_host_reset()


class Captured(ctypes.Structure):
    """A launch: the mangled name of its kernel, and the numbers and arguments it was started with (driver.cpp)."""

    _fields_ = [
        ("function", ctypes.c_uint64),
        ("grid", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32),
        ("shared_bytes", ctypes.c_uint32),
        ("parameter_bytes", ctypes.c_uint32),
        ("room", ctypes.c_uint8 * 4096),
    ]

    @property
    def parameters(self) -> bytes:
        return bytes(self.room[: self.parameter_bytes])


@contextmanager
def captured_launches() -> Iterator[list[Captured]]:
    """Launches inside the context are not run. The list holds them once the context is left."""
    dll, launches = runtime().dll, []
    dll.adabm_host_captured.argtypes = [ctypes.c_uint64, ctypes.POINTER(Captured)]
    dll.adabm_host_captured.restype = ctypes.c_uint64
    dll.adabm_host_capture(1)
    try:
        yield launches
        for number in range(dll.adabm_host_captured(1 << 32, None)):
            launches.append(Captured())
            dll.adabm_host_captured(number, launches[-1])
    finally:
        dll.adabm_host_capture(0)


@contextmanager
def buffers(read: list, written: list) -> Iterator[None]:
    """Arrays or CPU tensors that are the only global memory which kernels may touch inside the context."""
    dll = runtime().dll
    dll.adabm_host_clear_buffers()
    try:
        for writable, group in ((0, read), (1, written)):
            for array in group:
                array = array if isinstance(array, np.ndarray) else array.numpy()
                dll.adabm_host_allow(array.ctypes.data, array.nbytes, writable)
        yield
    finally:
        dll.adabm_host_clear_buffers()
