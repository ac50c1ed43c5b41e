"""Loads the model of a command and sets it as the options ask."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..upscaling.sizes import Size
from .common import keeping_imports

if TYPE_CHECKING:
    from ..upscaling.enlarge import Enlarger
    from ..upscaling.patchwise import Patchwise


@keeping_imports()
def load_network(args: argparse.Namespace) -> tuple[Patchwise, dict[str, Any]]:
    """Returns two values: the model as the options ask for it, and what a report says about it."""
    import torch

    from ..models import configure, load_model

    # The float model runs on torch's own threads, so both models get the same number.
    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    model = load_model(args.model)
    configure(model, args.bits, args.backend, threads, args.device, args.depth, args.graph)
    from ..upscaling.patchwise import Patchwise

    names = ("tile", "halo", "protocol", "tta", "max_memory", "smooth")
    try:
        network = Patchwise(model, **{name: getattr(args, name) for name in names})
    except ValueError as error:
        raise ValueError(f"--{error}".replace("--tile", "--window", 1)) from error
    backend = model.backend_summary()
    settings = {"model": args.model, "backend": backend, "threads": threads, "bits": args.bits, "depth": args.depth}
    settings |= {"halo": network.halo, "protocol": args.protocol, "tta": args.tta}
    settings |= {"smooth": "interpolate" if network.interpolates else "network"}
    return network, settings


def load_enlarger(args: argparse.Namespace, size: Size) -> tuple[Enlarger, dict[str, Any]]:
    """Returns two values as `load_network` does, for outputs of the size that the options ask for."""
    network, settings = load_network(args)
    from ..upscaling.enlarge import Enlarger

    return Enlarger(network, size, max_pixels=args.max_pixels), settings
