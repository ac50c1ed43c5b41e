"""Measures both GPU backends on the layers of EDSR, RDN and SRResNet, for the choice between them, and keeps the times.

    python benchmarks/tune_choice.py            # into this user's table
    python benchmarks/tune_choice.py --package  # into adabm_kernels/backends/gpu_times.json

One image of SIDE x SIDE, every width that a layer's codes are stored in, codes out (floats where three channels leave), inside CUDA
graphs; both backends' results are compared first. Needs a card that both can use.
"""

from __future__ import annotations

import copy
import functools
import sys
from pathlib import Path

import pretend
import torch

pretend.from_arguments()
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import keep  # noqa: E402
from bench_gpu_layers import milliseconds  # noqa: E402
from bench_gpu_networks import converted  # noqa: E402
from gpu_place import place  # noqa: E402

from adabm_kernels.backends import gpu_times  # noqa: E402
from adabm_kernels.nn.conv import IntegerConv2d  # noqa: E402
from adabm_kernels.quantize import pack_codes, padded_channels, storage_bits  # noqa: E402
from adabm_kernels.registry import GPU_BACKENDS, Problem, choose  # noqa: E402

SIDE = 256  # more pixels fill no card better
MODELS = ("edsr_x4", "rdn_b_x4", "srresnet_x4")


def time_layer(conv: IntegerConv2d, bits: int, side: int) -> dict[str, float]:
    """Microseconds of a pass by each GPU backend. Raises RuntimeError where their results differ."""
    channels = conv.weight.shape[-1]
    g = torch.Generator().manual_seed(0)
    codes = torch.zeros(1, side, side, padded_channels(channels), dtype=torch.uint8)
    codes[..., :channels] = torch.randint(0, 2**bits, (1, side, side, channels), dtype=torch.uint8, generator=g)
    widths = torch.full((1,), bits, dtype=torch.int32)
    x_q, bits_of = pack_codes(codes, widths).cuda(), widths.cuda()
    size = (1, side * conv.shuffle, side * conv.shuffle, conv.out_channels)
    results: dict[str, torch.Tensor] = {}
    times: dict[str, float] = {}
    for backend in GPU_BACKENDS:
        layer = copy.deepcopy(conv).cuda()
        layer.set_backend(backend, 0)
        layer.packed_codes = True
        if conv.out_channels <= 3:
            outputs = {"y": torch.empty(size, device="cuda")}
        else:
            y_q = torch.zeros(*size[:3], padded_channels(size[3]), dtype=torch.uint8, device="cuda")
            outputs = {"y_q": y_q, "out_grid": layer.grid, "out_bits": bits_of}
        work = functools.partial(layer.into, x_q, bits_of, **outputs)
        work()
        results[backend] = next(iter(outputs.values())).clone()
        times[backend] = round(milliseconds(work) * 1e3, 3)
    first, second = results.values()
    if not torch.equal(first, second):
        raise RuntimeError(f"{conv.name}: {' and '.join(results)} differ at {bits} bits")
    return times


def layers() -> dict[str, tuple[IntegerConv2d, int]]:
    """{key of a table, by this card's capability: (a layer, bits)}, every shape and stored width once."""
    major, minor = torch.cuda.get_device_capability()
    found: dict[str, tuple[IntegerConv2d, int]] = {}
    for name in MODELS:
        for conv in converted(name).convs():
            low, high = conv.bit_range
            for bits in range(low, high + 1):
                found.setdefault(gpu_times.key(10 * major + minor, conv.shape, storage_bits(bits)), (conv, bits))
    return found


def tune(path: Path) -> None:
    side = pretend.pick(SIDE, 8)
    try:
        for backend in GPU_BACKENDS:
            choose(Problem("cuda"), backend)
    except RuntimeError as error:
        raise SystemExit(f"tune_choice: {error}") from error
    source = place()
    for key, (conv, bits) in layers().items():
        times = time_layer(conv, bits, side)
        print(f"{key}: {', '.join(f'{us:.1f} us by {backend}' for backend, us in times.items())}")
        gpu_times.write_entries(path, {key: {"us": times, "pixels": side * side} | source})


if __name__ == "__main__":
    keep.main(__doc__, gpu_times.TABLE, gpu_times.user_table(), tune)
