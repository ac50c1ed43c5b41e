"""Sizes of outputs on the command line: the options that ask for them, and how summaries describe them."""

from __future__ import annotations

import argparse

from ..upscaling.sizes import Size, Steps


def asked_size(args: argparse.Namespace) -> Size:
    """The size that the options ask for."""
    return Size(args.scale, args.width, args.height, args.fit)


def in_words(width: int, height: int, steps: Steps) -> str:
    """A phrase that says how a picture of this size was upscaled: "100x80 -> 200x160, resized from 400x320"."""
    words = "{}x{} -> {}x{}".format(width, height, *steps.size)
    if steps.resized:
        words += ", resized from {}x{}".format(*steps.made) if steps.passes else ", resized without the network"
    return words + (f" ({steps.passes} passes)" if steps.passes > 1 else "")
