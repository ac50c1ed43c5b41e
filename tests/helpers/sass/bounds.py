"""What the kernels may spend: the one table of it. Counted by slots.py on what nvcc 13.0 makes of them, in a tile inside an
image."""

from __future__ import annotations

from typing import NamedTuple


class Bound(NamedTuple):
    """slots: at most so many issue slots of a warp, for a strip of 128 pixels by 64 outputs, or for a tile of a producer.
    clocks: at most so long a latency of the same (timing.py), where it matters. aim: what the slots are to come down to, for which
    there are reasons; slots is no more where that is met."""

    slots: int
    clocks: int = 0
    aim: int = 0


# By layer (families.py) and role. A strip's 18 products take 1152 clocks of the tensor cores on 9.0; on 8.x 8-bit ones 2304, 4-bit
# ones 1152, so that fewer issue slots than that gain nothing.
PRODUCER, PACKED_PRODUCER = Bound(362, 1450, 400), Bound(400, 1900, 400)
BOUNDS: dict[str, dict[str, Bound]] = {
    "sm_90 codes to codes": {"producer": PRODUCER, "consumer": Bound(792, aim=1000)},
    "sm_90 packed 4-bit codes to codes": {"producer": PACKED_PRODUCER, "consumer": Bound(830, aim=1000)},
    "sm_90 residual, floats and codes": {"producer": PRODUCER, "consumer": Bound(900, aim=1200)},
    "sm_90 residual, floats and packed 4-bit codes": {"producer": PACKED_PRODUCER, "consumer": Bound(917, aim=1200)},
    "sm_90 residual, 16-bit features and codes": {"producer": PRODUCER, "consumer": Bound(1180, aim=1200)},
    # A strip's products take 2304 clocks of the tensor cores from 128 channels, and 3200 in the tail.
    "sm_90 staged, 128 to 64 channels": {"producer": Bound(1080, 4900), "consumer": Bound(1580, aim=2304)},
    "sm_90 staged, 5x5 to the image": {"producer": Bound(675, 3100), "consumer": Bound(1310, aim=3200)},
    "sm_90 staged, 5x5 to 8-bit pixels": {"producer": Bound(675, 3100), "consumer": Bound(1525, aim=3200)},
    "sm_90 staged, residual, floats and codes": {"producer": Bound(1080, 4900), "consumer": Bound(1800, aim=2304)},
    "sm_90 residual block": {
        "producer": PRODUCER,
        "first convolution": Bound(655, aim=1100),
        "second convolution": Bound(800, aim=950),
    },
    "sm_90 residual block, packed 4-bit codes": {
        "producer": PACKED_PRODUCER,
        "first convolution": Bound(655, aim=1100),
        "second convolution": Bound(820, aim=950),
    },
    "sm_90 residual block, 16-bit features": {
        "producer": PRODUCER,
        "first convolution": Bound(655, aim=1100),
        "second convolution": Bound(1045, aim=950),
    },
    "sm_80 code on 9.0, codes to codes": {"warp": Bound(1810, aim=2900)},
    "sm_80 code on 9.0, head": {"warp": Bound(2010)},
    "sm_80 code on 9.0, head to 16-bit features": {"warp": Bound(2515)},
}
for _code in ("80", "86", "89"):
    BOUNDS |= {
        f"sm_{_code} 8-bit products, codes to codes": {"warp": Bound(1825, aim=2900)},
        f"sm_{_code} 4-bit products, codes to codes": {"warp": Bound(1525, aim=1290)},
        f"sm_{_code} 8-bit products, residual, floats and codes": {"warp": Bound(2195)},
        f"sm_{_code} 4-bit products, residual, floats and codes": {"warp": Bound(1940)},
        f"sm_{_code} 8-bit products, residual, 16-bit features and codes": {"warp": Bound(2735)},
    }

# The same in the mean over an image of 512x512 pixels.
OVER_IMAGE: dict[str, dict[str, Bound]] = {
    "sm_90 codes to codes": {"consumer": Bound(820, aim=1000)},
    "sm_90 residual block": {"first convolution": Bound(715, aim=1100), "second convolution": Bound(838, aim=950)},
    "sm_90 residual block, 16-bit features": {
        "first convolution": Bound(719, aim=1100),
        "second convolution": Bound(1100, aim=950),
    },
}

# Aims that are not met yet, by layer and role: every other one is, and its bound keeps it so.
MISSED = {("sm_90 residual block, 16-bit features", "second convolution")} | {
    (f"sm_{_code} 4-bit products, codes to codes", "warp") for _code in ("80", "86", "89")
}
