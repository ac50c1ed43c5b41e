"""Upscaling with many machines, by Ray Data (`pip install 'adabm-kernels[ray]'`; docs/scale.md). Importing this loads no Ray."""

from .dataset import Summary, upscale_dataset

__all__ = ["Summary", "upscale_dataset"]
