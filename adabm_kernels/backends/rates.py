"""What cards do in a clock: the one table of it, with its sources. Nothing here was measured by this project.

8-bit rates are dense int8 operations a second of the data sheet / 2 / multiprocessors / boost clock, to the power of two that is
meant.
"""

from __future__ import annotations

from dataclasses import dataclass

L2_BYTES, SHARED_BYTES = 64, 128  # of a multiprocessor in a clock: the width of its two ways to memory
# Each of a multiprocessor's schedulers issues one instruction of one warp in a clock (CUDA C++ Programming Guide, "Compute
# Capabilities", the same from 8.0 to 12.0).
SCHEDULERS = 4


@dataclass(frozen=True)
class Rates:
    """A card of a compute capability.

    int8: 8-bit multiply-accumulates of a multiprocessor in a clock by the instructions that kernels use there; mma_sync: by
    mma.sync where that is another number. 4-bit products, where there are any (8.x), are twice as many. memory: bytes a second.
    assumed: what of it no source states.
    """

    card: str
    source: str
    multiprocessors: int
    gigahertz: float
    memory: float
    int8: int
    mma_sync: int
    assumed: str = ""

    @property
    def memory_bytes(self) -> float:
        """Of a multiprocessor in a clock, where all share the memory's rate."""
        return self.memory / self.multiprocessors / (self.gigahertz * 1e9)


_A100 = Rates("A100 SXM 80 GB", "data sheet: 624 T", 108, 1.41, 2.039e12, 2048, 2048)
_3090 = Rates("RTX 3090", "GA102 white paper: 284 T", 82, 1.70, 0.936e12, 1024, 1024)
_5090 = Rates("RTX 5090", "Blackwell white paper: 838 T", 170, 2.41, 1.792e12, 1024, 1024)
RATES = {
    80: _A100,
    86: _3090,
    87: Rates("Jetson AGX Orin 64 GB", "technical brief: 85 T of the GPU", 16, 1.30, 0.205e12, 2048, 2048),
    89: Rates("RTX 4090", "Ada white paper: 661 T", 128, 2.52, 1.008e12, 1024, 1024),
    90: Rates(
        "H200 SXM", "data sheet: 1979 T, by wgmma alone", 132, 1.83, 4.8e12, 4096, 2048, "mma.sync is taken to run as on 8.0"
    ),
    # 4.5 P of int8 is 8192 a clock, by tcgen05.mma, which no kernel here uses yet: PTX of 9.0 has mma.sync.
    100: Rates("B200", "data sheet: 4.5 P by tcgen05, unused", 148, 1.85, 7.7e12, 2048, 2048, "mma.sync is taken to run as on 8.0"),
    # 0.15 P is a thirtieth of what a B200 has by tcgen05, of which ptxas knows no int8 form here.
    103: Rates(
        "B300", "DataCrunch, B300 against B200: 0.15 P", 148, 1.92, 8.0e12, 256, 256, "mma.sync is taken to reach all of it"
    ),
    120: _5090,
    121: Rates("GB10", "as RTX 5090", 48, 2.41, 0.273e12, 1024, 1024, "its rates in a clock are the RTX 5090's"),
}
UNKNOWN = Rates("a card of another compute capability", "none", 80, 1.5, 0.9e12, 1024, 1024, "all of it")


def rates(capability: int) -> Rates:
    """capability: 90 for 9.0."""
    return RATES.get(capability, UNKNOWN)
