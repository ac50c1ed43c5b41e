"""Compares a converted model with its float network on one picture: how much faster it is, and how far apart their outputs are."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any

from .common import timed

if TYPE_CHECKING:
    import numpy as np

    from ..images import Layout
    from ..upscaling.enlarge import Enlarger

# Both models are run again until one of these limits is reached. The median needs few runs, and a large image takes long.
RUNS = 5
SECONDS = 30.0


def compare(network: Enlarger, float_model: Any, rows: np.ndarray, layout: Layout) -> dict[str, Any]:
    """Times both models in turns on a whole picture, after one run of each to warm up, and measures the distance of their outputs.

    The float model runs in the form that is fastest in PyTorch on a CPU, float32 in channels_last. Both models get the same
    windows, both outputs are resized in the same way, and neither model interpolates smooth areas. PSNR is taken over RGB in 0..255
    from outputs that are clamped and not rounded. rows: the picture, [H, W, channels] of the layout's type.
    """
    import torch

    from ..evaluation.metrics import psnr
    from ..nn.timing import wait_for
    from ..upscaling.enlarge import Enlarger
    from ..upscaling.patchwise import FloatPatchwise

    x = network.network.picture_tensor(rows, layout)
    floats = Enlarger(FloatPatchwise(float_model, network.network), network.size, max_pixels=network.max_pixels)
    want = floats.tensor(x)
    wait_for(x.device)
    converted: list[float] = []
    float_times: list[float] = []
    start = time.perf_counter()

    def run(network: Enlarger) -> Any:
        y = network.tensor(x)
        wait_for(x.device)
        return y

    while len(float_times) < RUNS and (not float_times or time.perf_counter() - start < SECONDS):
        y, seconds = timed(lambda: run(network))
        converted.append(seconds)
        float_times.append(timed(lambda: run(floats))[1])
    db = float(psnr(y.clamp(0, 255).cpu(), want.clamp(0, 255).cpu(), 255.0))
    return {
        "seconds": median(converted),
        "runs": len(converted),
        "float_seconds": median(float_times),
        "speed_up": median(float_times) / median(converted),
        "psnr_db": db if db < float("inf") else None,
        "torch": torch.__version__,
    }
