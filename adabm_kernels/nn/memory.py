"""What a forward pass holds in memory."""

from __future__ import annotations

from typing import Any


def bytes_per_pixel(network: Any) -> int:
    """About what a forward pass holds for each low-resolution pixel: features, codes, input and output."""
    spec, s = network.spec, network.scale
    channels = spec.channels
    held = 2 * 4 * channels + 3 * channels  # float features and their codes
    if hasattr(spec, "growth"):  # RDN: two wide buffers, the codes of one, and those of all blocks
        wide = channels + spec.layers * spec.growth
        held += 2 * 4 * wide + wide + spec.blocks * channels
        if getattr(network, "quantizes_early", False):  # a buffer of codes for each layer
            held += sum(channels + layer * spec.growth for layer in range(1, spec.layers))
    if getattr(network, "collapsed", None) is None:
        held += 2 * channels * s**2 * (1 if getattr(network, "full", True) else 4)  # the stages of the upsampler
    return held + 12 + 12 * s**2
