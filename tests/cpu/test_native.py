"""The C ABI as seen through ctypes: layouts, statuses and their messages, threads, forks, and a package without libraries."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int32, c_uint64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guarded import guarded_bytes
from problems import ConvProblem, instantiate, runnable_isas

import adabm_kernels
from adabm_kernels import native
from adabm_kernels.backends.call import FEATURES
from adabm_kernels.quantize import MAX_FRACTION, MIN_FRACTION

PACKAGE = Path(adabm_kernels.__file__).parent
HEADER = PACKAGE.parent / "csrc" / "include"
STRUCTS = {
    "adabm_weights": native.Weights,
    "adabm_conv2d_args": native.Conv2dArgs,
    "adabm_quantize_args": native.QuantizeArgs,
    "adabm_depths_args": native.DepthsArgs,
    "adabm_interpolate_args": native.InterpolateArgs,
    "adabm_image_bits_args": native.ImageBitsArgs,
    "adabm_device": native.Device,
    "adabm_config": native.KernelConfig,
}
needs_cpu = pytest.mark.skipif(bool(native.why_missing("cpu")), reason="the CPU library was not built")
C_COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_cc = pytest.mark.skipif(C_COMPILER is None or not HEADER.exists(), reason="no C compiler, or no header")


# ---- the header


def compile_c(tmp_path: Path, source: str, *flags: str) -> Path:
    (tmp_path / "test.c").write_text(source)
    program = tmp_path / "test"
    command = [C_COMPILER, "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{HEADER}", "-o", str(program)]
    done = subprocess.run([*command, str(tmp_path / "test.c"), *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


@needs_cc
def test_header_is_c99_and_its_layouts_are_those_of_ctypes(tmp_path: Path) -> None:
    lines, want = [], {}
    for name, struct in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        want[name] = ctypes.sizeof(struct)
        for field, *_ in struct._fields_:
            lines.append(f'printf("{name}.{field} %zu\\n", offsetof({name}, {field}));')
            want[f"{name}.{field}"] = getattr(struct, field).offset
    constants = {"ADABM_ABI_VERSION": native.ABI_VERSION, "ADABM_INVALID_ARGUMENT": native.INVALID_ARGUMENT}
    constants |= {"ADABM_PACKED_X": native.PACKED_X, "ADABM_PACKED_Y": native.PACKED_Y, "ADABM_MEASURE_BYTES": native.MEASURE_BYTES}
    constants |= {"ADABM_MAX_TARGETS": native.MAX_TARGETS, "ADABM_MIN_FRACTION": MIN_FRACTION, "ADABM_MAX_FRACTION": MAX_FRACTION}
    constants |= {f"ADABM_FEATURES_{name.upper()}": value for value, name in enumerate(FEATURES)}
    constants |= {f"ADABM_KERNEL_{name.upper()}": value for name, value in native.KERNELS.items()}
    constants |= {"ADABM_ISA_COUNT": len(native.ISAS)}
    constants |= {f"ADABM_ISA_{name.upper()}": value for name, value in native.ISAS.items()}
    for name, value in constants.items():
        lines.append(f'printf("{name} %d\\n", (int){name});')
        want[name] = value
    body = "\n  ".join(lines)
    source = f'#include "adabm/adabm.h"\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {{\n  {body}\n  return 0;\n}}\n'
    text = subprocess.run([compile_c(tmp_path, source)], capture_output=True, text=True, check=True).stdout
    assert {name: int(value) for name, value in map(str.split, text.splitlines())} == want


@needs_cpu
@needs_cc
def test_the_library_can_be_called_from_c(tmp_path: Path) -> None:
    source = """
#include "adabm/adabm.h"
#include <stdio.h>
int main(void) {
  int32_t built = -1, present = -1;
  if (adabm_isa_cpu(ADABM_ISA_SCALAR, &built, &present) != ADABM_OK) return 1;
  if (adabm_isa_cpu(99, &built, &present) != ADABM_INVALID_ARGUMENT) return 2;
  printf("%d %d %d %s", adabm_abi_version(), built, present, adabm_last_error());
  return 0;
}
"""
    library = native.LIBRARIES / "libadabm_cpu.so"
    program = compile_c(tmp_path, source, str(library), f"-Wl,-rpath,{library.parent}")
    text = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert text.startswith(f"{native.ABI_VERSION} 1 1 isa must be 1..") and text.endswith("got 99")


@needs_cpu
@needs_cc
def test_the_example_of_the_documentation_runs(tmp_path: Path) -> None:
    text = (HEADER.parents[1] / "docs" / "abi.md").read_text()
    (source,) = re.findall(r"```c\n(.*?)```", text, re.DOTALL)
    library = native.LIBRARIES / "libadabm_cpu.so"
    program = compile_c(tmp_path, source, "-std=c11", str(library), f"-Wl,-rpath,{library.parent}")
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.stdout == "corner 12, inside 27, as floats 12 and 27\n", done.stderr


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_only_the_documented_symbols_are_exported(name: str) -> None:
    library = native.LIBRARIES / f"libadabm_{name}.so"
    if not library.exists() or not shutil.which("nm"):
        pytest.skip(f"no {library.name}, or no nm")
    text = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    functions = {line.split()[2] for line in text.splitlines() if line.split()[1] == "T"} - {"_init", "_fini"}
    assert {symbol for symbol in functions if symbol.startswith("adabm_")} == {
        "adabm_abi_version",
        "adabm_last_error",
        *native._ENTRIES[name],
    }
    assert not [symbol for symbol in functions if "adabm" in symbol and not symbol.startswith("adabm_")]


# ---- broken rules


class Call:
    """Valid arguments of every entry, in buffers that stay alive; a test breaks one of them."""

    def __init__(self) -> None:
        self.library = native.library("cpu")
        self.keep: list[Any] = []
        self.weights = native.Weights(
            out_channels=9,
            channels=5,
            kernel_h=3,
            kernel_w=3,
            weight=self.array(np.ones((9, 3, 3, 5), np.int8)),
            tile_for_bits=(0,) * 7,
        )
        size = c_uint64()
        self.library.call("adabm_pack_bytes_cpu", self.weights, size)
        self.packed_bytes = size.value
        self.packed = self.aligned(size.value)
        self.library.call("adabm_pack_cpu", self.weights, self.packed)
        n, h, w, c4, k = 2, 4, 5, 8, 9
        floats = {"alpha": (7, k), "beta": (4, 4, k), "slope": (k,), "residual": (n, h, w, k), "out_grid": (7, 2)}
        bits = np.array([4, 8], np.int32)
        self.conv2d = native.Conv2dArgs(
            threads=1,
            batch=n,
            height=h,
            width=w,
            out_channels=9,
            channels=5,
            kernel_h=3,
            kernel_w=3,
            x_q=self.array(np.zeros((n, h, w, c4), np.uint8)),
            x_bits=self.array(bits),
            packed=self.packed,
            packed_bytes=size.value,
            shuffle=1,
            out_bits=self.array(bits),
            **{name: self.array(np.ones(shape, np.float32)) for name, shape in floats.items()},
            y=self.array(np.zeros((n, h, w, k), np.float32)),
            y_q=self.array(np.zeros((n, h, w, 12), np.uint8)),
            y_acc=self.array(np.zeros((n, h, w, k), np.int32)),
        )
        self.quantize = native.QuantizeArgs(
            threads=1,
            batch=n,
            height=h,
            width=w,
            channels=5,
            stride_n=h * w * 5,
            stride_h=w * 5,
            stride_w=5,
            stride_c=1,
            x=self.array(np.ones((n, h, w, 5), np.float32)),
            grid=self.array(np.ones((7, 2), np.float32)),
            bits=self.array(bits),
            y_q=self.array(np.zeros((n, h, w, c4), np.uint8)),
        )

        self.interpolate = native.InterpolateArgs(
            threads=1,
            height=h,
            width=w,
            channels=3,
            scale=2,
            element=1,
            x_height=h,
            x_width=w,
            x_stride_h=3 * w,
            x_stride_w=3,
            x_stride_c=1,
            x=self.array(np.zeros((h, w, 3), np.uint8)),
            shares=self.array(np.full((h + 2, w + 2), 7, np.int16)),
            full=7,
            y_pitch=3,
            cubic=self.array(np.ones((2, 5), np.float32)),
            linear=self.array(np.ones((2, 3), np.float32)),
            y=self.array(np.zeros((2 * h, 2 * w, 3), np.uint8)),
            y_stride_h=6 * w,
        )

    def use_int16(self) -> None:
        """Features of 16 bits instead of floats and accumulators."""
        for struct, of, names, channels in ((self.conv2d, "y", ("y", "residual"), 9), (self.quantize, "x", ("x",), 5)):
            setattr(struct, f"{of}_format", 1)
            for name in names:
                setattr(struct, name, self.array(np.zeros((2, 4, 5, channels), np.int16)))
        self.conv2d.y_acc = None

    def array(self, array: np.ndarray) -> int:
        self.keep.append(array)
        return array.ctypes.data

    def aligned(self, size: int) -> int:
        room = np.zeros(size + 64, np.uint8)
        return self.array(room) + -room.ctypes.data % 64

    def wrong_bits(self, value: int) -> int:
        return self.array(np.array([4, value], np.int32))


ENTRIES: dict[str, Callable[[Call], None]] = {
    "weights": lambda call: (
        call.library.call("adabm_pack_bytes_cpu", call.weights, c_uint64()),
        call.library.call("adabm_pack_cpu", call.weights, call.packed),
    ),
    "conv2d": lambda call: call.library.call("adabm_conv2d_cpu", call.conv2d),
    "quantize": lambda call: call.library.call("adabm_quantize_cpu", call.quantize),
    "interpolate": lambda call: call.library.call("adabm_interpolate_cpu", call.interpolate),
}


# struct, fields to change, what the message says: the argument, and the value where there is one to say.
def region(**changes: int) -> dict[str, native.Region]:
    """A region of tiles of 8 pixels that passes no pixel on; its depths are not read where a rule is broken."""
    return {"region": native.Region(**{"depth": 1, "tile": 8, "own_most": 255, "near_most": 255, "pass_least": 1} | changes)}


def geometry(**changes: int) -> dict[str, native.Geometry]:
    """Strides of two pixels, and half the kernel of zeros around."""
    numbers = {"stride_h": 2, "stride_w": 2, "dilation_h": 1, "dilation_w": 1, "groups": 1, "pad_top": 1, "pad_left": 1}
    return {"geometry": native.Geometry(**numbers | {"pad_bottom": 1, "pad_right": 1} | changes)}


BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("weights", {"struct_bytes": 8}, "struct_bytes must be .*, got 8"),
    ("weights", {"out_channels": 0}, "out_channels and channels must be positive, got 0 and 5"),
    ("weights", {"channels": -5}, "out_channels and channels must be positive, got 9 and -5"),
    ("weights", {"channels": 65537}, "channels must be at most 65536, got 9 and 65537"),
    ("weights", {"out_channels": 65537}, "out_channels .* must be at most 65536, got 65537 and 5"),
    ("weights", {"kernel_h": 2}, "kernel must be odd and at most 15 a side, got 2x3"),
    ("weights", {"kernel_w": 17}, "kernel must be odd and at most 15 a side, got 3x17"),
    ("weights", {"kernel_w": -1}, "kernel must be odd and at most 15 a side, got 3x-1"),
    ("weights", {"tile_for_bits": (0, 0, 99, 0, 0, 0, 0)}, r"tile_for_bits\[2\] must be 0\.\.[0-9]+, got 99"),
    ("weights", {"tile_for_bits": (0, 0, 0, 0, 0, 0, -1)}, r"tile_for_bits\[6\] must be 0\.\.[0-9]+, got -1"),
    ("weights", {"tile_for_bits": (1, 0, 0, 0, 0, 0, 0), "kernel_h": 1}, "1 is for kernels of 3x3, not of 1x3"),
    ("weights", {"tile_for_bits": (0, 0, 0, 0, 0, 0, 1)}, r"tile_for_bits\[6\] = 1 is not exact: 8-bit codes transform to 510"),
    ("weights", {"border_kernels": 2}, "border_kernels must be 0 or 1, got 2"),
    ("weights", {"weight": None}, "weights and bytes must not be null"),
    ("conv2d", {"struct_bytes": 8}, "args must be a struct of [0-9]+ bytes"),
    ("conv2d", {"threads": 0}, "threads must be 1..256, got 0"),
    ("conv2d", {"threads": 257}, "threads must be 1..256, got 257"),
    ("conv2d", {"batch": 0}, "batch, height and width must be positive, got 0, 4, 5"),
    ("conv2d", {"height": -4}, "batch, height and width must be positive, got 2, -4, 5"),
    ("conv2d", {"width": 0}, "batch, height and width must be positive, got 2, 4, 0"),
    ("conv2d", {"height": 2**20 + 1}, "height and width must be at most 2.20, got 1048577 and 5"),
    ("conv2d", {"width": 2**20 + 1}, "height and width must be at most 2.20, got 4 and 1048577"),
    *[("conv2d", {name: None}, f"{name}.*must not be null") for name in ("x_q", "x_bits", "alpha", "beta")],
    ("conv2d", {"y": None, "y_q": None, "y_acc": None}, "one of y, y_q, y_acc and y_image must be given"),
    ("conv2d", {"out_grid": None}, "y_q needs out_grid and out_bits"),
    ("conv2d", {"out_bits": None}, "y_q needs out_grid and out_bits"),
    ("conv2d", {"box_filter": 2}, "box_filter must be 0 or 1, got 2"),
    ("conv2d", {"activation": 3}, "activation must be 0..2, got 3"),
    ("conv2d", {"activation": -1}, "activation must be 0..2, got -1"),
    ("conv2d", {"activation": 2, "slope": None}, "PReLU needs slope"),
    ("conv2d", {"packed": None}, "packed must be 64-byte aligned and hold a header"),
    ("conv2d", {"packed_bytes": 8}, "packed must be 64-byte aligned and hold a header"),
    ("conv2d", {"packed_bytes": 2**32}, "packed was not made by adabm_pack_cpu of this version"),
    ("conv2d", {"shuffle": 0}, "shuffle must be 1..16, got 0"),
    ("conv2d", {"y_pitch": 8}, "y_pitch must be 0, or out_channels 9..2\\^20 without shuffle, got 8 with shuffle 1"),
    ("conv2d", {"y_pitch": -1}, "y_pitch must be 0, or out_channels 9..2\\^20 without shuffle, got -1"),
    ("conv2d", {"packed_codes": 1}, "packed_codes must be 0 on the CPU, got 1"),
    ("quantize", {"packed_codes": 2}, "packed_codes and y_start must be 0 on the CPU, got 2 and 0"),
    ("quantize", {"y_start": 4}, "packed_codes and y_start must be 0 on the CPU, got 0 and 4"),
    ("quantize", {"y_channels": 2}, "y_channels must be 0 or channels..y_pitch and y_pitch below 2\\^20, got 2"),
    ("quantize", {"y_pitch": 1}, "y_channels must be 0 or channels..y_pitch and y_pitch below 2\\^20"),
    ("conv2d", {"shuffle": 2}, "shuffle must be positive and its square divide out_channels 9, got 2"),
    ("conv2d", {"isa": 99}, r"isa must be 0\.\.[0-9]+, got 99"),
    ("conv2d", {"isa": -1}, r"isa must be 0\.\.[0-9]+, got -1"),
    ("quantize", {"struct_bytes": 8}, "args must be a struct of [0-9]+ bytes"),
    ("quantize", {"threads": 0}, "threads must be 1..256, got 0"),
    ("quantize", {"threads": 1000}, "threads must be 1..256, got 1000"),
    ("quantize", {"batch": 0}, "batch, height, width and channels must be positive, got 0, 4, 5, 5"),
    ("quantize", {"height": 0}, "batch, height, width and channels must be positive, got 2, 0, 5, 5"),
    ("quantize", {"width": -5}, "batch, height, width and channels must be positive, got 2, 4, -5, 5"),
    ("quantize", {"channels": 2**31 - 1}, "channels must be below 2.20, got 2147483647"),
    ("quantize", {"channels": 0}, "batch, height, width and channels must be positive, got 2, 4, 5, 0"),
    ("quantize", {"batch": 2**20, "height": 2**20}, "batch times height must fit 31 bits"),
    ("quantize", {"stride_c": -1}, "stride_c must be 0..2.27-1, got -1"),
    ("quantize", {"stride_c": 2**40}, "stride_c must be 0..2.27-1, got 1099511627776"),
    *[("quantize", {name: None}, f"{name}.*must not be null") for name in ("x", "grid", "bits", "y_q")],
    ("quantize", {"isa": 99}, r"isa must be 0\.\.[0-9]+, got 99"),
    *[
        (entry, region(**changes), message)
        for entry in ("conv2d", "quantize")
        for changes, message in [
            ({"tile": 0}, "region.tile must be 1..2.20, got 0"),
            ({"tile": 2**20 + 1}, "region.tile must be 1..2.20, got 1048577"),
            ({"top": 8}, "region.top and left must be 0..7, got 8 and 0"),
            ({"left": -1}, "region.top and left must be 0..7, got 0 and -1"),
            ({"reach": 9}, "region.reach and pass_reach must be 0..tile 8, got 9 and 0"),
            ({"pass_reach": -2}, "region.reach and pass_reach must be 0..tile 8, got 0 and -2"),
            ({"own_most": 256}, "region's depths must be 0..255, got 256"),
            ({"pass_least": -1}, "region's depths must be 0..255, got -1"),
        ]
    ],
    *[
        (entry, {"shuffle": 1} | geometry(**changes), message)
        for entry in ("weights", "conv2d")
        for changes, message in [
            ({"stride_w": 0}, "geometry.stride and dilation must be 1..1024, got 2x0 and 1x1"),
            ({"dilation_h": 1025}, "geometry.stride and dilation must be 1..1024, got 2x2 and 1025x1"),
            ({"pad_left": -1}, "geometry.pad must be 0..1024, got 1, -1, 1, 1"),
            ({"groups": 2}, "geometry.groups must divide channels 5 and out_channels 9, got 2"),
            ({"groups": 0}, "geometry.groups must divide channels 5 and out_channels 9, got 0"),
        ]
    ],
    ("weights", {"shuffle": 1, "kernel_h": 16} | geometry(), "kernel must be positive and at most 15 a side, got 16x3"),
    ("weights", geometry(), "shuffle must be 1..16 and its square divide out_channels 9, got 0"),
    ("weights", {"shuffle": 1, "box_filter": 2} | geometry(), "box_filter must be 0 or 1, got 2"),
    ("weights", {"shuffle": 1, "border_kernels": 1} | geometry(), "border_kernels must be 0 where the geometry is not plain"),
    (
        "weights",
        {"shuffle": 1, "tile_for_bits": (0, 0, 1, 0, 0, 0, 0)} | geometry(),
        r"tile_for_bits\[2\] must be 0 where the geometry is not plain, got 1",
    ),
    ("conv2d", geometry(dilation_h=9), "a kernel of 19x3 pixels must fit the image with its padding, 6x7"),
    ("conv2d", geometry() | region(), "region needs an output of the image's size, 4x5, got 2x3"),
    ("conv2d", geometry(), "packed holds weights of another geometry"),
    ("conv2d", region(pass_most=3), "passed on, region.pass_least..pass_most 1..3, only with shuffle 1 and no y_acc or y_image"),
    ("quantize", region(pass_most=3), "region.pass_least must be above pass_most where codes are made, got 1 and 3"),
    *[
        (entry, {f"{of}_format": value, f"{of}_fraction": fraction, **others}, message.format(of=of))
        for entry, of, others in (("conv2d", "y", {"y_acc": None}), ("quantize", "x", {}))
        for value, fraction, message in [
            (2, 0, r"{of}_format must be 0 \(float32\) or 1 \(int16\), got 2"),
            (-1, 0, r"{of}_format must be 0 \(float32\) or 1 \(int16\), got -1"),
            (0, 3, r"{of}_fraction must be 0\.\.0 with {of}_format 0, got 3"),
            (1, 25, r"{of}_fraction must be -16\.\.24 with {of}_format 1, got 25"),
            (1, -17, r"{of}_fraction must be -16\.\.24 with {of}_format 1, got -17"),
        ]
    ],
    ("conv2d", {"y_format": 1}, "y_format must be 0 .* with y_acc, y_image, y_pitch or a shuffle above 1, got 1"),
    ("conv2d", {"y_format": 1, "y_acc": None, "y_pitch": 9}, "y_format must be 0 .* with y_acc, y_image, y_pitch"),
    ("quantize", {"x_format": 1, "shift": 1}, r"shift must be null where x_format is 1 \(int16\)"),
    ("interpolate", {"struct_bytes": 8}, "args must be a struct of [0-9]+ bytes"),
    ("interpolate", {"threads": 0}, "threads must be 1..256, got 0"),
    ("interpolate", {"height": 0}, "height and width must be 1..2.20, got 0 and 5"),
    ("interpolate", {"width": 2**20 + 1}, "height and width must be 1..2.20, got 4 and 1048577"),
    ("interpolate", {"channels": 5}, "channels must be 1..4, got 5"),
    ("interpolate", {"scale": 17}, "scale must be 1..16, got 17"),
    ("interpolate", {"element": 3}, "element must be 1, 2 or 4 bytes, got 3"),
    *[("interpolate", {name: None}, f"{name}.* must not be null") for name in ("x", "shares", "cubic", "linear", "y")],
    ("interpolate", {"x_height": 0}, "x_height and x_width must be positive, got 0 and 5"),
    ("interpolate", {"top": -1}, "must lie within x, 4x5, got 4x5 from -1, 0"),
    ("interpolate", {"left": 1}, "must lie within x, 4x5, got 4x5 from 0, 1"),
    ("interpolate", {"full": 0}, "full must be 1..32767, got 0"),
    ("interpolate", {"y_pitch": 2}, "y_pitch must be at least channels 3, got 2"),
    ("interpolate", {"isa": 99}, r"isa must be 0\.\.[0-9]+, got 99"),
]


@needs_cpu
@pytest.mark.parametrize("entry", ENTRIES)
def test_valid_arguments_pass(entry: str) -> None:
    ENTRIES[entry](Call())


class GuardedCall(Call):
    """Each array lies between two pages that end the process when touched: it ends at the second or begins at the first."""

    def __init__(self, at_end: bool) -> None:
        self.at_end = at_end
        super().__init__()

    def place(self, size: int, alignment: int) -> int:
        room, offset = guarded_bytes(size, alignment, "end" if self.at_end else "start")
        self.keep.append(room)
        return ctypes.addressof(ctypes.c_char.from_buffer(room)) + offset

    def array(self, array: np.ndarray) -> int:
        address = self.place(array.nbytes, array.itemsize)
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        return address

    def aligned(self, size: int) -> int:
        return self.place(size, 64)


@needs_cpu
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect and fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("isa", runnable_isas())
def test_no_memory_beside_what_was_given_is_touched(isa: str, at_end: bool) -> None:
    child = os.fork()
    if child == 0:
        call, status = GuardedCall(at_end), 1
        try:
            for struct in (call.conv2d, call.quantize, call.interpolate):
                struct.isa = native.ISAS[isa]
            depth = call.array(np.array([[[0, 0], [0, 1]], [[1, 0], [0, 0]]], np.uint8))
            corner = native.Region(depth, tile=3, own_least=1, own_most=1, near_most=9, pass_least=1)
            for tile in (0, 2, 5):
                call.weights.tile_for_bits = (0, 0, tile, 0, 0, 0, 0)
                size = c_uint64()
                call.library.call("adabm_pack_bytes_cpu", call.weights, size)
                call.conv2d.packed, call.conv2d.packed_bytes = call.aligned(size.value), size.value
                call.library.call("adabm_pack_cpu", call.weights, call.conv2d.packed)
                ENTRIES["conv2d"](call)
                call.conv2d.region = corner
                ENTRIES["conv2d"](call)
                call.conv2d.region = native.Region()
            ENTRIES["quantize"](call)
            call.quantize.region = corner
            ENTRIES["quantize"](call)
            call.use_int16()
            for call.conv2d.region in (native.Region(), corner):
                ENTRIES["conv2d"](call)
            for call.quantize.region in (native.Region(), corner):
                ENTRIES["quantize"](call)
            ENTRIES["interpolate"](call)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_cpu
@pytest.mark.parametrize("entry, changes, message", BROKEN)
def test_a_broken_rule_is_named_with_its_value(entry: str, changes: dict[str, Any], message: str) -> None:
    call = Call()
    for field, value in changes.items():
        setattr(getattr(call, entry), field, value)
    with pytest.raises(ValueError, match=message):
        ENTRIES[entry](call)


@needs_cpu
@pytest.mark.parametrize("bits", [1, 9, -1])
@pytest.mark.parametrize(
    "entry, field, name",
    [("conv2d", "x_bits", "x_bits"), ("conv2d", "out_bits", "out_bits"), ("quantize", "bits", "bits")],
)
def test_bits_are_checked_for_every_image(entry: str, field: str, name: str, bits: int) -> None:
    call = Call()
    setattr(getattr(call, entry), field, call.wrong_bits(bits))
    with pytest.raises(ValueError, match=rf"{name}\[1\] must be 2..8, got {bits}"):
        ENTRIES[entry](call)


@needs_cpu
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("shuffle", [1 << 16, 2**31 - 1])
def test_a_shuffle_whose_square_overflows_is_refused(shuffle: int) -> None:
    """In a child: where the square wraps to 0, dividing by it ends the process."""
    call = Call()
    call.conv2d.shuffle = shuffle
    child = os.fork()
    if child == 0:
        try:
            ENTRIES["conv2d"](call)
        except ValueError as error:
            os._exit(0 if f"got {shuffle}" in str(error) else 3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_cpu
def test_null_structs_and_misplaced_memory_are_refused() -> None:
    call = Call()
    library, built, present = call.library, c_int32(), c_int32()
    for isa in (0, -1, len(native.ISAS)):
        with pytest.raises(ValueError, match=rf"isa must be 1\.\.[0-9]+, got {isa}"):
            library.call("adabm_isa_cpu", isa, built, present)
    with pytest.raises(ValueError, match="built and present must not be null"):
        library.call("adabm_isa_cpu", 1, None, present)
    with pytest.raises(ValueError, match="weights and bytes must not be null"):
        library.call("adabm_pack_bytes_cpu", None, c_uint64())
    with pytest.raises(ValueError, match="weights and packed must not be null"):
        library.call("adabm_pack_cpu", call.weights, None)
    with pytest.raises(ValueError, match="packed must be 64-byte aligned"):
        library.call("adabm_pack_cpu", call.weights, call.aligned(call.packed_bytes + 64) + 4)
    for entry in ("conv2d", "quantize", "depths", "interpolate"):
        with pytest.raises(ValueError, match="args must be a struct of"):
            library.call(f"adabm_{entry}_cpu", None)
    call.conv2d.packed += 4
    with pytest.raises(ValueError, match="packed must be 64-byte aligned and hold a header"):
        ENTRIES["conv2d"](call)


@needs_cpu
@pytest.mark.parametrize("int16", [False, True])
@pytest.mark.parametrize(
    "entry, fields",
    [
        ("conv2d", ("x_bits", "alpha", "beta", "slope", "residual", "out_grid", "out_bits", "y", "y_acc")),
        ("quantize", ("x", "grid", "bits")),
        ("interpolate", ("x", "y", "shares", "cubic", "linear")),
    ],
)
def test_pointers_are_aligned_to_their_elements(entry: str, fields: tuple[str, ...], int16: bool) -> None:
    for field in fields:
        call = Call()
        if int16:
            call.use_int16()
        call.interpolate.element = 2 if int16 else 4
        struct = getattr(call, entry)
        call.conv2d.activation = 2
        if getattr(struct, field) is None:  # y_acc, with int16
            continue
        element = 2 if field == "shares" or (int16 and field in ("x", "y", "residual")) else 4
        for offset in range(1, element):
            setattr(struct, field, call.aligned(4096) + offset)
            with pytest.raises(ValueError, match=f"{field} must be aligned to its elements of {element} bytes"):
                ENTRIES[entry](call)


@needs_cpu
def test_weights_packed_by_something_else_are_refused() -> None:
    call = Call()
    ctypes.memset(call.packed, 0, 4)
    with pytest.raises(ValueError, match="packed was not made by adabm_pack_cpu of this version"):
        ENTRIES["conv2d"](call)


@needs_cpu
def test_sizes_whose_offsets_would_overflow_are_refused() -> None:
    call = Call()
    call.weights.out_channels, call.weights.channels = 4096, 4
    call.weights.weight = call.array(np.zeros(4096 * 4 * 9, np.int8))
    size = c_uint64()
    call.library.call("adabm_pack_bytes_cpu", call.weights, size)
    call.conv2d.packed, call.conv2d.packed_bytes = call.aligned(size.value), size.value
    call.library.call("adabm_pack_cpu", call.weights, call.conv2d.packed)
    call.conv2d.out_channels, call.conv2d.channels, call.conv2d.width = 4096, 4, 2**20
    with pytest.raises(ValueError, match="width 1048576 is too large for 4 to 4096 channels"):
        ENTRIES["conv2d"](call)


@needs_cpu
def test_weights_that_a_tile_cannot_hold_are_refused() -> None:
    call = Call()
    call.weights.tile_for_bits = (2, 0, 0, 0, 0, 0, 0)
    weight = np.ones((9, 3, 3, 5), np.int8)
    weight[7] = 60
    call.weights.weight = call.array(weight)
    with pytest.raises(ValueError, match="tile 2 needs more than 4 bytes: a weight of output 7 transforms to 540"):
        call.library.call("adabm_pack_bytes_cpu", call.weights, c_uint64())


@needs_cpu
def test_kernels_by_border_class_need_an_image_of_their_size() -> None:
    call = Call()
    call.weights.border_kernels = 1
    call.weights.weight = call.array(np.zeros((3, 3, 9, 3, 3, 5), np.int8))
    size = c_uint64()
    call.library.call("adabm_pack_bytes_cpu", call.weights, size)
    call.conv2d.packed, call.conv2d.packed_bytes = call.aligned(size.value), size.value
    call.library.call("adabm_pack_cpu", call.weights, call.conv2d.packed)
    ENTRIES["conv2d"](call)
    call.conv2d.height = 2
    with pytest.raises(ValueError, match="height and width must be at least the kernel's 3x3 .*, got 2x5"):
        ENTRIES["conv2d"](call)


@needs_cpu
def test_each_thread_has_its_own_message() -> None:
    library = native.library("cpu")

    def fail(isa: int) -> str:
        for _ in range(200):
            with pytest.raises(ValueError) as caught:
                library.call("adabm_isa_cpu", isa, c_int32(), c_int32())
            assert str(caught.value).endswith(f"got {isa}")
        return str(isa)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(fail, range(100, 104))) == ["100", "101", "102", "103"]


# ---- loading


@needs_cpu
def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ABI_VERSION", 999)
    native._load.cache_clear()
    try:
        assert "has ABI version" in native.why_missing("cpu") and "needs 999" in native.why_missing("cpu")
        with pytest.raises(RuntimeError, match="cpu: library does not load: .* reinstall to rebuild it"):
            native.library("cpu")
    finally:
        native._load.cache_clear()


def test_a_file_that_is_no_library_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libadabm_cpu.so").write_text("not a library")
    monkeypatch.setattr(native, "LIBRARIES", tmp_path)
    native._load.cache_clear()
    try:
        assert native.why_missing("cpu").startswith("library does not load: ")
        assert native.why_missing("cuda").startswith("library not built: ")
        facts = native.describe()
        assert facts["cpu_library"].startswith("library does not load") and facts["cuda_devices"] == []
    finally:
        native._load.cache_clear()


def test_without_a_driver_the_cuda_library_says_so() -> None:
    if native.why_missing("cuda"):
        pytest.skip(f"cuda: {native.why_missing('cuda')}")
    try:
        devices = native.devices()
    except RuntimeError as error:
        assert re.search("adabm_device_count_cuda: no CUDA device can be used: .+", str(error))
        with pytest.raises(RuntimeError, match="no CUDA device can be used"):
            native.library("cuda").call("adabm_device_cuda", 0, native.Device())
    else:
        assert devices and all(device["memory_bytes"] > 0 and device["name"] for device in devices)
        with pytest.raises(ValueError, match=f"index must be 0..{len(devices) - 1}, got -1"):
            native.library("cuda").call("adabm_device_cuda", -1, native.Device())
    with pytest.raises(ValueError, match="count must not be null"):
        native.library("cuda").call("adabm_device_count_cuda", None)
    device = native.Device()
    device.struct_bytes = 4
    with pytest.raises(ValueError, match="device must be a struct of [0-9]+ bytes"):
        native.library("cuda").call("adabm_device_cuda", 0, device)


# ---- threads and forks


@needs_cpu
def test_concurrent_callers_get_equal_results() -> None:
    problems = [
        ConvProblem("concurrent", 24, 20, 16, 32, bits=(4,)),
        ConvProblem("box", 9, 20, 8, 48, weight_bits=8, bits=(8,)),
    ]
    instances = [instantiate(problem) for problem in problems]
    want = [instance.run("reference", "acc")[0] for instance in instances]
    for instance in instances:
        instance.layer.set_backend("cpu", 2)

    def work(index: int) -> bool:
        instance = instances[index % 2]
        return all((instance.layer(instance.x_q, instance.bits, out="acc")[0] == want[index % 2]).all() for _ in range(30))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


@needs_cpu
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_a_pool_of_its_own() -> None:
    instance = instantiate(ConvProblem("forked", 24, 20, 16, 32, bits=(4,)))
    want = instance.run("cpu", "acc", threads=2)[0]  # starts the parent's pool
    child = os.fork()
    if child == 0:
        # No assert and no exit handlers here: the child must not run the test session's own.
        got = instance.run("cpu", "acc", threads=2)[0]
        again = instance.run("cpu", "acc", threads=3)[0]
        os._exit(0 if bool((got == want).all()) and bool((again == want).all()) else 3)
    for _ in range(300):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
    assert (instance.run("cpu", "acc", threads=2)[0] == want).all()


@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="replaces pthread_create as Linux allows")
def test_tasks_that_throw_and_threads_that_cannot_start(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    sources = [str(root / "csrc/cpu/thread_pool.cpp"), str(root / "tests/cpu/native/thread_pool.cpp")]
    program = str(tmp_path / "thread_pool")
    flags = ["-std=c++17", "-O1", f"-I{root}/csrc", "-rdynamic"]
    subprocess.run(["g++", *flags, *sources, "-ldl", "-pthread", "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and result.stdout == "0 failures\n", result.stdout + result.stderr


# ---- AMX


def has_amx() -> bool:
    return not native.why_missing("cpu") and all(native.isa_built_and_present("amx"))


REFUSED = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
long syscall(long number, ...) {
  long a[6];
  va_list rest;
  va_start(rest, number);
  for (int i = 0; i < 6; i++) a[i] = va_arg(rest, long);
  va_end(rest);
  if (number == SYS_arch_prctl && a[0] == 0x1023) return errno = atoi(getenv("REFUSED_WITH")), -1;
  long (*next)(long, ...) = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
"""


@pytest.mark.skipif(not has_amx() or C_COMPILER is None, reason="no AMX here, or no C compiler")
@pytest.mark.parametrize("error, reason", [(errno.EPERM, "Linux 5.16 or newer"), (errno.ENOSPC, "sigaltstack.* is too small")])
def test_without_leave_for_amx_vectors_compute(tmp_path: Path, error: int, reason: str) -> None:
    source, library = tmp_path / "refused.c", tmp_path / "refused.so"
    source.write_text(REFUSED)
    subprocess.run([C_COMPILER, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    code = """
import ctypes, os
from adabm_kernels import native
facts = native.describe()
print(facts["isa_chosen"], "amx" in facts["isas_built"], "amx" in facts["isas_present"], *facts["isas_unusable"], sep="\\n")
os.environ["ADABM_ISA"] = "amx"
for use in (native.isa_chosen, lambda: native.peak("amx", 1)):
    try:
        use()
    except RuntimeError as error:
        print(error)
"""
    done = python(code, PACKAGE.parent, LD_PRELOAD=str(library), REFUSED_WITH=str(error))
    assert done.returncode == 0, done.stderr
    chosen, built, present, *lines = done.stdout.splitlines()
    assert (chosen, built, present) == ("avx512vnni", "True", "False")
    said = [line for line in lines if "amx" in line]
    assert len(said) == 3 and all(re.search(f"amx is refused by the operating system: .*{reason}", line) for line in said)


@pytest.mark.skipif(not has_amx() or not shutil.which("g++"), reason="no AMX here, or no g++")
def test_a_call_that_fails_releases_the_matrix_registers(tmp_path: Path) -> None:
    library, program = native.LIBRARIES / "libadabm_cpu.so", tmp_path / "amx_state"
    source = Path(__file__).parent / "native" / "amx_state.cpp"
    linked = [str(library), f"-Wl,-rpath,{library.parent}", "-Wl,--export-dynamic"]
    subprocess.run(["g++", "-std=c++17", "-O1", f"-I{HEADER}", str(source), *linked, "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "released\n", done.stdout + done.stderr


# ---- a package without libraries


def python(code: str, path: Path, **variables: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ADABM_")}
    environment |= {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=path)


def test_importing_the_package_is_inert() -> None:
    code = """
import sys, warnings
warnings.simplefilter("error")
before = set(sys.modules)
import adabm_kernels
import adabm_kernels.native, adabm_kernels.registry
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
print(adabm_kernels.native._load.cache_info().currsize)
"""
    done = python(code, PACKAGE.parent)
    assert done.returncode == 0 and not done.stderr, done.stderr
    modules, loaded = done.stdout.splitlines()
    assert not {"torch", "numpy", "PIL", "safetensors", "triton"} & set(modules.split())
    assert loaded == "0"


def test_without_libraries_the_package_converts_and_warns_once(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "adabm_kernels", ignore=shutil.ignore_patterns("_lib", "*.safetensors", "__pycache__"))
    code = """
import warnings
import adabm_kernels
assert not adabm_kernels.backends()["cpu"].available
import torch
from adabm_kernels.networks.edsr import EDSR, EDSRSpec
torch.manual_seed(0)
images = [torch.rand(2, 3, 16, 17) * 255]
config = adabm_kernels.ConvertConfig(bit_aware_clipping=False)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for seed in range(2):
        model = adabm_kernels.convert_model(EDSR(EDSRSpec(2, 1, 4)), images, config)
        y = model(images[0])
assert y.shape == (2, 3, 32, 34), y.shape
assert model.backend_summary() == "reference"
print(*[f"{w.category.__name__}: {w.message}" for w in caught], sep="\\n")
"""
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "adabm" in line]
    assert lines == [
        "RuntimeWarning: adabm_kernels runs on the reference backend, which is slow: cpu: library not built: no C++ compiler "
        "at install"
    ]


@needs_cpu
@pytest.mark.parametrize("field", ["out_channels", "channels", "kernel_h", "kernel_w"])
def test_weights_packed_for_another_layer_are_refused(field: str) -> None:
    call = Call()
    setattr(call.conv2d, field, 1)
    with pytest.raises(ValueError, match="packed holds 9x3x3x5 weights, not out_channels x kernel_h x kernel_w x channels = "):
        ENTRIES["conv2d"](call)
