"""Machine code on an image so long that its halo begins more than 2^31 bytes before its last pixels."""

from __future__ import annotations

import pytest
import torch
from cuda_calls import conv2d_call
from cuda_library import host_library
from problems import ConvProblem, instantiate
from sass import cubin, launches

pytestmark = pytest.mark.skipif(bool(cubin.why_unavailable()), reason=cubin.why_unavailable())


@pytest.mark.slow
def test_pixels_far_behind_the_first_of_their_halo() -> None:
    """The last tile of 8 rows of 2^20 pixels of 240 channels, 5x5: two rows of its halo lie above the image. Memory that no other
    tile touches is never made."""
    width, seen = 1 << 20, 24
    problem = ConvProblem("far", 8, seen, 240, 16, 5, bits=(8,), out_bits=(8,))
    instance = instantiate(problem)
    want = instance.run("reference", "codes")[1]
    call = conv2d_call(instance, outputs="q")
    x = torch.zeros(1, 8, width, 240, dtype=torch.uint8)
    x[:, :, -seen:] = instance.x_q
    y_q = torch.zeros(1, 8, width, 16, dtype=torch.uint8)
    call.args.width, call.args.x_q, call.args.y_q = width, x.data_ptr(), y_q.data_ptr()
    read = [t for t in call.read if t is not instance.x_q] + [x, call.packed]
    started = launches.launch(lambda: host_library().call("adabm_conv2d_cuda", call.args, 0, None), "80")
    assert started.grid[0] == width // 16
    launches.run(started, (width // 16 - 1, 0), read, [y_q])
    assert torch.equal(y_q[:, :, -16:], want[:, :, -16:])
