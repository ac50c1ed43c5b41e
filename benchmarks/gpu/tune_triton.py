"""Measures how the Triton convolution is best launched on this card, for the layers of EDSR, RDN and SRResNet, and keeps it.

    python benchmarks/gpu/tune_triton.py            # into this user's table, as `adabm tune` does for a model
    python benchmarks/gpu/tune_triton.py --package  # into adabm_kernels/backends/triton/tuning.json

See adabm_kernels/tuning/gpu.py. An entry says where and when it was measured, and how long the heuristic's config took.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pretend
import torch

pretend.from_arguments()

import keep  # noqa: E402
from bench_gpu_networks import layers_of_networks  # noqa: E402
from gpu_place import place  # noqa: E402

from adabm_kernels.backends.triton import tuning  # noqa: E402
from adabm_kernels.tuning import gpu as tune_gpu  # noqa: E402


def tune(path: Path) -> None:
    if not torch.cuda.is_available():
        raise SystemExit("tune_triton: no GPU that torch can use")
    kinds = tune_gpu.kinds_of(layers_of_networks(), pretend.pick(tune_gpu.SIZES, (8,)), counted=False)
    rounds = functools.partial(tune_gpu.milliseconds, rounds=pretend.pick(20, 1))
    most, clock = pretend.pick(None, 2), tune_gpu.Clock(None)
    tune_gpu.tune_launches(kinds, path, clock, print, place(), most=most, milliseconds=rounds)


if __name__ == "__main__":
    keep.main(__doc__, tuning.TABLE, tuning.user_table(), tune)
