"""What keeps GPU kernels from running on this machine. Imports torch and Triton only when asked."""

from __future__ import annotations

import functools
import os

from .. import native
from ..machine import triton_version

OLDEST_TRITON = (3, 5)
OLDEST_CAPABILITY = (8, 0)  # int8 tensor-core instructions as the kernels use them: Ampere


def why_no_gpu() -> str:
    """Why torch can use no NVIDIA GPU here; empty where it can."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if torch.cuda.is_available():
        return ""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # what torch found: no driver, one that is too old, no card
        return f"no usable GPU: {_first_line(error)}"
    return f"torch {torch.__version__} with CUDA {torch.version.cuda} finds no GPU"


def why_no_triton() -> str:
    """Why Triton cannot be used at all, GPU or not; empty where it can."""
    found = triton_version()
    if found == "not installed":
        return "triton is not installed"
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST_TRITON:
        return f"needs triton {'.'.join(map(str, OLDEST_TRITON))} or newer, found {found}"
    return ""


def interpreting() -> bool:
    """Whether Triton's interpreter, for tests, is on: kernels then run on the CPU, very slowly."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def card(device: str | None) -> int:
    """Index of the card that a device names, as "cuda:1" does; of the current one where it names none ("cuda", None)."""
    import torch

    index = device.partition(":")[2] if device else ""
    return int(index) if index else torch.cuda.current_device()


def why_not_triton(device: str | None) -> str:
    """Why the Triton kernels cannot compute on tensors of a device (None: on any); empty where they can."""
    if why_no_triton():
        return why_no_triton()
    if interpreting():
        return "" if device in (None, "cpu") else "TRITON_INTERPRET=1 runs kernels on the CPU only"
    if why_no_gpu():
        return why_no_gpu()
    if device is not None and not device.startswith("cuda"):
        return f"the tensors are on {device}"
    import torch

    try:
        return _why_not_on(card(device))
    except torch.OutOfMemoryError as error:  # asked again the next time
        return f"triton cannot be tried: {_first_line(error)}"


@functools.cache
def _why_not_on(index: int) -> str:
    import torch

    capability, name = torch.cuda.get_device_capability(index), torch.cuda.get_device_name(index)
    if capability < OLDEST_CAPABILITY:
        found, oldest = (".".join(map(str, pair)) for pair in (capability, OLDEST_CAPABILITY))
        return f"{name} has compute capability {found}, the kernels need {oldest} or newer"
    try:
        from .triton import probe

        probe(torch.device("cuda", index))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of no common class: an unknown architecture, a driver too old for Triton's code, no C compiler
        found, why = ".".join(map(str, capability)), _first_line(error) or type(error).__name__
        return f"triton {triton_version()} cannot run on {name} (compute capability {found}): {why}"
    return ""


def why_not_cuda(device: str | None) -> str:
    """Why the CUDA library cannot compute on tensors of a device (None: on any); empty where it can."""
    if native.why_missing("cuda"):
        return native.why_missing("cuda")
    if why_no_gpu():
        return why_no_gpu()
    if device is not None and not device.startswith("cuda"):
        return f"the tensors are on {device}"
    return _why_no_kernels_on(card(device))


@functools.cache
def _why_no_kernels_on(index: int) -> str:
    try:
        native.library("cuda").call("adabm_usable_cuda", index)
    except (RuntimeError, ValueError) as error:  # another architecture, a driver too old
        return _first_line(error)
    return ""


def capability(device: str | None) -> tuple[int, int]:
    """Compute capability of the card that a device names (card)."""
    import torch

    return torch.cuda.get_device_capability(card(device))


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
