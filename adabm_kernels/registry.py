"""Chooses the backend that computes a Problem. The Choice gives the reason why each of the other backends was passed over."""

from __future__ import annotations

import functools
import os
import warnings
from dataclasses import dataclass, field

from . import native
from .backends import BACKENDS, GPU_BACKENDS, cards, counted, devices, gpu_times
from .backends.counted import ConvShape


@dataclass(frozen=True)
class Problem:
    """The work for which a backend is chosen. device: the device that holds the tensors, "cpu", "cuda:1", or "cuda" for the current
    card. conv: the shape of the convolution, None for all other work."""

    device: str
    conv: ConvShape | None = None


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can run on this machine at all, and the reason where it cannot."""

    name: str
    available: bool
    reason: str


@dataclass(frozen=True)
class Choice:
    """The backend that will run, and the reason for each other backend that was considered and will not."""

    backend: str
    rejected: dict[str, str] = field(default_factory=dict)


def check_device(device: str) -> None:
    """Raises RuntimeError unless some backend computes on tensors of a device."""
    if devices.why_no_backend(device):
        raise RuntimeError(f"device must be 'cpu' or 'cuda', got {device!r}: {devices.why_no_backend(device)}")


def _why_not(backend: str, device: str | None, asked: bool = False) -> str:
    """Why `backend` cannot compute on tensors of `device`, or on any device where that is None; empty where it can.

    asked: whether the backend was asked for by name and not as "auto". A GPU backend may then be set before the model moves to the
    GPU.
    """
    if asked and backend in GPU_BACKENDS and device == "cpu":
        device = None
    if backend == "cuda":
        return devices.why_not_cuda(device)
    if backend == "triton":
        if cards.interpreting() and not asked:
            return "TRITON_INTERPRET=1: its interpreter runs only when asked for"
        return devices.why_not_triton(device)
    if backend == "cpu":
        if native.why_missing("cpu"):
            return native.why_missing("cpu")
        if device not in (None, "cpu"):
            return f"the tensors are on {device}"
    return "" if device is None else devices.why_no_backend(device)


def backends() -> dict[str, BackendStatus]:
    """Every backend by name, fastest first."""
    reasons = {name: _why_not(name, None) for name in BACKENDS}
    return {name: BackendStatus(name, not reason, reason) for name, reason in reasons.items()}


@functools.cache
def _warn_slow(reason: str) -> None:
    warnings.warn(f"adabm_kernels runs on the reference backend, which is slow: cpu: {reason}", RuntimeWarning, stacklevel=4)


def _asked_for(backend: str) -> tuple[str, str]:
    """Two values: the backend to use, and the place where it was named. If ADABM_BACKEND is set, "auto" stands for its value."""
    variable = os.environ.get("ADABM_BACKEND")
    return (variable, "ADABM_BACKEND") if backend == "auto" and variable else (backend, "backend")


def device_for(backend: str) -> str | None:
    """The type of the device on which a backend computes, where it is asked for by name or by ADABM_BACKEND. None where any device
    will do or "auto" decides."""
    backend, _ = _asked_for(backend)
    if backend in GPU_BACKENDS:
        return "cpu" if backend == "triton" and cards.interpreting() else "cuda"
    return None


def choose(problem: Problem, requested: str = "auto") -> Choice:
    """The backend for a problem. On a GPU that both GPU backends can use, it is the one that needs less time for the convolution.

    requested: a backend's name, or "auto", which stands for ADABM_BACKEND where that is set and else for the fastest backend that
    can run. A backend that is named is never replaced: where it cannot run, RuntimeError gives the reason. Raises ValueError for an
    unknown name, and RuntimeError for a device that no backend knows.
    """
    requested, source = _asked_for(requested)
    if requested not in ("auto", *BACKENDS):
        raise ValueError(f"{source} must be one of auto, {', '.join(BACKENDS)}, got {requested!r}")
    if requested != "auto":
        reason = _why_not(requested, problem.device, asked=True)
        if reason:
            raise RuntimeError(f"{source} {requested!r} cannot run: {reason}")
        return Choice(requested)
    check_device(problem.device)
    rejected: dict[str, str] = {}
    for name in BACKENDS:
        reason = _why_not(name, problem.device)
        if not reason:
            break
        rejected[name] = reason
    if name == "cuda" and problem.conv is not None and not _why_not("triton", problem.device):
        return _choose_by_shape(problem.device, problem.conv)
    if name == "reference" and problem.device == "cpu":
        _warn_slow(rejected["cpu"])
    return Choice(name, rejected)


def _choose_by_shape(device: str, shape: ConvShape) -> Choice:
    """Chooses between the GPU backends, both of which can run there, by measured times where there are any and else by counts."""
    major, minor = cards.capability(device)
    capability = 10 * major + minor
    found = gpu_times.times(capability, shape)
    if found is not None:
        times, source = found
        figures = {name: f"{times[name]:.4g}" for name in GPU_BACKENDS}
        basis, unit = f"measured ({source})", "us"
    else:
        times = {name: counted.clocks(name, capability, shape) for name in GPU_BACKENDS}
        figures = {name: counted.described(name, capability, shape) for name in GPU_BACKENDS}
        basis, unit = "counted, not measured", "clocks of a multiprocessor a pixel"
    best = min(GPU_BACKENDS, key=times.__getitem__)  # where both take the same time, the one that compiles nothing first
    (other,) = set(GPU_BACKENDS) - {best}
    place = f"{shape}, on compute capability {major}.{minor}"
    return Choice(best, {other: f"{place}: {figures[other]} against {figures[best]} {unit} by {best}, {basis}"})
