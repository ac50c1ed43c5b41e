"""Measures how the Triton convolution is best launched on this card, for the layers of EDSR, RDN and SRResNet, and keeps it.

    python benchmarks/tune_triton.py            # into this user's table
    python benchmarks/tune_triton.py --package  # into adabm_kernels/backends/triton/tuning.json

Every tile, number of warps and of pipeline stages that the card can run is timed as a CUDA graph, after its result has proved equal
to that of the heuristic's. An entry says where and when it was measured, and how long the heuristic's took.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pretend
import torch

pretend.from_arguments()
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import keep  # noqa: E402
from bench_gpu_layers import milliseconds  # noqa: E402
from gpu_place import place  # noqa: E402

from adabm_kernels.backends.call import Conv  # noqa: E402
from adabm_kernels.backends.triton import conv2d, launch, tuning  # noqa: E402
from adabm_kernels.quantize import act_grid, padded_channels  # noqa: E402

LAYERS = [  # channels, outputs, kernel, shuffle, kernels by border class
    (3, 64, 3, 1, False),
    (64, 64, 3, 1, False),
    (64, 256, 3, 2, False),
    (64, 48, 5, 4, True),
    (3, 64, 9, 1, False),
    *((channels, 64, 3, 1, False) for channels in range(128, 577, 64)),
    (576, 64, 1, 1, False),
    (1024, 64, 1, 1, False),
]
TINY_LAYERS = [(3, 16, 3, 1, False), (8, 16, 3, 2, False), (8, 12, 3, 2, True)]  # of a dry run
SIZES = (64, 128, 512)
TILES = [*itertools.product((32, 64, 128, 256), (16, 32, 64, 128), (4, 8), (1, 2, 3, 4))]  # one stage: loads through the L1 cache
BITS = 4


def run(layer: tuple, size: int, config: tuning.Config, inputs: dict[str, torch.Tensor]) -> None:
    channels, outputs, kernel, shuffle, by_class = layer
    x_q, weight = inputs["x_q"], inputs["weight"]
    tuning.measured().clear()
    key = tuning.shape_class(launch.capability(inputs["x_q"].device), padded_channels(channels), kernel, outputs, size * size)
    tuning.measured()[key] = {"config": vars(config)}
    conv2d.conv2d_launch.cache_clear()
    conv = Conv(
        x_q, inputs["bits"], weight, inputs["packed"], inputs["alpha"], inputs["beta"], None, None, inputs["grid"], inputs["bits"],
        False, "none" if by_class else "relu", shuffle,
    )  # fmt: skip
    outputs = (inputs["y"], None) if by_class else (None, inputs["y_q"])
    conv2d.conv2d_out(conv, 0, *outputs, packed_codes=not by_class)


def inputs_of(layer: tuple, size: int) -> dict[str, torch.Tensor]:
    channels, outputs, kernel, shuffle, by_class = layer
    g = torch.Generator().manual_seed(0)
    classes = kernel if by_class else (kernel // 2 + 1) ** 2
    shape = (outputs, kernel, kernel, channels)
    weight = torch.randint(-7, 8, (kernel, kernel, *shape) if by_class else shape, dtype=torch.int8, generator=g)
    width = size * shuffle
    made = {
        "x_q": torch.zeros(1, size, size, padded_channels(channels), dtype=torch.uint8),
        "bits": torch.full((1,), 8 if by_class else BITS, dtype=torch.int32),
        "weight": weight,
        "packed": conv2d.pack(weight, False),
        "alpha": torch.full((7, outputs), 0.01),
        "beta": torch.randn(classes, classes, outputs, generator=g),
        "grid": act_grid(-2.0, 3.0),
        "y": torch.empty(1, width, width, outputs // shuffle**2),
        "y_q": torch.zeros(1, width, width, padded_channels(outputs // shuffle**2), dtype=torch.uint8),
    }
    # Random bytes are packed codes of 4 bits as good as any; the rest of the buffer is nobody's.
    made["x_q"].random_(0, 256, generator=g)
    return {name: tensor.cuda() for name, tensor in made.items()}


def tune_layer(layer: tuple, size: int) -> tuple[str, tuning.Config, dict]:
    channels, outputs, kernel, _, by_class = layer
    inputs = inputs_of(layer, size)
    result = inputs["y"] if by_class else inputs["y_q"]
    guess = tuning.heuristic(outputs, size * size, launch.capability(inputs["x_q"].device))
    run(layer, size, guess, inputs)
    want = result.clone()
    times: dict[tuning.Config, float] = {}
    for config in [guess, *(tuning.Config(*tile) for tile in pretend.pick(TILES, TILES[:2]) if tile[1] <= max(16, 2 * outputs))]:
        try:
            result.fill_(0)
            run(layer, size, config, inputs)
        except Exception as error:  # Triton's are of no common class: too much shared memory, too many registers
            print(f"  {config}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        if not torch.equal(result, want):
            raise RuntimeError(f"{layer} at {size}: {config} gives another result than {guess}")
        times[config] = milliseconds(lambda c=config: run(layer, size, c, inputs))
    best = min(times, key=times.__getitem__)
    key = tuning.shape_class(launch.capability(inputs["x_q"].device), padded_channels(channels), kernel, outputs, size * size)
    print(f"{key}: {times[best] * 1e3:.1f} us with {best}, {times[guess] * 1e3:.1f} us with the heuristic's")
    return key, best, {"us": round(times[best] * 1e3, 2), "heuristic_us": round(times[guess] * 1e3, 2), "pixels": size * size}


def tune(path: Path) -> None:
    if not torch.cuda.is_available():
        raise SystemExit("tune_triton: no GPU that torch can use")
    source = place()
    for layer, size in itertools.product(pretend.pick(LAYERS, TINY_LAYERS), pretend.pick(SIZES, (4,))):
        key, config, figures = tune_layer(layer, size)
        tuning.write_entries(path, {key: (config, figures | source)})


if __name__ == "__main__":
    keep.main(__doc__, tuning.TABLE, tuning.user_table(), tune)
