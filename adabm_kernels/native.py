"""Loads the C libraries in `_lib/` with ctypes, checks their ABI, and turns the status of a call into an exception. Importing this
module loads none of them."""

from __future__ import annotations

import ctypes
import functools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, Structure, c_char, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

ABI_VERSION = 12
LIBRARIES = Path(__file__).parent / "_lib"
ISAS = {"auto": 0, "scalar": 1, "neon": 2, "avx2": 3, "avxvnni": 4, "avx512vnni": 5, "amx": 6}
INVALID_ARGUMENT, UNSUPPORTED = 1, 2  # ADABM_* values of adabm_status
PACKED_X, PACKED_Y = 1, 2
MAX_THREADS = 256  # the most threads of the CPU library
MAX_TARGETS = 16  # the most targets of one quantisation
MEASURE_BYTES = 512  # the bytes of workspace that the image measure needs for each image
KERNELS = {"resident": 0, "staged": 1, "resblock": 2}  # kernels of compute capability 9.0 that have configurations to choose among


class _Struct(Structure):
    """A struct of csrc/include/adabm/adabm.h, where its fields are described. struct_bytes is filled in."""

    def __init__(self, **values: Any):
        super().__init__(struct_bytes=ctypes.sizeof(type(self)), **values)


class Geometry(Structure):
    """adabm_geometry, in the order of quantize.Geometry.numbers."""

    _fields_ = [
        *((name, c_int32) for name in ("stride_h", "stride_w", "dilation_h", "dilation_w", "groups")),
        *((name, c_int32) for name in ("pad_top", "pad_left", "pad_bottom", "pad_right")),
    ]


class Weights(_Struct):
    """adabm_weights."""

    _fields_ = [
        ("struct_bytes", c_uint32),
        *((name, c_int32) for name in ("out_channels", "channels", "kernel_h", "kernel_w", "border_kernels")),
        ("weight", c_void_p),
        ("tile_for_bits", c_int32 * 7),
        ("box_filter", c_int32),
        ("shuffle", c_int32),
        ("geometry", Geometry),
    ]


class Region(Structure):
    """adabm_region."""

    _fields_ = [
        ("depth", c_void_p),
        *((name, c_int32) for name in ("tile", "top", "left")),
        *((name, c_int32) for name in ("own_least", "own_most", "near_least", "near_most", "reach")),
        *((name, c_int32) for name in ("pass_least", "pass_most", "pass_reach")),
    ]


class Conv2dArgs(_Struct):
    """adabm_conv2d_args."""

    _fields_ = [
        ("struct_bytes", c_uint32),
        *((name, c_int32) for name in ("isa", "threads", "batch", "height", "width")),
        *((name, c_int32) for name in ("out_channels", "channels", "kernel_h", "kernel_w")),
        *((name, c_void_p) for name in ("x_q", "x_bits", "packed")),
        ("packed_bytes", c_uint64),
        *((name, c_int32) for name in ("box_filter", "activation", "shuffle")),
        *((name, c_void_p) for name in ("alpha", "beta", "slope", "residual", "out_grid", "out_bits", "y", "y_q", "y_acc")),
        *((name, c_int32) for name in ("y_pitch", "packed_codes", "border_kernels", "config", "y_format", "y_fraction")),
        ("y_image", c_void_p),
        ("region", Region),
        ("geometry", Geometry),
    ]


class QuantizeArgs(_Struct):
    """adabm_quantize_args."""

    _fields_ = [
        ("struct_bytes", c_uint32),
        *((name, c_int32) for name in ("isa", "threads", "batch", "height", "width", "channels")),
        *((name, c_int64) for name in ("stride_n", "stride_h", "stride_w", "stride_c")),
        *((name, c_void_p) for name in ("x", "shift", "grid", "bits", "y_q")),
        *((name, c_int32) for name in ("y_channels", "y_pitch", "packed_codes", "y_start", "x_format", "x_fraction")),
        ("region", Region),
    ]


class DepthsArgs(_Struct):
    """adabm_depths_args."""

    _fields_ = [
        ("struct_bytes", c_uint32),
        *((name, c_int32) for name in ("threads", "batch", "height", "width")),
        ("x_q", c_void_p),
        *((name, c_int32) for name in ("tile", "top", "left", "threshold", "deep")),
        ("depth", c_void_p),
    ]


class InterpolateArgs(_Struct):
    """adabm_interpolate_args."""

    _fields_ = [
        ("struct_bytes", c_uint32),
        *((name, c_int32) for name in ("isa", "threads", "height", "width", "channels", "scale", "element")),
        *((name, c_int32) for name in ("x_height", "x_width", "top", "left")),
        *((name, c_int64) for name in ("x_stride_h", "x_stride_w", "x_stride_c")),
        *((name, c_void_p) for name in ("x", "shares")),
        *((name, c_int32) for name in ("full", "y_pitch")),
        *((name, c_void_p) for name in ("cubic", "linear", "y")),
        ("y_stride_h", c_int64),
    ]


class ImageBitsArgs(_Struct):
    """adabm_image_bits_args."""

    _fields_ = [
        ("struct_bytes", c_uint32),
        *((name, c_int32) for name in ("batch", "height", "width")),
        *((name, c_int64) for name in ("stride_n", "stride_c", "stride_h", "stride_w")),
        *((name, c_void_p) for name in ("x", "workspace")),
        ("workspace_bytes", c_uint64),
        ("measure", c_void_p),
        ("layers", c_int32),
        *((name, c_void_p) for name in ("lower", "upper", "rules", "bits")),
    ]


class KernelConfig(_Struct):
    """adabm_config."""

    _fields_ = [
        ("struct_bytes", c_uint32),
        *((name, c_int32) for name in ("count", "tile_height", "tile_width", "stages", "middles", "tensor_copies")),
    ]


class Device(_Struct):
    """adabm_device."""

    _fields_ = [
        ("struct_bytes", c_uint32),
        *((name, c_int32) for name in ("compute_major", "compute_minor", "multiprocessors")),
        ("memory_bytes", c_uint64),
        ("name", c_char * 256),
    ]


_ENTRIES: dict[str, dict[str, list[Any]]] = {
    "cpu": {
        "adabm_isa_cpu": [c_int32, POINTER(c_int32), POINTER(c_int32)],
        "adabm_pack_bytes_cpu": [POINTER(Weights), POINTER(c_uint64)],
        "adabm_pack_cpu": [POINTER(Weights), c_void_p],
        "adabm_conv2d_cpu": [POINTER(Conv2dArgs)],
        "adabm_quantize_cpu": [POINTER(QuantizeArgs)],
        "adabm_depths_cpu": [POINTER(DepthsArgs)],
        "adabm_interpolate_cpu": [POINTER(InterpolateArgs)],
        "adabm_peak_cpu": [c_int32, c_int32, c_int64, POINTER(c_int64)],
    },
    "cuda": {
        "adabm_device_count_cuda": [POINTER(c_int32)],
        "adabm_device_cuda": [c_int32, POINTER(Device)],
        "adabm_usable_cuda": [c_int32],
        "adabm_pack_bytes_cuda": [POINTER(Weights), c_int32, c_int32, POINTER(c_uint64)],
        "adabm_pack_cuda": [POINTER(Weights), c_int32, c_int32, c_void_p],
        "adabm_conv2d_cuda": [POINTER(Conv2dArgs), c_int32, c_void_p],
        "adabm_resblock_cuda": [POINTER(Conv2dArgs), POINTER(Conv2dArgs), c_int32, c_void_p],
        "adabm_quantize_cuda": [POINTER(QuantizeArgs), c_int32, c_void_p],
        "adabm_quantize_many_cuda": [POINTER(QuantizeArgs), c_int32, c_int32, c_void_p],
        "adabm_depths_cuda": [POINTER(DepthsArgs), c_int32, c_void_p],
        "adabm_config_cuda": [c_int32, c_int32, POINTER(KernelConfig)],
        "adabm_image_bits_cuda": [POINTER(ImageBitsArgs), c_int32, c_void_p],
    },
}


class Unsupported(RuntimeError):
    """A call is right, but not possible on this machine or in this build (ADABM_UNSUPPORTED)."""


class Library:
    """One loaded C library. `call(entry, ...)` raises the error that the entry's status stands for."""

    def __init__(self, path: Path, entries: dict[str, list]):
        self.path = path
        self._dll = ctypes.CDLL(str(path))
        self._dll.adabm_abi_version.restype = c_int32
        self._dll.adabm_last_error.restype = ctypes.c_char_p
        found = self._dll.adabm_abi_version()
        if found != ABI_VERSION:
            raise OSError(f"{path.name} has ABI version {found}, this package needs {ABI_VERSION}: reinstall to rebuild it")
        self._entries = {}
        for name, argtypes in entries.items():
            entry = getattr(self._dll, name)
            entry.argtypes, entry.restype = argtypes, c_int32
            self._entries[name] = entry

    def call(self, name: str, *args: Any) -> None:
        """Runs an entry. Raises ValueError for a broken rule, Unsupported for what cannot run here, and RuntimeError otherwise."""
        status = self._entries[name](*args)
        if status:
            error = {INVALID_ARGUMENT: ValueError, UNSUPPORTED: Unsupported}.get(status, RuntimeError)
            raise error(f"{name}: {self._dll.adabm_last_error().decode()}")


@functools.cache
def _load(name: str) -> tuple[Library | None, str]:
    path = LIBRARIES / f"libadabm_{name}.so"
    if not path.exists():
        missing = {"cpu": "no C++ compiler", "cuda": "no nvcc, or ADABM_CUDA=off,"}[name]
        return None, f"library not built: {missing} at install"
    try:
        return Library(path, _ENTRIES[name]), ""
    except (OSError, AttributeError) as error:
        return None, f"library does not load: {error}"


def library(name: str) -> Library:
    """The library "cpu" or "cuda". Raises RuntimeError with the reason where it cannot be loaded."""
    found, reason = _load(name)
    if found is None:
        raise RuntimeError(f"{name}: {reason}")
    return found


def why_missing(name: str) -> str:
    """Why a library cannot be loaded; an empty string where it can."""
    return _load(name)[1]


def isa_built_and_present(name: str) -> tuple[bool, bool]:
    """Two values: whether an instruction set of ISAS is in the CPU library, and whether the processor has it and this process may
    use it."""
    built, present = c_int32(), c_int32()
    library("cpu").call("adabm_isa_cpu", ISAS[name], built, present)
    return bool(built.value), bool(present.value)


def why_not_runnable(name: str) -> str:
    """Why calls cannot use an instruction set of ISAS, in the library's words; an empty string where they can."""
    built, present = isa_built_and_present(name)
    if not built:
        return "is not built into the library"
    if present:
        return ""
    try:
        library("cpu").call("adabm_peak_cpu", ISAS[name], 1, 1, c_int64())
    except RuntimeError as error:
        return str(error).partition(f"instruction set {name} ")[2]
    return "is not present on this processor"


_forced_isa: str | None = None


def isa() -> int:
    """The instruction set to ask of the CPU library: ADABM_ISA, or 0 for the fastest. Raises ValueError for an unknown name."""
    name = _forced_isa or os.environ.get("ADABM_ISA") or "auto"
    if name not in ISAS:
        raise ValueError(f"ADABM_ISA must be one of {', '.join(ISAS)}, got {name!r}")
    return ISAS[name]


@contextmanager
def force_isa(name: str) -> Iterator[None]:
    """Inside the context one instruction set is used, whatever ADABM_ISA says."""
    global _forced_isa
    before, _forced_isa = _forced_isa, name
    try:
        yield
    finally:
        _forced_isa = before


def isa_chosen() -> str:
    """Name of the instruction set that calls will use. Raises RuntimeError or ValueError where calls would raise it."""
    wanted = isa()
    if wanted == 0:
        return next(name for name in reversed(ISAS) if all(isa_built_and_present(name)))
    name = list(ISAS)[wanted]
    if why := why_not_runnable(name):
        raise RuntimeError(f"cpu: instruction set {name} {why}")
    return name


def peak(isa_name: str, threads: int) -> float:
    """How many multiply-accumulates a second the products of an instruction set reach where nothing else hinders them.

    isa_name: one of ISAS. threads: 1..MAX_THREADS. Raises ValueError for other threads, RuntimeError for an instruction set that
    cannot run here and for "scalar", which has no products of its own.
    """
    macs, rounds, best = c_int64(), 1_000_000, 0.0
    for _ in range(9):
        start = time.perf_counter()
        library("cpu").call("adabm_peak_cpu", ISAS[isa_name], threads, rounds, macs)
        best = max(best, macs.value / (time.perf_counter() - start))
    return best


def planning_isa() -> str:
    """The instruction set to plan layers for: the one that calls will use, or the fastest known where none can run here."""
    try:
        return isa_chosen()
    except RuntimeError:
        return list(ISAS)[-1]


def kernel_configs(kernel: str) -> list[dict[str, int]]:
    """The configurations of a kernel of KERNELS (adabm_config_cuda), each with tile_height and tile_width in pixels, stages,
    middles and tensor_copies.

    `Conv2dArgs.config` is the number of a configuration, counted from 1. Raises RuntimeError where the CUDA library was not built.
    """
    found: list[dict[str, int]] = []
    config = KernelConfig(count=1)
    while len(found) < config.count:
        library("cuda").call("adabm_config_cuda", KERNELS[kernel], len(found), config)
        found.append({field[0]: getattr(config, field[0]) for field in KernelConfig._fields_[2:]})
    return found


def devices() -> list[dict[str, Any]]:
    """CUDA devices as the driver shows them. Raises RuntimeError with the reason where there is none to use."""
    cuda, count = library("cuda"), c_int32()
    cuda.call("adabm_device_count_cuda", count)
    found = []
    for index in range(count.value):
        device = Device()
        cuda.call("adabm_device_cuda", index, device)
        found.append(
            {
                "name": device.name.decode(),
                "compute_capability": f"{device.compute_major}.{device.compute_minor}",
                "multiprocessors": device.multiprocessors,
                "memory_bytes": device.memory_bytes,
            }
        )
    return found


def describe() -> dict[str, Any]:
    """Facts for a report: what was built, what this machine has, what would run, and why the rest would not."""
    facts: dict[str, Any] = {"abi_version": ABI_VERSION, "cpu_library": why_missing("cpu") or "loaded"}
    if not why_missing("cpu"):
        states = {name: isa_built_and_present(name) for name in list(ISAS)[1:]}
        facts["isas_built"] = [name for name, (built, _) in states.items() if built]
        facts["isas_present"] = [name for name, (_, present) in states.items() if present]
        absent = [name for name, (built, present) in states.items() if built and not present]
        facts["isas_unusable"] = [f"{name} {why_not_runnable(name)}" for name in absent]
        try:
            facts["isa_chosen"] = isa_chosen()
        except (RuntimeError, ValueError) as error:
            facts["isa_chosen"] = f"none: {error}"
    facts["cuda_library"] = why_missing("cuda") or "loaded"
    try:
        facts["cuda_devices"] = devices()
    except RuntimeError as error:
        facts["cuda_devices"] = []
        facts["cuda_reason"] = str(error)
    return facts
