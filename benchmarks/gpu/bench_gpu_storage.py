"""One layer on codes stored in bytes and on the same codes packed, by the same kernel. `bytes_moved` counts the bytes that the
kernel must touch at least.

    pytest benchmarks/gpu/bench_gpu_storage.py --benchmark-only

Skipped without a GPU.
"""

from __future__ import annotations

import pretend
import pytest
import torch
from bench_gpu_networks import measure
from problems import ConvProblem, bell_codes, instantiate, set_weights

from adabm_kernels.quantize import pack_codes, packed_pitch, unpack_codes
from adabm_kernels.registry import GPU_BACKENDS, Problem, choose

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
BATCH, SIZE, CHANNELS = 16, 256, 64


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
@pytest.mark.parametrize("packed", [False, True], ids=["bytes", "packed"])
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def bench_storage(benchmark, backend: str, packed: bool, bits: int) -> None:
    benchmark.group = f"{CHANNELS}->{CHANNELS} 3x3, {BATCH} of {SIZE}x{SIZE}, {bits} bits, by storage"
    try:
        choose(Problem("cuda"), backend)
    except RuntimeError as error:
        pytest.skip(str(error))
    batch, size = pretend.pick((BATCH, SIZE), (2, 12))
    problem = ConvProblem("storage", size, size, CHANNELS, CHANNELS, bits=(bits,), activation="relu")
    instance = instantiate(problem)
    set_weights(instance, bell_codes(4, CHANNELS, CHANNELS), "signed", "auto")
    want = instance.run("reference", "codes")[1]
    layer = instance.layer.cuda()
    layer.set_backend(backend, 0)
    layer.packed_codes = packed
    x_q = pack_codes(instance.x_q, instance.bits) if packed else instance.x_q
    x_q = x_q.expand(batch, -1, -1, -1).contiguous().cuda()
    widths, grid = instance.bits.expand(batch).contiguous().cuda(), instance.out_grid.cuda()
    y_q = torch.zeros_like(x_q)
    layer.into(x_q, widths, y_q=y_q, out_grid=grid, out_bits=widths)
    got = y_q[:1].cpu()
    assert torch.equal(unpack_codes(got, instance.bits) if packed else got, want)
    pitch = packed_pitch(CHANNELS, bits) if packed else CHANNELS
    facts = {"backend": backend, "bits": bits, "bytes_moved": 2 * batch * size * size * pitch}
    measure(benchmark, lambda: layer.into(x_q, widths, y_q=y_q, out_grid=grid, out_bits=widths), **facts)
