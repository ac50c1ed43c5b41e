"""The rates of cards for each clock, in one table with its sources. Nothing here was measured by this project.

An 8-bit rate is the data sheet's dense int8 operations a second / 2 / multiprocessors / boost clock, rounded to the power of two
that is meant. Bytes from L2 are those that published microbenchmarks read, not the width of the way (see L2).
"""

from __future__ import annotations

from dataclasses import dataclass

SHARED_BYTES = 128  # bytes of a multiprocessor in a clock, the width of its way to shared memory
# Each of a multiprocessor's schedulers issues one instruction of one warp in a clock (CUDA C++ Programming Guide, "Compute
# Capabilities", the same from 8.0 to 12.0).
SCHEDULERS = 4


@dataclass(frozen=True)
class L2:
    """Bytes a second that all multiprocessors of a card together read from L2 in a published microbenchmark, and the clock of the
    card."""

    card: str
    bytes_a_second: float
    multiprocessors: int
    gigahertz: float

    @property
    def bytes_a_clock(self) -> float:
        """Bytes that one multiprocessor reads in a clock."""
        return self.bytes_a_second / self.multiprocessors / (self.gigahertz * 1e9)


# The source is github.com/te42kyfo/gpu-benches, commit 1c36d50 of 2024: gpu-l2-cache/*.txt, the plateau of data sets of 10 to 25
# MB, which lie in L2 and in no L1 cache; for the A40 it is gpu-cache/a40.txt at 2 to 5 MB, because its L2 holds no more. The clocks
# are the cards' boost clocks, which the files do not state: a card that ran slower did more in a clock. The way to a multiprocessor
# is 64 bytes wide.
MEASURED_L2 = {
    80: L2("A100 80 GB", 5.42e12, 108, 1.41),
    86: L2("A40", 2.43e12, 84, 1.74),
    89: L2("L40", 5.21e12, 142, 2.49),
    90: L2("H200", 9.77e12, 132, 1.98),
}


@dataclass(frozen=True)
class Rates:
    """The rates of a card of one compute capability.

    int8: 8-bit multiply-accumulates of a multiprocessor in a clock, by the instructions that the kernels use there. mma_sync: the
    same by mma.sync, where that is another number. 4-bit products, where there are any (8.x), are twice as many. memory: bytes a
    second. l2: bytes that a multiprocessor gets from L2 in a clock (MEASURED_L2, rounded). assumed: the rates that no source
    states.
    """

    card: str
    source: str
    multiprocessors: int
    gigahertz: float
    memory: float
    int8: int
    mma_sync: int
    l2: int
    assumed: str = ""

    @property
    def memory_bytes(self) -> float:
        """Bytes of memory for one multiprocessor in a clock, where all multiprocessors share the memory's rate."""
        return self.memory / self.multiprocessors / (self.gigahertz * 1e9)


_A100 = Rates("A100 SXM 80 GB", "data sheet: 624 T", 108, 1.41, 2.039e12, 2048, 2048, 36)
_3090 = Rates("RTX 3090", "GA102 white paper: 284 T", 82, 1.70, 0.936e12, 1024, 1024, 17)
_5090 = Rates("RTX 5090", "Blackwell white paper: 838 T", 170, 2.41, 1.792e12, 1024, 1024, 15, "its bytes from L2 are those of 8.9")
RATES = {
    80: _A100,
    86: _3090,
    87: Rates(
        "Jetson AGX Orin 64 GB",
        "technical brief: 85 T of the GPU",
        16,
        1.30,
        0.205e12,
        2048,
        2048,
        17,
        "its bytes from L2 are those of 8.6",
    ),
    89: Rates("RTX 4090", "Ada white paper: 661 T", 128, 2.52, 1.008e12, 1024, 1024, 15),
    90: Rates(
        "H200 SXM", "data sheet: 1979 T, by wgmma alone", 132, 1.83, 4.8e12, 4096, 2048, 37, "mma.sync is taken to run as on 8.0"
    ),
    # 4.5 P of int8 is 8192 a clock, by tcgen05.mma. No kernel here uses that yet, because PTX of 9.0 has mma.sync only.
    100: Rates(
        "B200",
        "data sheet: 4.5 P by tcgen05, unused",
        148,
        1.85,
        7.7e12,
        2048,
        2048,
        37,
        "mma.sync is taken to run as on 8.0, its bytes from L2 are those of 9.0",
    ),
    # 0.15 P is a thirtieth of what a B200 has by tcgen05. For this card ptxas knows no int8 form of tcgen05.
    103: Rates(
        "B300",
        "DataCrunch, B300 against B200: 0.15 P",
        148,
        1.92,
        8.0e12,
        256,
        256,
        37,
        "mma.sync is taken to reach all of it, its bytes from L2 are those of 9.0",
    ),
    120: _5090,
    121: Rates("GB10", "as RTX 5090", 48, 2.41, 0.273e12, 1024, 1024, 15, "its rates in a clock are the RTX 5090's"),
}
UNKNOWN = Rates("a card of another compute capability", "none", 80, 1.5, 0.9e12, 1024, 1024, 15, "all of it")


def rates(capability: int) -> Rates:
    """The rates of a compute capability. capability: 90 for 9.0."""
    return RATES.get(capability, UNKNOWN)
