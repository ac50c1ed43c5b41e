"""The backend in Triton: needs a GPU of compute capability 8.0 or newer, or Triton's interpreter. Imports Triton."""

from .conv2d import conv2d_out, pack

__all__ = ["conv2d_out", "pack"]
