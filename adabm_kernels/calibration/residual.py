"""The unit of features that are held in 16 bits: one power of two for a network, from what it makes of the calibration images."""

from __future__ import annotations

import math

import torch

from ..quantize import MAX_FRACTION, MIN_FRACTION, MOST_FIXED
from ..simulate import SimulatedNetwork

# Noise and checkerboards of full contrast have larger features than any photograph; docs/numerics.md says by how much.
HEADROOM = 4


def largest_feature(model: SimulatedNetwork, batch: torch.Tensor) -> float:
    """The largest magnitude of the features that pass the blocks by, in the quantised network over a batch float32 [N, 3, H, W].

    Raises ValueError where it is NaN or infinite.
    """
    found = [0.0]
    with model.watching(lambda x: found.append(float(x.abs().amax()))):
        model.trunk(batch, model.image_offsets(batch))
    if not all(math.isfinite(value) for value in found):
        raise ValueError("calibrate: the quantised network computes NaN or infinite values: features between its blocks hold some")
    return max(found)


def fraction_for(largest: float) -> int:
    """The largest fraction at which HEADROOM times the largest magnitude fits, MIN_FRACTION..MAX_FRACTION."""
    if largest == 0:
        return MAX_FRACTION
    return min(max(math.floor(math.log2(MOST_FIXED / (HEADROOM * largest))), MIN_FRACTION), MAX_FRACTION)
