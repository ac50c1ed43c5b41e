"""Counts what a convolution costs on a GPU, from the kernels' tiles. Nothing here was measured, and nothing asks a card.

There are three counts for every pixel and bit-width, each divided by what a multiprocessor does in a clock: products on its tensor
cores, padding included; bytes that reach it from L2; and bytes to and from its shared memory. The cost is the largest of the three,
because no kernel is faster, and a kernel hides the other two at best. The counts leave out latencies and all other instructions.
The instructions of the CUDA kernels are counted too (`Work.issued`). Those of Triton's kernels are not known, so that the choice
between the two cannot weigh them. The rates are those of rates.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from .rates import SCHEDULERS, SHARED_BYTES, Rates, rates


@dataclass(frozen=True)
class Slots:
    """Issue slots of a warp: see SLOTS_WGMMA."""

    product: int
    result: int
    producer: int = 0


# Issue slots of a warp of the CUDA kernels, for each product of 32 bytes of its pixels with its outputs, and for each of its
# results that leaves as a code in the straight form (docs/gpu_cuda.md; the general form takes several times as many). They were
# read off the machine code as it is executed (benchmarks/gpu/issue_slots.py, nvcc 13.0), and test_sass.py holds them to it.
# producer: the slots of a warp that brings in a tile on 9.0, for each 32 bytes of a pixel.
SLOTS_WGMMA, SLOTS_MMA_SYNC = Slots(product=4, result=11, producer=170), Slots(product=33, result=19)
PIXELS = 512 * 512  # pixels of an image; more of them change nothing


@dataclass(frozen=True)
class ConvShape:
    """The properties of a convolution that decide where it runs fastest.

    bits: fewest and most bits of its input's codes. four_bits: its weights fit 4 signed bits, as they are or as the k' of m = 2k' +
    1. ones: the sum of the codes is to be added. border_kernels: it has a kernel by border class.
    """

    outputs: int
    channels: int
    kernel_h: int
    kernel_w: int
    bits: tuple[int, int] = (8, 8)
    shuffle: int = 1
    border_kernels: bool = False
    four_bits: bool = False
    ones: bool = False

    def __str__(self) -> str:
        low, high = self.bits
        parts = [f"{self.channels} to {self.outputs} channels, {self.kernel_h}x{self.kernel_w}"]
        parts += [f"codes of {low} bits" if low == high else f"codes of {low} to {high} bits"]
        parts += ["4-bit weights"] * self.four_bits + [f"shuffle {self.shuffle}"] * (self.shuffle > 1)
        return ", ".join(parts + ["kernels by border class"] * self.border_kernels)

    @property
    def unfolds(self) -> bool:
        """The rule `unfolds` of csrc/cuda/layout.h."""
        return self.channels <= 4 and self.kernel_w > 1


@dataclass(frozen=True)
class Work:
    """Clocks of a multiprocessor for one pixel of the input: for products, for bytes from L2, for bytes of shared memory, and for
    issuing all instructions, which is None where they were not counted."""

    products: float
    loaded: float
    shared: float
    issued: float | None = None

    @property
    def clocks(self) -> float:
        """The largest of the counts that every backend has."""
        return max(self.products, self.loaded, self.shared)

    @property
    def limit(self) -> str:
        """The name of the count that is largest."""
        counts = {"tensor cores": self.products, "loads from L2": self.loaded, "shared memory": self.shared}
        return max(counts, key=counts.__getitem__)


def _work(products: float, loaded: float, shared: float, card: Rates, rate: int, slots: float | None = None) -> Work:
    # Whatever is loaded is also written to shared memory.
    issued = None if slots is None else slots / SCHEDULERS
    return Work(products / rate, loaded / card.l2, (loaded + shared) / SHARED_BYTES, issued)


def output_tiles(outputs: int, shuffle: int) -> tuple[int, int]:
    """The number of tiles and the outputs computed in each by the CUDA kernels (csrc/cuda/layout.h, output_tiling)."""
    subs = shuffle**2
    group = outputs // subs
    tiles_per_sub = -(-group // 64)
    subs_per_tile = 1 if tiles_per_sub > 1 else min(64 // group, subs)
    most = 64 if tiles_per_sub > 1 else subs_per_tile * group
    return -(-subs // subs_per_tile) * tiles_per_sub, -(-most // 16) * 16


def slices(shape: ConvShape, bits: int) -> int:
    """Products of 32 bytes that a tile of the CUDA kernels takes in 8- or 4-bit form (csrc/cuda/layout.h, make_form)."""
    row = shape.kernel_w * 4 if shape.unfolds else -(-shape.channels * bits // 8)
    taps = shape.kernel_h * (1 if shape.unfolds else shape.kernel_w)
    planes = 2
    while taps == 1 and planes < 8 and planes * 16 < row:
        planes *= 2
    return -(-row // (planes * 16)) * taps * planes // 2


def on_wgmma(shape: ConvShape) -> bool:
    """Tells whether the CUDA library has a kernel of compute capability 9.0 for the layer (csrc/cuda/conv2d_sm90.cu,
    why_not_conv2d)."""
    steps = -(-shape.channels // 32)
    enough = output_tiles(shape.outputs, shape.shuffle)[1] >= 48 and steps * shape.kernel_h * shape.kernel_w >= 9
    return not shape.unfolds and enough


def cuda_work(capability: int, shape: ConvShape, bits: int) -> Work:
    """The work of the CUDA library for a pixel with codes of `bits` bits. capability: 90 for 9.0."""
    from ..quantize import packed_pitch, storage_bits

    card = rates(capability)
    tiles, width = output_tiles(shape.outputs, shape.shuffle)
    pitch = packed_pitch(shape.channels, storage_bits(bits))
    if capability == 90 and on_wgmma(shape):
        # A tile is 16x32 pixels by 64 outputs. A product of 128 pixels by 32 bytes reads pixels from shared memory, and weights too
        # unless they are held in registers.
        steps, taps = -(-shape.channels // 32), shape.kernel_h * shape.kernel_w
        resident = steps == 2 and shape.kernel_h == shape.kernel_w == 3 and not shape.border_kernels and not shape.ones
        halo = (16 + shape.kernel_h - 1) * (32 + shape.kernel_w - 1) / 512
        loaded = halo * pitch + (0 if resident else steps * taps * 32 * width / 512)
        shared = steps * taps * (32 + (0 if resident else 64 * 32 / 128))
        # Four warps compute a strip of 128 pixels by 64 rows: each takes part in all products and has 64 results a lane. Four more
        # warps bring tiles in.
        slots = SLOTS_WGMMA.product * steps * taps + SLOTS_WGMMA.result * 64 + SLOTS_WGMMA.producer * steps / 4
        return _work(tiles * steps * taps * 32 * 64, tiles * loaded, tiles * shared, card, card.int8, tiles * 4 * slots / 128)
    four = bits <= 4 and shape.four_bits and not shape.unfolds and capability // 10 == 8
    count = slices(shape, 4 if four else 8)
    # A tile is 8x16 pixels, and eight more columns of every product sum the codes. Each of four warps reads its 32 pixels and all
    # weights.
    halo = (8 + shape.kernel_h - 1) * (16 + (1 if shape.unfolds else shape.kernel_w) - 1) / 128
    loaded = halo * pitch * (shape.kernel_w if shape.unfolds else 1) + count * 32 * width / 128
    # Each of four warps has 32 pixels by all outputs, and so as many results a lane as there are outputs.
    slots = 4 * (SLOTS_MMA_SYNC.product * count * (width + 8) / 72 + SLOTS_MMA_SYNC.result * width) / 128
    # A slice is one matrix instruction in either form: 64 codes of 4 bits take the time of 32 codes of 8 bits.
    products, shared = tiles * count * 32 * (width + 8), tiles * count * (32 + width)
    return _work(products, tiles * loaded, shared, card, card.mma_sync, tiles * slots)


def triton_work(capability: int, shape: ConvShape, bits: int) -> Work:
    """The work of the Triton kernels for a pixel with packed codes of `bits` bits. Imports Triton. capability: 90 for 9.0."""
    from ..quantize import packed_pitch, padded_channels, storage_bits
    from .triton import conv2d

    side, channels = round(PIXELS**0.5), padded_channels(shape.channels)
    weight: tuple[int, ...] = (shape.outputs, shape.kernel_h, shape.kernel_w, shape.channels)
    if shape.border_kernels:
        weight = (shape.kernel_h, shape.kernel_w, *weight)
    group = shape.outputs // shape.shuffle**2
    colours = group <= 3  # these outputs leave as floats
    constants, programs = conv2d.conv2d_launch(
        capability, (1, side, side, channels), weight, conv2d.Layout.of(weight, ones=shape.ones).offsets()[-1], activation="none",
        shuffle=shape.shuffle, packed_codes=True, residual=False,
        y=conv2d.FEATURES if colours else 0, y_pitch=group if colours else 0, codes=not colours,
    )  # fmt: skip
    stored = storage_bits(bits)
    m, n, k = constants["BLOCK_M"], constants["BLOCK_N"], constants[f"BLOCK_K_{stored}"]
    blocks = -(-(shape.shuffle**2) * constants["AXIS"] // n)
    row = shape.kernel_w * packed_pitch(shape.channels, stored)
    read = shape.kernel_h * -(-row // k) * k  # bytes of codes that products are made of, padding included
    parts = 8 // stored
    warps_m, warps_n = _warps(m, n, constants["num_warps"], capability)
    loaded = shape.kernel_h * row + parts * read * n / m
    shared = read * warps_n + parts * read * n * warps_m / m
    if conv2d.kernel_of(constants) is conv2d.persistent_kernel:
        # A tile's pixels with their border come once, through the L1 cache, and weights come once for each program. Every tap is
        # nevertheless written to shared memory.
        height, width = m // conv2d.PATCH_WIDTH.value, conv2d.PATCH_WIDTH.value
        halo = (height + shape.kernel_h - 1) * (width + shape.kernel_w - 1) / m
        shared += read - halo * packed_pitch(shape.channels, stored)
        loaded = halo * packed_pitch(shape.channels, stored) + parts * read * n * programs / blocks / PIXELS
    products = parts * read * (n + 16 * shape.ones)
    card = rates(capability)
    return _work(blocks * products, blocks * loaded, blocks * shared, card, card.int8)


def _warps(m: int, n: int, warps: int, capability: int) -> tuple[int, int]:
    """Returns how often each weight and how often each code is read from shared memory. This depends on how a tile is divided among
    warps (Triton's layout of mma.sync with tiles of 16x8; on 9.0 warpgroups of four warps, which share their reads of the
    weights)."""
    if capability == 90:
        return warps // 4, 1
    along_m = along_n = 1
    while along_m * along_n < warps:
        if m / 16 / along_m >= n / 16 / along_n and along_m < m / 16:
            along_m *= 2
        else:
            along_n *= 2
    return along_m, along_n


WORK = {"cuda": cuda_work, "triton": triton_work}


def _by_bits(backend: str, capability: int, shape: ConvShape) -> list[Work]:
    low, high = shape.bits
    return [WORK[backend](capability, shape, bits) for bits in range(low, high + 1)]


def clocks(backend: str, capability: int, shape: ConvShape) -> float:
    """The mean of the clocks for a pixel over the bit-widths of the layer's codes, each counted alike."""
    work = _by_bits(backend, capability, shape)
    return sum(each.clocks for each in work) / len(work)


def described(backend: str, capability: int, shape: ConvShape) -> str:
    """The clocks in words, with the name of the largest count: "20.2 (tensor cores)"."""
    limits = dict.fromkeys(each.limit for each in _by_bits(backend, capability, shape))
    return f"{clocks(backend, capability, shape):.3g} ({', '.join(limits)})"
