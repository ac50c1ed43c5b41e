"""Triton kernels built ahead of time for an architecture, without a GPU, and what the machine code is made of."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton_paths


@dataclass(frozen=True)
class Multiprocessor:
    """The resources that the blocks of threads on a multiprocessor share (CUDA C++ Programming Guide, technical specifications).

    shared: bytes, of which each block takes RESERVED besides its own. threads, blocks: the largest numbers of them.
    """

    shared: int
    threads: int
    blocks: int


REGISTERS, RESERVED = 65536, 1024
MULTIPROCESSORS = {
    80: Multiprocessor(164 << 10, 2048, 32),
    86: Multiprocessor(100 << 10, 1536, 16),
    89: Multiprocessor(100 << 10, 1536, 24),
    90: Multiprocessor(228 << 10, 2048, 32),
    100: Multiprocessor(228 << 10, 2048, 32),
    103: Multiprocessor(228 << 10, 2048, 32),
    120: Multiprocessor(100 << 10, 1536, 24),
}

BODY = {"x_q": (1, 512, 512, 64), "weight": (64, 3, 3, 64), "activation": "none", "shuffle": 1, "residual": False}
CONV2D: dict[str, dict[str, Any]] = {
    "body": BODY | {"activation": "relu", "y": 0, "codes": True, "packed": True},
    "residual": BODY | {"activation": "prelu", "residual": True, "y": 1, "codes": True, "packed": True},
    "residual_int16": BODY | {"activation": "prelu", "residual": True, "y": 1, "codes": True, "packed": True, "int16": True},
    "bytes": BODY | {"y": 1, "codes": True, "packed": False},
    "box": BODY | {"weight": (64, 9, 9, 3), "x_q": (1, 512, 512, 4), "y": 1, "codes": True, "packed": True, "ones": True},
    "dense": BODY | {"weight": (64, 3, 3, 512), "x_q": (1, 512, 512, 512), "y": 1, "y_pitch": 1088, "codes": False, "packed": True},
    "fusion": BODY | {"weight": (64, 1, 1, 576), "x_q": (1, 512, 512, 576), "y": 1, "codes": True, "packed": True},
    "upsampler": BODY | {"weight": (256, 3, 3, 64), "shuffle": 2, "y": 0, "codes": True, "packed": True},
    "tail": BODY | {"weight": (5, 5, 48, 5, 5, 64), "shuffle": 4, "y": 1, "codes": False, "packed": True},
    "head": BODY | {"weight": (64, 3, 3, 3), "x_q": (1, 512, 512, 4), "y": 1, "codes": True, "packed": True},
    "last": BODY | {"weight": (3, 3, 3, 64), "y": 1, "codes": False, "packed": True},
    "small": BODY | {"x_q": (1, 96, 96, 64), "residual": True, "y": 1, "codes": True, "packed": True},
    "sums": BODY | {"y": 2, "codes": False, "packed": True},
    "wide": BODY | {"x_q": (1, 8192, 8192, 64), "residual": True, "y": 1, "codes": True, "packed": True},
    "depths": BODY | {"activation": "relu", "y": 0, "codes": True, "packed": True, "depth": True},
    "depths_inside": BODY | {"activation": "relu", "y": 0, "codes": True, "packed": True, "depth": True, "passes": True},
    "depths_residual": BODY | {"residual": True, "y": 1, "codes": True, "packed": True, "depth": True, "passes": True},
    "depths_residual_int16": BODY | {"residual": True, "y": 1, "codes": True, "packed": True, "depth": True, "passes": True,
                                     "int16": True},
    "depths_closing": BODY | {"residual": True, "y": 0, "codes": True, "packed": True, "depth": True},
    "depths_wide": BODY | {"x_q": (1, 8192, 8192, 64), "residual": True, "y": 1, "codes": True, "packed": True, "depth": True,
                           "passes": True},
    "kept": BODY | {"activation": "relu", "y": 0, "codes": True, "packed": True, "kept": True},
    "kept_depths": BODY | {"residual": True, "y": 1, "codes": True, "packed": True, "kept": True, "depth": True, "passes": True},
    "depths_pixels": BODY | {"weight": (5, 5, 48, 5, 5, 64), "shuffle": 4, "y": 3, "codes": False, "packed": True, "depth": True},
}  # fmt: skip
# Forms that take long to build, with the architectures: a program that keeps the weights has a loop for each way to store codes.
ONLY = {"kept": (80, 90, 100), "kept_depths": (90,)}
# Forms of which only one block fits on a multiprocessor of 9.0. Of `small`, whose blocks have half as many warps, four fit.
ONE_BLOCK = {"depths_wide", *ONLY}
# Forms of which two blocks fit on 8.0, 10.0 and 12.0 too.
TWO_BLOCKS = {"body", "bytes", "dense", "upsampler", "tail", "last", "sums", "residual_int16"}
# Bytes of local memory that a thread may take, by form and architecture; no other form may take any. On 8.6 and 8.9 ptxas keeps to
# 128 registers, for two blocks a multiprocessor, and spills up to four words that it needs only after the products.
STACK = {("depths", 86): 8, ("depths", 89): 8, ("depths_closing", 86): 16, ("depths_closing", 89): 16}
# The settings of kernels without products, which replace those in `compile_kernel`.
OTHERS: dict[str, dict[str, Any]] = {
    "quantize": {},
    "quantize_bytes": {"PACKED": False, "SHIFT": False, "START": 0},
    "quantize_int16": {"SHIFT": False, "int16": True},
    "quantize_wide": {"WIDE": True},
    "quantize_depths": {"depth": True},
    "measure": {},
    "measure_wide": {"WIDE": True},
    "decide": {},
    "decide_one": {"BITS": False},
    "tile_depths": {},
}
CONV2D_TENSORS = {
    "x_q": "*u8", "x_bits": "*i32", "packed": "*u8", "alpha": "*fp32", "beta": "*fp32", "slope": "*fp32", "residual": "*fp32",
    "out_grid": "*fp32", "out_bits": "*i32", "y": "*fp32", "y_q": "*u8",
}  # fmt: skip
REGION = ("depth_tile", "depth_top", "depth_left", "own_least", "own_most", "near_least", "near_most", "reach", "pass_least",
          "pass_most", "pass_reach")  # fmt: skip
SCALES = {"per_one": "fp32", "step": "fp32"}  # the type of the scales of int16 features
Y_TYPES = {0: "*fp32", 1: "*fp32", 2: "*i32", 3: "*u8"}  # the type of y by what is written to it (conv2d.OUTPUTS)


def blocks_wanted(name: str, capability: int) -> int:
    """The number of blocks of a form that must fit on a multiprocessor."""
    if (name in TWO_BLOCKS and capability in (80, 100, 120)) or (capability == 90 and name in CONV2D and name not in ONE_BLOCK):
        return 4 if name == "small" else 2
    return 1


@dataclass(frozen=True)
class Tile:
    """The most that a tile spends (triton_paths): barriers, bytes to and from shared memory, and instructions of a warp."""

    barriers: int
    shared_bytes: int
    instructions: int


@dataclass
class Compiled:
    """A compiled kernel.

    registers, stack: those of a thread. operations: how often each machine instruction occurs. fused: the number of float32
    multiply-adds in PTX, which writes two at once for Blackwell. wanted: the number that the epilogue of a thread's outputs asks
    for. tiles: what a tile spends, by the bits that the input's codes are stored in; 0 for a kernel without products. triton: the
    release.
    """

    triton: str
    capability: int
    registers: int
    stack: int
    shared: int
    warps: int
    operations: Counter
    fused: int
    wanted: int
    tiles: dict[int, Tile]

    @property
    def blocks(self) -> int:
        """The number of blocks that fit on a multiprocessor at once."""
        card = MULTIPROCESSORS[self.capability]
        of_a_warp = -(-self.registers * 32 // 256) * 256
        by_registers = REGISTERS // 4 // of_a_warp * 4 // self.warps  # each of four schedulers has a quarter of them
        by_shared = card.shared // (-(-self.shared // 128) * 128 + RESERVED)
        return min(by_registers, by_shared, card.threads // (32 * self.warps), card.blocks)


def use_triton(folder: str | None, cache: str) -> None:
    """Chooses a release of Triton and its cache, in a process that has not imported Triton. folder: where the release lies, None
    for the one of the environment. cache: the folder in which it keeps compiled kernels."""
    if folder:
        sys.path.insert(0, folder)
    os.environ["TRITON_CACHE_DIR"] = cache


def compile_kernel(name: str, capability: int | str, build: Callable[..., Any] | None = None) -> Any:
    """Builds a form of CONV2D or OTHERS for a compute capability, 90 for 9.0. build: a function to call in place of `_compile`,
    with the same arguments."""
    from adabm_kernels.backends.triton import conv2d, depths, image_bits, quantize, tuning

    wanted, products = 0, {}
    if name in CONV2D:
        case = CONV2D[name]
        layout = conv2d.Layout.of(case["weight"], ones=case.get("ones", False))
        channels = layout.outputs // case["shuffle"] ** 2
        kept = case.get("kept", False)
        with tuning.always(tuning.Config(128, 64, 8, 1, tuning.PERSISTENT, 2)) if kept else nullcontext():
            constants, _ = conv2d.conv2d_launch(
                capability, case["x_q"], case["weight"], layout.offsets()[-1], activation=case["activation"],
                shuffle=case["shuffle"], packed_codes=case["packed"], y=case["y"], y_pitch=case.get("y_pitch", channels),
                codes=case["codes"], residual=case["residual"], depth=case.get("depth", False), passes=case.get("passes", False),
            )  # fmt: skip
        products = None if kept else _products_of(constants)  # the path of a tile cannot be found in a loop over tiles
        # There is one multiply-add for alpha and beta, in each of two branches where tables by border class are looked up, and one
        # for the codes. Accumulators are stored as they are. Int16 features need three more: one for the residual, one that rounds,
        # and one that gives the value that is held.
        int16 = case.get("int16", False)
        each = 2 - constants.get("BY_CLASS", False) + case["codes"] + int16 * (2 + case["residual"])
        each = 0 if case["y"] == conv2d.ACCUMULATORS else each
        wanted = each * constants["BLOCK_M"] * constants["BLOCK_N"] // (32 * constants["num_warps"])
        wanted *= 3 if kept else 1
        types = CONV2D_TENSORS | {"height": "i32", "width": "i32", "y": Y_TYPES[case["y"]]} | SCALES
        types |= {"residual": "*i16", "y": "*i16"} if int16 else {}
        absent = {"slope": case["activation"] != "prelu", "residual": not case["residual"], "y": not case["y"]}
        absent |= dict.fromkeys(("out_grid", "out_bits", "y_q"), not case["codes"])
        absent |= dict.fromkeys(("depth", *REGION), not case.get("depth")) | dict.fromkeys(SCALES, not int16)
        kernel = conv2d.kernel_of(constants)
        assert (kernel is conv2d.persistent_kernel) == kept
    elif name.startswith("quantize"):
        kernel = quantize.quantize_kernel
        types = {"shift": "*fp32", "grid": "*fp32", "bits": "*i32", "y_q": "*u8", "width": "i32", "pixels": "i32"}
        types |= {f"stride_{axis}": "i32" for axis in "nhw"}
        constants = {"stride_c": 1, "C": 64, "SHIFT": True, "CHANNELS": 1024, "PITCH": 1024, "START": 64, "FILL": 64, "AXIS": 64}
        constants |= {"PACKED": True, "WIDE": False} | tuning.quantize_config(64).options() | OTHERS[name]
        with_depth, int16 = constants.pop("depth", False), constants.pop("int16", False)
        types |= {"x": "*i16" if int16 else "*fp32", "step": SCALES["step"]}
        absent = {"shift": not constants["SHIFT"], "step": not int16} | dict.fromkeys(("depth", *REGION[:8]), not with_depth)
    elif name.startswith("measure"):
        kernel, absent = image_bits.measure_kernel, {}
        types = {"x": "*fp32", "partial": "*fp32", "height": "i32", "width": "i32"}
        types |= {f"stride_{axis}": "i32" for axis in "nchw"}
        constants = {"WIDE": False, "BLOCK": image_bits.BLOCK, "num_warps": 4, "enable_fp_fusion": False} | OTHERS[name]
    elif name == "tile_depths":
        kernel, absent = depths.tile_depths_kernel, {}
        types = {"x_q": "*u8", "depth": "*u8"}
        types |= dict.fromkeys(("height", "width", "rows", "columns", "tile", "top", "left", "threshold", "deep"), "i32")
        constants = {"BLOCK": depths.BLOCK, "num_warps": 4}
    else:
        kernel = image_bits.decide_kernel
        types = dict.fromkeys(("partial", "measure", "lower", "upper"), "*fp32") | {"rules": "*i32", "bits": "*i32"}
        types |= dict.fromkeys(("tiles", "pixels", "layers"), "i32")
        constants = {"BITS": True, "STEPS": 1, "LAYERS": 64, "BLOCK": image_bits.BLOCK, "num_warps": 4, "enable_fp_fusion": False}
        constants |= OTHERS[name]
        absent = {"measure": constants["BITS"]} | dict.fromkeys(("lower", "upper", "rules", "bits"), not constants["BITS"])
    missing = [key for key, gone in absent.items() if gone]
    return (build or _compile)(kernel, types, constants, missing, capability, wanted, products)


def _products_of(constants: dict[str, Any]) -> dict[int, int]:
    """Multiply-accumulates that a warp makes for a tile, by the bits that codes are stored in."""
    found = {}
    for stored in (8, 4, 2) if constants["PACKED"] else (8,):
        block, pitch = constants[f"BLOCK_K_{stored}"], -(-constants["C4"] * stored // 32) * 4
        reduced = constants["R"] * -(-constants["S"] * pitch // block) * block * (8 // stored)
        outputs = constants["BLOCK_N"] + 16 * constants["ONES"]
        found[stored] = constants["BLOCK_M"] * outputs * reduced // constants["num_warps"]
    return found


def source_of(kernel, types, constants, absent, ranged=()) -> tuple[Any, dict[str, Any]]:
    """Returns the source that Triton compiles for a kernel, and its options. ranged: names of tensors that, as a launch says, have
    at most 2^31 bytes."""
    from triton.compiler import ASTSource

    names = kernel.arg_names
    options = {key: value for key, value in constants.items() if key not in names}
    fixed = {key: value for key, value in constants.items() if key in names} | dict.fromkeys(absent)
    types |= {"depth": "*u8"} | dict.fromkeys(REGION, "i32")
    signature = {name: "constexpr" if name in fixed else types[name] for name in names}
    unaligned = ("x_bits", "out_bits", "depth")  # rows of the table of all layers, and maps that may be parts of others
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*") and name not in unaligned]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    for i, name in enumerate(names):
        if name in ranged and signature[name].startswith("*"):
            attributes[(i,)] = [*attributes.get((i,), []), ["tt.pointer_range", 32]]
    return ASTSource(kernel, signature, {(names.index(name),): value for name, value in fixed.items()}, attributes), options


def _compile(kernel, types, constants, absent, capability: int, wanted: int, products: dict[int, int]) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget

    source, options = source_of(kernel, types, constants, absent)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    usage, machine = _disassemble(built.asm["cubin"])
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    operations = Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", machine))
    warps = built.metadata.num_warps
    fused = sum(2 if pair else 1 for pair in re.findall(r"\bfma\.rn\.f32(x2)?\b", built.asm["ptx"]))
    stack = int(found["STACK"]) + int(found["LOCAL"])
    shared, registers = built.metadata.shared, int(found["REG"])
    tiles = {} if products is None else tiles_of(machine, warps, products)
    return Compiled(triton.__version__, capability, registers, stack, shared, warps, operations, fused, wanted, tiles)


def tiles_of(machine: str, warps: int, products: dict[int, int]) -> dict[int, Tile]:
    """What a tile spends, by bits of storage, read from the text of `nvdisasm -c`. products: multiply-accumulates of a warp by bits
    of storage, {} for a kernel without products."""
    graph = triton_paths.Graph.of(triton_paths.blocks_of(machine))
    branches = triton_paths.branches_of(graph, products.__getitem__) if products else [None]

    def tile(branch: triton_paths.Branch | None) -> Tile:
        others = [other for other in branches if other is not branch]
        barriers, shared, issued = (
            triton_paths.dearest(graph, of, branch, others)
            for of in (lambda one: one.name == "BAR", lambda one: one.shared_bytes, lambda one: 1)
        )
        return Tile(barriers, warps * shared, issued)

    return {branch.stored if branch else 0: tile(branch) for branch in branches}


def _disassemble(cubin: bytes) -> tuple[str, str]:
    """Returns the resource usage and the machine code of a cubin, by the tools that come with Triton."""
    import triton.backends.nvidia

    tools = Path(triton.backends.nvidia.__file__).parent / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
        file.write(cubin)
    try:
        commands = ([tools / "cuobjdump", "--dump-resource-usage", file.name], [tools / "nvdisasm", "-c", file.name])
        usage, machine = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands)
    finally:
        os.unlink(file.name)
    return usage, machine
