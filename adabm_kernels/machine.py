"""Facts about this machine that a report or a measurement names: processor, cards, versions. And whether an error means that its
memory does not suffice."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

_WANT_OF_MEMORY = re.compile(
    r"allocate memory|failed to map segment|cannot (create|allocate) [\w ]*mapping|can't start new thread|std::bad_alloc"
    r"|can't allocate (read )?lock|out of memory"
)


def describe_machine() -> dict[str, Any]:
    """The system, cpu and gpu in words, and the number of cores that this process may use. Imports torch to ask for the GPU."""
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "gpu": gpu_name(),
    }


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter here, "not installed" where one is missing."""
    packages = ("torch", "numpy", "pillow", "safetensors")
    return {
        "adabm-kernels": version("adabm-kernels"),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "triton": triton_version(),
    }


def version(distribution: str) -> str:
    """Version of an installed distribution, or "not installed"."""
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def triton_version() -> str:
    """`triton.__version__`, or "not installed".

    The distribution that holds the module has another name on other platforms: triton-windows, pytorch-triton-rocm. The version is
    read off the file of the module, because importing Triton takes a noticeable part of a second.
    """
    from importlib.util import find_spec

    if loaded := sys.modules.get("triton"):
        return loaded.__version__
    spec = find_spec("triton")
    if spec is None or spec.origin is None:  # there is no module, or only a folder of that name
        return "not installed"
    line = re.search(r"""^__version__\s*=\s*["']([^"']+)["']""", Path(spec.origin).read_text(encoding="utf-8"), re.MULTILINE)
    if line:
        return line[1]
    import triton

    return triton.__version__


def usable_cores() -> int:
    """The number of cores this process may run on, which a container can make smaller than that of the machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def resident_bytes() -> int:
    """Bytes of memory that this process holds, 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0  # outside Linux there is no /proc


def lacks_memory(error: BaseException) -> bool:
    """Tells whether an error means that memory or address space does not suffice. Torch, libvips and threads report this as
    RuntimeError, the loader of libraries as ImportError or OSError."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:  # an error may be its own cause
        if isinstance(cause, MemoryError) or _WANT_OF_MEMORY.search(str(cause)):
            return True
        causes.append(cause)
        cause = cause.__cause__
    return False


def cpu_name() -> str:
    """The processor's name as its maker gives it, where the system tells it; else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # outside Linux there is no /proc
    return platform.processor() or platform.machine()


def gpu_name() -> str:
    """The cards of NVIDIA or AMD that torch can use, with their architectures, or the reason why there is none."""
    import torch

    if torch.cuda.is_available():
        return ", ".join(f"{torch.cuda.get_device_name(i)} ({_architecture(i)})" for i in range(torch.cuda.device_count()))
    if torch.version.cuda is None and torch.version.hip is None:
        return f"none usable: torch {torch.__version__} is built without CUDA or ROCm"
    platform_name = f"CUDA {torch.version.cuda}" if torch.version.hip is None else f"ROCm {torch.version.hip}"
    return f"none usable: torch {torch.__version__} with {platform_name} finds no card or driver"


def _architecture(index: int) -> str:
    """The architecture of a card by its maker's name: "sm_90", or "gfx942" for a card of AMD."""
    import torch

    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(index).gcnArchName.partition(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(index))
