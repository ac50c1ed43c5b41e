"""A thread block: its warps in turns, what they share, and what must be in order when it ends."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from . import access, barriers, control, floating, half, integer, movement, products  # noqa: F401 - they register their instructions
from .barriers import Barriers
from .cubin import Kernel
from .machine import LANES, WORD, MachineError, Program, Warp
from .memory import Global, Region, Shared

# Where a kernel's shared memory begins: 9.0 keeps the first kilobyte for itself.
SHARED_BASE = {8: 0, 9: 1024}
# Where 9.0 has the address of the window of parameters, and where in constant bank 0 the window begins.
WINDOW_POINTER, WINDOW_PLACE, _WINDOW = 0x198, 0x210, 1 << 46
DRIVER_MAP_BYTES, HOST_MAP = 128, "<Q4q3q4i"  # CUtensorMap; cuda_host::TensorMap
_PROGRAMS: dict[int, Program] = {}


@dataclass(frozen=True)
class Launch:
    """What a kernel is started with. parameters: the bytes of its only one. major: of the compute capability."""

    kernel: Kernel
    grid: tuple[int, int]
    threads: int
    shared_bytes: int
    parameters: bytes
    major: int


def program_of(kernel: Kernel) -> Program:
    found = _PROGRAMS.get(id(kernel))
    if found is None or found.kernel is not kernel:
        found = _PROGRAMS[id(kernel)] = Program(kernel)
    return found


class Block:
    """One block of a launch.

    order: in which its warps get their turns, "ascending" or "descending". trace: warps of which every executed instruction is
    kept.
    """

    def __init__(
        self,
        launch: Launch,
        index: tuple[int, int],
        regions: list[Region],
        *,
        program: Program | None = None,
        order: str = "ascending",
        trace: tuple[int, ...] = (),
    ):
        kernel = launch.kernel
        if len(launch.parameters) > kernel.parameter_bytes:
            raise ValueError(
                f"launch: parameters of {kernel.name} must be {kernel.parameter_bytes} bytes, got {len(launch.parameters)}"
            )
        if launch.threads % LANES:
            raise ValueError(f"launch: threads must be a multiple of {LANES}, got {launch.threads}")
        self.launch, self.index, self.grid, self.threads = launch, index, launch.grid, launch.threads
        self.program = program or program_of(kernel)
        self.banks: dict[int, np.ndarray] = {}
        for number, content in kernel.banks.items():
            self.banks[number] = np.frombuffer(content + bytes(-len(content) % 4), np.uint8).copy()
        bank = self.banks[0]
        bank[:24] = np.frombuffer(struct.pack("<6I", launch.threads, 1, 1, *launch.grid, 1), np.uint8)
        bank[kernel.parameters : kernel.parameters + len(launch.parameters)] = np.frombuffer(launch.parameters, np.uint8)
        if launch.major >= 9:
            bank[WINDOW_POINTER : WINDOW_POINTER + 8] = np.frombuffer(struct.pack("<Q", _WINDOW), np.uint8)
        self.banks32 = {number: content.view(WORD) for number, content in self.banks.items()}
        self.memory = Global(regions)
        self.shared = Shared(SHARED_BASE[launch.major], launch.shared_bytes)
        self.barriers = Barriers(self)
        self.warps = [Warp(self, number) for number in range(launch.threads // LANES)]
        for number in trace:
            self.warps[number].trace = []
        self.order = order
        self.core_matrices = self.unaligned = 0
        self._issued: dict[tuple[int, int], tuple] = {}
        self._next: dict[int, int] = {}
        # Words that warps wrote ordinarily and published by arriving somewhere, oldest first: whoever waited since may fence them
        # too.
        self._published: list[np.ndarray] = []
        self.fences = any(instruction.opcode.startswith("FENCE") for instruction in kernel.code)

    def run(self) -> Block:
        """To its end. Raises MachineError for what must not happen."""
        warps = self.warps if self.order == "ascending" else self.warps[::-1]
        while any(w.alive for w in warps):
            gone_on = False
            for w in warps:
                gone_on |= w.run()
            if not gone_on:
                raise MachineError(f"block {self.index}: deadlock: {'; '.join(self._waiting())}")
        self._check_end()
        return self

    def _waiting(self) -> list[str]:
        found = []
        for w in self.warps:
            for fragment in w.fragments:
                place = self.program.code[fragment.index].address if fragment.index < len(self.program.code) else 0
                found.append(f"warp {w.number} (lanes {fragment.mask:08x}) at {place:#x} waits for {fragment.what or 'its turn'}")
            if not w.fragments and w.alive:
                found.append(f"warp {w.number}: lanes that have parted wait for one another")
        return found

    def ended(self, w: Warp, lanes: int) -> None:
        if not w.alive and w.copies:
            raise MachineError(f"warp {w.number} ends with asynchronous copies under way")
        if not w.alive and w.flight.sums:
            raise MachineError(f"warp {w.number} ends with products under way")

    def _check_end(self) -> None:
        self.barriers.check_end()
        lengths = {n: self._next.get(n, 0) for n in range(len(self.warps))}
        for group in range(len(self.warps) // 4):
            counts = {lengths[4 * group + i] for i in range(4)}
            if len(counts) > 1:
                raise MachineError(f"the warps of warpgroup {group} have issued different numbers of products: {sorted(counts)}")

    # -- what products and fences ask of the block

    def same_for_group(self, w: Warp, issued: tuple) -> None:
        """The four warps of a warpgroup issue the same products on the same matrices."""
        n = self._next.get(w.number, 0)
        self._next[w.number] = n + 1
        first = self._issued.setdefault((w.number // 4, n), issued)
        if first != issued:
            raise MachineError(
                f"the warps of a warpgroup part: one issues a product at {first[0]:#x}, another at {issued[0]:#x}, or on others"
            )

    def count_reads(self, w: Warp, descriptor: int, columns: int) -> None:
        """How many core matrices of 128 bytes products read, and how many of them begin elsewhere than at a multiple of 128."""
        start, along, across = (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4, (descriptor >> 16 & 0x3FFF) << 4
        if w.number % 4 == 0:
            places = start + along * np.arange(columns // 8)[:, None] + across * np.arange(2)[None, :]
            self.core_matrices += places.size
            self.unaligned += int((places % 128 != 0).sum())

    def wrote(self, w: Warp, words: np.ndarray) -> None:
        """The warp wrote words of shared memory ordinarily."""
        if self.fences:
            w.unfenced.append(words)
            w.unpublished.append(words)

    def publish(self, w: Warp) -> None:
        """An arrival at a barrier: what the warp wrote may be fenced by those who wait for it."""
        self._published.extend(w.unpublished)
        w.unpublished = []

    def acquire(self, w: Warp) -> bool:
        """A wait that is over."""
        w.acquired = len(self._published)
        return True

    def fence_published(self, w: Warp) -> None:
        """The warp fences, for its own products, what others had published when it last waited."""
        for words in self._published[w.fenced : w.acquired]:
            self.shared.readers[words] |= np.uint32(1 << w.number)
        w.fenced = max(w.fenced, w.acquired)

    def tensor_map(self, address: int) -> tuple[int, list[int], list[int], list[int]]:
        """(base, sizes, strides of all but the innermost, box) of the tensor map that ends a kernel's parameter. The host runtime's
        map is shorter than the driver's, and stands where that one begins."""
        kernel, parameters = self.launch.kernel, self.launch.parameters
        place = address - _WINDOW + WINDOW_PLACE - kernel.parameters
        if place != kernel.parameter_bytes - DRIVER_MAP_BYTES:
            raise MachineError(f"a tensor map at byte {place} of the {kernel.parameter_bytes} bytes of parameters")
        base, *numbers = struct.unpack(HOST_MAP, parameters[-struct.calcsize(HOST_MAP) :])
        return base, numbers[:4], numbers[4:7], numbers[7:]

    # -- results

    @property
    def slots(self) -> int:
        return sum(w.slots for w in self.warps)
