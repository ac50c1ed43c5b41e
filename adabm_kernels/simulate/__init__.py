"""AdaBM in plain torch on floats, as published. The integer kernels are tested against it.

Hong and Lee, "AdaBM: On-the-Fly Adaptive Bit Mapping for Image Super-Resolution", CVPR 2024 (arXiv 2404.03296). Every quantised
convolution rounds its input and its weight to their grids and convolves the rounded floats. The bits of its input are base bits +
image offset + layer offset. Parameter names are those of the authors' implementation, so its state dicts load unchanged.
"""

from ..image_bits import LUMA, image_measure, image_offsets, soft_image_offsets
from .conv import END_BITS, SimulatedConv2d
from .network import SimulatedNetwork
from .traced import SimulatedGraph

__all__ = [
    "END_BITS",
    "LUMA",
    "SimulatedConv2d",
    "SimulatedGraph",
    "SimulatedNetwork",
    "image_measure",
    "image_offsets",
    "soft_image_offsets",
]
