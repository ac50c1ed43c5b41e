"""Measures both GPU backends on the layers of EDSR, RDN and SRResNet, for the choice between them, and keeps the times.

    python benchmarks/gpu/tune_choice.py            # into this user's table, as `adabm tune` does for a model
    python benchmarks/gpu/tune_choice.py --package  # into adabm_kernels/backends/gpu_times.json

See adabm_kernels/tuning/gpu.py: one image, every width that a layer's codes are stored in, inside CUDA graphs; both backends'
results are compared first. Needs a card that both can use.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pretend

pretend.from_arguments()

import keep  # noqa: E402
from bench_gpu_networks import layers_of_networks  # noqa: E402
from gpu_place import place  # noqa: E402

from adabm_kernels.backends import gpu_times  # noqa: E402
from adabm_kernels.tuning import gpu as tune_gpu  # noqa: E402


def tune(path: Path) -> None:
    for backend in tune_gpu.GPU_BACKENDS:
        if reason := tune_gpu.why_not(backend):
            raise SystemExit(f"tune_choice: {reason}")
    side, rounds = pretend.pick(tune_gpu.SIDE, 8), functools.partial(tune_gpu.milliseconds, rounds=pretend.pick(20, 1))
    clock, again = tune_gpu.Clock(None), {"again": True}
    tune_gpu.tune_choices(layers_of_networks(), path, clock, print, place(), side=side, milliseconds=rounds, **again)


if __name__ == "__main__":
    keep.main(__doc__, gpu_times.TABLE, gpu_times.user_table(), tune)
