"""Layers whose machine code is executed: how each is called, which tile a block of it takes, and what the reference makes of it."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch
from cuda_calls import POISON, CudaCall, conv2d_call
from cuda_library import host_library
from problems import ConvInstance, ConvProblem, instantiate

from adabm_kernels import ops
from adabm_kernels.quantize import act_grid, from_fixed, pack_codes, to_fixed

from . import launches
from .block import Block, Launch

# Rows and columns of a tile of the kernels of 9.0, by adabm_conv2d_args.config (conv2d_configs.cuh).
TILES = {
    "resident": {1: (16, 32), 2: (16, 16), 3: (16, 64), 4: (16, 32)},
    "staged": {1: (16, 32), 2: (16, 16), 3: (16, 32)},
    "block": {1: (14, 30), 2: (14, 14), 3: (14, 46), 4: (14, 30)},
}
TILE_SM80 = (8, 16)  # of images where that makes no more tiles than 16 by 8


@dataclass(frozen=True)
class Family:
    """A layer, or a residual block, whose machine code is counted.

    code: the architecture that it was compiled for. card: that of the pretended card, where another one's kernels are to be taken.
    outputs: as conv2d_call, or i for an image of bytes. packed: codes are stored packed. config: adabm_conv2d_args.config.
    fraction: of features of 16 bits, None where they are floats. lowest: where the grid of the codes that are written begins;
    calibration has 0 behind a ReLU.
    """

    name: str
    code: str
    problem: ConvProblem
    outputs: str = "q"
    packed: bool = False
    block: bool = False
    config: int = 0
    card: str = ""
    fraction: int | None = None
    lowest: float = -2.0

    def __str__(self) -> str:
        return self.name

    @property
    def on_wgmma(self) -> bool:
        return self.code == "90" and not self.card

    @property
    def kind(self) -> str:
        """Of its kernel on 9.0: whether its weights stay in registers."""
        resident = self.problem.kernel == 3 and 32 < self.problem.channels <= 64 and self.problem.name != "box"
        return "block" if self.block else "resident" if resident else "staged"

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of the pixels of a tile."""
        return TILES[self.kind][self.config] if self.on_wgmma else TILE_SM80

    def tiles(self, problem: ConvProblem) -> tuple[int, int]:
        """How many there are below and beside one another in an image."""
        return -(-problem.height // self.tile[0]), -(-problem.width // self.tile[1])


def body(bits: int = 8, out_bits: int = 8, **settings) -> ConvProblem:
    """The layer that counts: 64 to 64 channels, 3x3. What a tile inside the image costs does not depend on the image's size."""
    return ConvProblem("body", 96, 192, 64, 64, bits=(bits,), out_bits=(out_bits,), **settings)


RELU = {"activation": "relu"}
HEAD = dataclasses.replace(body(), channels=3, weight_bits=8)
DEEP = dataclasses.replace(body(), channels=128)
TAIL = dataclasses.replace(body(), outputs=48, kernel=5, shuffle=4)
FRACTION = 9  # of features of 16 bits: 64 each way, so that those of random layers seldom saturate
FAMILIES = [
    Family("sm_90 codes to codes", "90", body(**RELU), config=1),
    Family("sm_90 packed 4-bit codes to codes", "90", body(4, 4, **RELU), packed=True, config=1),
    Family("sm_90 residual, floats and codes", "90", body(residual=True), "yq", config=1),
    Family("sm_90 residual, floats and packed 4-bit codes", "90", body(4, 4, residual=True), "yq", packed=True, config=1),
    Family("sm_90 residual, 16-bit features and codes", "90", body(residual=True), "yq", config=1, fraction=FRACTION),
    Family("sm_90 staged, 128 to 64 channels", "90", dataclasses.replace(DEEP, **RELU), config=1),
    Family("sm_90 staged, 5x5 to the image", "90", TAIL, "y", config=1),
    Family("sm_90 staged, 5x5 to 8-bit pixels", "90", dataclasses.replace(TAIL, lower=-100.0, upper=160.0), "i", config=1),
    Family("sm_90 staged, residual, floats and codes", "90", dataclasses.replace(DEEP, residual=True), "yq", config=1),
    Family("sm_90 residual block", "90", body(**RELU), "yq", block=True, config=1),
    Family("sm_90 residual block, packed 4-bit codes", "90", body(4, 4, **RELU), "yq", packed=True, block=True, config=1),
    Family("sm_90 residual block, 16-bit features", "90", body(**RELU), "yq", block=True, config=1, fraction=FRACTION),
    Family("sm_80 code on 9.0, codes to codes", "90", body(**RELU), card="80", lowest=0.0),
    Family("sm_80 code on 9.0, head", "90", HEAD, "yq", card="80"),
    Family("sm_80 code on 9.0, head to 16-bit features", "90", HEAD, "yq", card="80", fraction=FRACTION),
]
for _code in ("80", "86", "89"):
    FAMILIES += [
        Family(f"sm_{_code} 8-bit products, codes to codes", _code, body(**RELU), lowest=0.0),
        Family(f"sm_{_code} 4-bit products, codes to codes", _code, body(4, 4, **RELU), packed=True, lowest=0.0),
        Family(f"sm_{_code} 8-bit products, residual, floats and codes", _code, body(residual=True), "yq"),
        Family(f"sm_{_code} 4-bit products, residual, floats and codes", _code, body(4, 4, residual=True), "yq", packed=True),
        Family(
            f"sm_{_code} 8-bit products, residual, 16-bit features and codes", _code, body(residual=True), "yq", fraction=FRACTION
        ),
    ]


@dataclass
class Prepared:
    """A family's call on the images of a problem, and its launch. read, written: what its kernel may touch. first: of a
    residual block."""

    family: Family
    problem: ConvProblem
    instance: ConvInstance
    call: CudaCall
    read: list[torch.Tensor]
    started: Launch
    first: ConvInstance | None = None

    def __post_init__(self) -> None:
        self.written = [t for t in (self.call.y, self.call.y_q, self.call.y_acc) if t is not None]
        self._poison = [t.clone() for t in self.written]

    def index(self, row: int, column: int) -> int:
        """The block of a tile, where each has a block of its own; rows and columns of tiles, from the end where they are
        negative."""
        down, across = self.family.tiles(self.problem)
        return row % down * across + column % across

    def execute(self, row: int, column: int, **settings) -> Block:
        """The blocks of a tile of every image on 9.0, else of the first, to their ends; that of the first outputs is returned."""
        for tensor, poison in zip(self.written, self._poison, strict=True):
            tensor.copy_(poison)
        index, parts = self.index(row, column), self.started.grid[1]
        blocks = [launches.run(self.started, (index, part), self.read, self.written, **settings) for part in range(parts)]
        return blocks[0]

    @functools.cached_property
    def _reference(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.first:
            self.instance.x_q = self.first.run("reference", "codes")[1]
        fraction = self.family.fraction
        if fraction is None:
            return self.instance.run("reference", "both")
        residual = self.instance.residual
        if residual is not None:
            self.instance.residual = from_fixed(to_fixed(residual, fraction), fraction)
        stored = to_fixed(self.instance.run("reference", "float")[0], fraction)
        self.instance.residual = residual
        values = from_fixed(stored, fraction).permute(0, 3, 1, 2)
        return stored, ops.quantize(values, self.instance.out_grid, self.instance.out_bits, backend="reference")

    def differences(self, row: int, column: int) -> dict[str, int]:
        """How many results differ from the reference's after the block of a tile has been executed, of all images: those of
        the tile, and everything else from what was there before."""
        height, width = self.family.tile
        scale, (down, across) = self.problem.shuffle, self.family.tiles(self.problem)
        top, left = row % down * height * scale, column % across * width * scale
        want_y, want_q = self._reference
        found = {}
        for tensor, poison in zip(self.written, self._poison, strict=True):
            inside = torch.zeros(tensor.shape, dtype=torch.bool)
            inside[:, top : top + height * scale, left : left + width * scale] = True
            if tensor is self.call.y_q:
                name, want = "codes", want_q
                if self.family.packed:
                    bits = self.instance.out_bits
                    top_codes = inside * ((1 << bits.long()) - 1).to(torch.uint8).view(-1, 1, 1, 1)
                    want, inside = pack_codes(want_q, bits), pack_codes(top_codes, bits) != 0
            elif tensor is self.call.y_acc:
                name, want = "sums", self.instance.run("reference", "acc")[0]
            elif tensor.dtype == torch.uint8:
                name, want = "pixels", want_y.clamp(0, 255).round().to(torch.uint8)
            else:
                name, want = "features", want_y
            expected = torch.where(inside, want, poison)
            if tensor.dtype == torch.float32:
                tensor, expected = tensor.view(torch.int32), expected.view(torch.int32)
            found[name] = int((tensor != expected).sum())
        return found


def prepare(family: Family, problem: ConvProblem) -> Prepared:
    """The family's layer on a problem's images. As many multiprocessors are pretended as an image has tiles: a block of the
    kernels of 9.0 then takes the same tile of each image."""
    down, across = family.tiles(problem)
    answers = {"multiprocessors": down * across}
    first = instantiate(problem)
    first.out_grid = act_grid(family.lowest, 3.0)
    if family.block:
        follows = dataclasses.replace(
            problem, channels=problem.outputs, bits=first.out_bits.tolist(), activation="none", residual=True
        )
        second = instantiate(follows, seed=1)
        second.x_q = first.x_q  # of its size, and never read
        a = conv2d_call(first, packed_x=family.packed, outputs="q")
        b = conv2d_call(second, packed_y=family.packed, outputs=family.outputs, fraction=family.fraction)
        a.args.y_q, b.args.x_q, b.args.x_bits = None, None, a.args.out_bits
        a.args.config = family.config

        def run() -> None:
            host_library().call("adabm_resblock_cuda", a.args, b.args, 0, None)

        b.read = [t for t in b.read if t is not second.x_q]
        read, call, instance = [*a.read, a.packed, *b.read, b.packed], b, second
    else:
        packing = {"packed_x": family.packed, "packed_y": family.packed}
        call = conv2d_call(first, **packing, outputs=family.outputs.replace("i", "y"), fraction=family.fraction)
        if "i" in family.outputs:
            call.y = torch.full(call.y.shape, POISON, dtype=torch.uint8)
            call.args.y, call.args.y_image = None, call.y.data_ptr()
        call.args.config = family.config
        read, instance = [*call.read, call.packed], first

        def run() -> None:
            host_library().call("adabm_conv2d_cuda", call.args, 0, None)

    started = launches.launch(run, family.card or family.code, **answers)
    if family.card:
        started = dataclasses.replace(
            started, kernel=launches.kernel_of(started.kernel.name, family.code), major=int(family.code[0])
        )
    if family.on_wgmma and started.grid[0] != down * across:
        raise ValueError(f"prepare: {family} must have {down * across} blocks, got a grid of {started.grid}")
    return Prepared(family, problem, instance, call, read, started, first if family.block else None)
