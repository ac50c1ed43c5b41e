"""The reasons why GPU kernels cannot run on this machine. Imports torch and Triton only when asked."""

from __future__ import annotations

import functools

from .. import native
from ..machine import triton_version
from . import amd, cards

OLDEST_TRITON = (3, 5)
KINDS = ("cpu", "cuda", "meta")  # types of devices; a tensor on "meta" has a shape but no data
OLDEST_CAPABILITY = (8, 0)  # the kernels use int8 instructions of tensor cores that Ampere was the first to have


def why_no_backend(device: str) -> str:
    """The reason why no backend computes on tensors of a device; "" where one does."""
    kind = device.partition(":")[0]
    return "" if kind in KINDS else f"no kernel computes on {kind!r} devices, only on CPUs and CUDA devices"


def why_no_gpu() -> str:
    """The reason why torch can use no GPU here, of NVIDIA or AMD, both of which it calls "cuda"; "" where it can."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA or ROCm"
    if torch.cuda.is_available():
        return ""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # torch found no driver, one that is too old, or no card
        return f"no usable GPU: {_first_line(error)}"
    return f"torch {torch.__version__} with {platform_name()} finds no GPU"


def platform_name() -> str:
    """The platform by which torch reaches cards, with its version: "CUDA 13.0" or "ROCm 6.4"."""
    import torch

    return f"CUDA {torch.version.cuda}" if torch.version.hip is None else f"ROCm {torch.version.hip}"


def why_no_triton() -> str:
    """The reason why Triton cannot be used at all, with a GPU or without; "" where it can."""
    found = triton_version()
    if found == "not installed":
        return "triton is not installed"
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST_TRITON:
        return f"needs triton {'.'.join(map(str, OLDEST_TRITON))} or newer, found {found}"
    return ""


def why_not_triton(device: str | None) -> str:
    """The reason why the Triton kernels cannot compute on tensors of a device, or on any tensors where it is None; "" where they
    can."""
    if why_no_triton():
        return why_no_triton()
    if cards.interpreting():
        return "" if device in (None, "cpu") else "TRITON_INTERPRET=1 runs kernels on the CPU only"
    if why_no_gpu():
        return why_no_gpu()
    if device is not None and not device.startswith("cuda"):
        return f"the tensors are on {device}"
    import torch

    try:
        return _why_not_on(cards.card(device))
    except torch.OutOfMemoryError as error:  # the answer may be another one the next time
        return f"triton cannot be tried: {_first_line(error)}"


@functools.cache
def _why_not_on(index: int) -> str:
    import torch

    name = torch.cuda.get_device_name(index)
    if torch.version.hip is not None:
        found = cards.amd_architecture(index)
        if found not in amd.ARCHITECTURES:
            return f"{name} is a {found}, the kernels are built for {', '.join(amd.ARCHITECTURES)}"
    else:
        capability = torch.cuda.get_device_capability(index)
        found, oldest = (".".join(map(str, pair)) for pair in (capability, OLDEST_CAPABILITY))
        if capability < OLDEST_CAPABILITY:
            return f"{name} has compute capability {found}, the kernels need {oldest} or newer"
        found = f"compute capability {found}"
    try:
        from .triton import probe

        probe(torch.device("cuda", index))
    except torch.OutOfMemoryError:
        raise
    # these errors have no common class: an unknown architecture, a driver too old for Triton's code, no C compiler
    except Exception as error:
        why = _first_line(error) or type(error).__name__
        return f"triton {triton_version()} cannot run on {name} ({found}): {why}"
    return ""


def why_not_cuda(device: str | None) -> str:
    """The reason why the CUDA library cannot compute on tensors of a device, or on any tensors where it is None; "" where it
    can."""
    import torch

    if torch.version.hip is not None:
        return f"torch {torch.__version__} is for AMD cards ({platform_name()}), the CUDA library is for NVIDIA's alone"
    if native.why_missing("cuda"):
        return native.why_missing("cuda")
    if why_no_gpu():
        return why_no_gpu()
    if device is not None and not device.startswith("cuda"):
        return f"the tensors are on {device}"
    return _why_no_kernels_on(cards.card(device))


@functools.cache
def _why_no_kernels_on(index: int) -> str:
    try:
        native.library("cuda").call("adabm_usable_cuda", index)
    except (RuntimeError, ValueError) as error:  # another architecture, or a driver that is too old
        return _first_line(error)
    return ""


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
