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
PRODUCER, PACKED_PRODUCER = Bound(412, 1450, 400), Bound(412, 1900, 400)
BOUNDS: dict[str, dict[str, Bound]] = {
    "sm_90 codes to codes": {"producer": PRODUCER, "consumer": Bound(820, aim=1000)},
    "sm_90 packed 4-bit codes to codes": {"producer": PACKED_PRODUCER, "consumer": Bound(830, aim=1000)},
    "sm_90 residual, floats and codes": {"producer": PRODUCER, "consumer": Bound(1180, aim=1200)},
    "sm_90 residual, floats and packed 4-bit codes": {"producer": PACKED_PRODUCER, "consumer": Bound(1190, aim=1200)},
    "sm_90 residual, 16-bit features and codes": {"producer": Bound(412, 1520, 400), "consumer": Bound(1600, aim=1200)},
    # The general form, which chooses its sums by comparisons: more than before the straight forms (5790 and 3550).
    "sm_90 staged, 128 to 64 channels": {"producer": Bound(1190, 4900), "consumer": Bound(7900)},
    "sm_90 staged, 5x5 to the image": {"producer": Bound(735, 3100), "consumer": Bound(5750)},
    "sm_90 residual block": {
        "producer": PRODUCER,
        "first convolution": Bound(655, aim=1100),
        "second convolution": Bound(960, aim=950),
    },
    "sm_90 residual block, packed 4-bit codes": {
        "producer": PACKED_PRODUCER,
        "first convolution": Bound(655, aim=1100),
        "second convolution": Bound(995, aim=950),
    },
    "sm_90 residual block, 16-bit features": {
        "producer": PRODUCER,
        "first convolution": Bound(655, aim=1100),
        "second convolution": Bound(1345, aim=950),
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
    "sm_90 codes to codes": {"consumer": Bound(894, aim=1000)},
    "sm_90 residual block": {"first convolution": Bound(715, aim=1100), "second convolution": Bound(1115, aim=950)},
    "sm_90 residual block, 16-bit features": {
        "first convolution": Bound(719, aim=1100),
        "second convolution": Bound(1539, aim=950),
    },
}

# Aims that are not met yet, by layer and role: every other one is, and its bound keeps it so.
MISSED = {
    (family, role)
    for family, roles in {
        "sm_90 codes to codes": ("producer",),
        "sm_90 packed 4-bit codes to codes": ("producer",),
        "sm_90 residual, floats and codes": ("producer",),
        "sm_90 residual, floats and packed 4-bit codes": ("producer",),
        "sm_90 residual, 16-bit features and codes": (
            "producer",
            "consumer",
        ),
        "sm_90 residual block": (
            "producer",
            "second convolution",
        ),
        "sm_90 residual block, packed 4-bit codes": (
            "producer",
            "second convolution",
        ),
        "sm_90 residual block, 16-bit features": (
            "producer",
            "second convolution",
        ),
    }.items()
    for role in roles
} | {(f"sm_{_code} 4-bit products, codes to codes", "warp") for _code in ("80", "86", "89")}
