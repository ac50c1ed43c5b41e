"""How kernels are launched: measured entries of a table, and a heuristic for what was not measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Conv2dConfig:
    """Tile of pixels by outputs, warps of a block, stages of the software pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, Any]:
        # No fusion but the one that tl.fma asks for: floats equal the reference's.
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": False}


def conv2d_config(capability: int, reduction: int, outputs: int, pixels: int) -> Conv2dConfig:
    return Conv2dConfig(128 if pixels >= 4096 else 64, 64 if outputs > 32 else 32 if outputs > 16 else 16, 4, 3)
