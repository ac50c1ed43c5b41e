"""A pretended card, for `--dry-run`: the GPU benchmarks and scripts run from end to end on the CPU, at tiny sizes.

It shows on a machine without a card that they hold together: networks are built, converted and proven, layers are recorded and
timed, and tables are written. Every number is meaningless: the integer reference computes in place of both GPU backends, "graphs"
record nothing, and torch.compile compiles nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
CARD = "pretended card"
CAPABILITY = (9, 0)
active = False
_held = contextlib.ExitStack()


def pick(real: Any, tiny: Any) -> Any:
    """The first value on a card, and the second in a dry run."""
    return tiny if active else real


class _Nothing:
    """Stands for streams, events and graphs. Every call of it does nothing."""

    def __init__(self, *args: Any, **options: Any):
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **options: None


def _is_card(place: Any) -> bool:
    return isinstance(place, (str, torch.device)) and torch.device(place).type == "cuda"


def _on_cpu(factory: Any) -> Any:
    def make(*args: Any, **options: Any) -> Any:
        if _is_card(options.get("device")):
            options["device"] = "cpu"
        return factory(*args, **options)

    return make


def asked(parser: argparse.ArgumentParser) -> None:
    """Adds --dry-run to the arguments of a script, for its help. `from_arguments` has acted on it before."""
    parser.add_argument(
        "--dry-run", action="store_true", help="on the CPU, at tiny sizes: keeps nothing, and no figure means anything"
    )


def from_arguments() -> None:
    """Pretends where the command line asks for it. It must be called before anything is imported that depends on it."""
    if "--dry-run" in sys.argv[1:]:
        install()


def install() -> None:
    """Pretends a card in this process and for good. The user's own tables have no effect and stay as they are."""
    global active
    if active:
        return
    active = True
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads this when it is first imported
    os.environ["XDG_CACHE_HOME"] = _held.enter_context(tempfile.TemporaryDirectory())
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    _pretend_torch()
    _pretend_backends()


def _pretend_torch() -> None:
    properties = SimpleNamespace(name=CARD, major=CAPABILITY[0], minor=CAPABILITY[1], multi_processor_count=1)
    facts = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": CARD,
        "get_device_capability": CAPABILITY,
        "get_device_properties": properties,
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "reset_peak_memory_stats": None,
        "synchronize": None,
        "_sleep": None,
        "current_stream": _Nothing(),
    }
    for name, value in facts.items():
        setattr(torch.cuda, name, lambda *args, value=value: value)
    torch.cuda.Stream = torch.cuda.CUDAGraph = torch.cuda.Event = _Nothing
    torch.cuda.stream = torch.cuda.graph = lambda *args, **options: contextlib.nullcontext()
    torch.Tensor.cuda = lambda self, *args, **options: self
    to = torch.Tensor.to
    torch.Tensor.to = lambda self, *args, **options: self if args and _is_card(args[0]) else to(self, *args, **options)
    for name in ("empty", "zeros", "ones", "full", "tensor", "rand", "randn", "randint"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.compile = lambda model, **options: model


def _pretend_backends() -> None:
    from adabm_kernels import native
    from adabm_kernels.backends import cards, cuda, devices, reference
    from adabm_kernels.backends.call import Conv, Outputs, Place, Quantization, RunResblock, Target
    from adabm_kernels.nn import ConvertedNetwork
    from adabm_kernels.ops import library as operators
    from adabm_kernels.registry import GPU_BACKENDS

    def ready_resblock_out(first: Conv, second: Conv, to: Outputs) -> RunResblock:
        middle, region = first.settings, second.place.region
        end = second.settings

        def run(first_tensors, second_tensors, y, y_q) -> None:
            *a, _ = first_tensors
            *b, depth = second_tensors
            inner = torch.zeros_like(a[0])
            # There are zeros wherever no result is computed.
            inner_place = Place() if depth is None else Place(depth, (*region[:8], 0, 255, 0))
            reference.conv2d_out(Conv(*a, **middle, place=inner_place), Outputs(y_q=inner))
            reference.conv2d_out(Conv(inner, *b[1:], **end, place=Place(depth, region)), Outputs(y, y_q))

        return run

    def quantize_many_out(x: torch.Tensor, targets: list[Target], packed_codes: bool) -> None:
        for target in targets:
            read = Quantization(x, None, target.grid, target.bits, packed_codes=packed_codes, start=target.start)
            reference.quantize_out(read, target.y_q)

    module, library, why_missing = operators.backend_module, native.library, native.why_missing
    stand_in = SimpleNamespace(
        pack=cuda.pack,
        conv2d_out=reference.conv2d_out,
        ready_conv2d_out=reference.ready_conv2d_out,
        tile_depths_out=reference.tile_depths_out,
        quantize_out=reference.quantize_out,
        ready_quantize_out=reference.ready_quantize_out,
        quantize_many_out=quantize_many_out,
        ready_resblock_out=ready_resblock_out,
        image_measure=reference.image_measure,
        layer_bits=reference.layer_bits,
        why_not_resblock=lambda *convs: "" if all(weight.shape[1:] == (3, 3, 64) for weight, _ in convs) else "not 64 channels",
    )
    operators.backend_module = lambda name: stand_in if name in GPU_BACKENDS else module(name)
    # Code that calls the library itself gets that of the tests, which runs the kernels' sources on the CPU.
    native.library = lambda name: _host_library() if name == "cuda" else library(name)
    native.why_missing = lambda name: "" if name == "cuda" else why_missing(name)
    cuda._place = lambda x: (0, None)
    cards.interpreting = lambda: True  # this lets the operators of Triton take tensors in main memory
    devices.why_not_cuda = devices.why_not_triton = lambda device: ""
    import adabm_kernels.tuning.gpu

    adabm_kernels.tuning.gpu.backend_module = lambda name: stand_in if name in GPU_BACKENDS else reference
    ConvertedNetwork._replay = lambda self, x, offset, as_pixels, origin: self._finished(
        x, self._bit_table(x, learn=True, offset=offset), as_pixels, origin
    )


@functools.cache
def _host_library() -> Any:
    from cuda_library import driver, host_library

    _held.enter_context(driver(major=CAPABILITY[0], shared_limit=227 << 10))
    return host_library()
