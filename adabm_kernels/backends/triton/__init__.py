"""The backend in Triton, which needs a GPU of compute capability 8.0 or newer, or Triton's interpreter. Importing it imports
Triton.
"""

import torch

from .. import reference
from ..call import Conv, Outputs, Packing
from ..cards import interpreting

if interpreting():
    from .interpret import install

    install()

from .conv2d import conv2d_out, pack, ready_conv2d_out
from .depths import tile_depths_out
from .image_bits import image_measure, layer_bits
from .quantize import quantize_out, ready_quantize_out

__all__ = [
    "conv2d_out",
    "image_measure",
    "layer_bits",
    "pack",
    "probe",
    "quantize_out",
    "ready_conv2d_out",
    "ready_quantize_out",
    "tile_depths_out",
]


def probe(device: torch.device) -> None:
    """Compiles and runs a small convolution on a device.

    Raises whatever error keeps it from running, and RuntimeError where the result is wrong.
    """
    weight = torch.arange(-72, 72, dtype=torch.int8, device=device).view(4, 3, 3, 4)
    x_q = torch.arange(48, dtype=torch.uint8, device=device).view(1, 3, 4, 4)
    bits = torch.full((1,), 8, dtype=torch.int32, device=device)
    tables = torch.ones(7, 4, device=device), torch.zeros(4, 4, 4, device=device)
    y = torch.empty(1, 3, 4, 4, dtype=torch.int32, device=device)
    conv = Conv(x_q, bits, weight, pack(weight, Packing()), *tables, None, None, None, None, False, "none", 1)
    conv2d_out(conv, Outputs(y))
    if not torch.equal(y, reference.accumulate(x_q, weight, False)):
        raise RuntimeError("a small convolution gives wrong results")
