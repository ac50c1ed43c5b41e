"""Chooses the backend that computes: Problem -> Choice, with the reason why each other one was passed over."""

from __future__ import annotations

import functools
import os
import warnings
from dataclasses import dataclass, field

from . import native
from .backends import devices

BACKENDS = ("cuda", "triton", "cpu", "reference")  # fastest first
GPU_BACKENDS = ("cuda", "triton")


@dataclass(frozen=True)
class Problem:
    """What is to run: the type of the device that holds the tensors, "cpu" or "cuda"."""

    device: str


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can run on this machine at all, and if not, why."""

    name: str
    available: bool
    reason: str


@dataclass(frozen=True)
class Choice:
    """The backend that will run, and the reason for each faster one that will not."""

    backend: str
    rejected: dict[str, str] = field(default_factory=dict)


def _why_not(backend: str, device: str | None, asked: bool = False) -> str:
    """Why `backend` cannot compute on tensors of `device` (None: on any); empty where it can.

    asked: by name, not as "auto". A GPU backend may then be set before the model moves to the GPU.
    """
    if asked and backend in GPU_BACKENDS and device == "cpu":
        device = None
    if backend == "cuda":
        reason = devices.why_not_cuda(device)
        if not reason and not asked and not devices.why_not_triton(device):
            reason = devices.why_triton_first()
        return reason
    if backend == "triton":
        if devices.interpreting() and not asked:
            return "TRITON_INTERPRET=1: its interpreter runs only when asked for"
        return devices.why_not_triton(device)
    if backend == "cpu":
        if native.why_missing("cpu"):
            return native.why_missing("cpu")
        if device not in (None, "cpu"):
            return f"the tensors are on {device}"
    return ""


def backends() -> dict[str, BackendStatus]:
    """Every backend by name, fastest first."""
    reasons = {name: _why_not(name, None) for name in BACKENDS}
    return {name: BackendStatus(name, not reason, reason) for name, reason in reasons.items()}


@functools.cache
def _warn_slow(reason: str) -> None:
    warnings.warn(f"adabm_kernels runs on the reference backend, which is slow: cpu: {reason}", RuntimeWarning, stacklevel=4)


def device_for(backend: str) -> str | None:
    """The type of device that a backend asked for by name computes on, None where any will do or "auto" decides."""
    if backend in GPU_BACKENDS:
        return "cpu" if backend == "triton" and devices.interpreting() else "cuda"
    return None


def choose(problem: Problem, requested: str = "auto") -> Choice:
    """The backend for a problem.

    requested: a backend's name, or "auto": ADABM_BACKEND where set, else the fastest that can run. An explicit request
    never falls back: RuntimeError with the reason where it cannot run, ValueError for an unknown name.
    """
    source = "backend"
    if requested == "auto" and os.environ.get("ADABM_BACKEND"):
        requested, source = os.environ["ADABM_BACKEND"], "ADABM_BACKEND"
    if requested not in ("auto", *BACKENDS):
        raise ValueError(f"{source} must be one of auto, {', '.join(BACKENDS)}, got {requested!r}")
    if requested != "auto":
        reason = _why_not(requested, problem.device, asked=True)
        if reason:
            raise RuntimeError(f"{source} {requested!r} cannot run: {reason}")
        return Choice(requested)
    rejected: dict[str, str] = {}
    for name in BACKENDS:
        reason = _why_not(name, problem.device)
        if not reason:
            break
        rejected[name] = reason
    if name == "reference" and problem.device == "cpu":
        _warn_slow(rejected["cpu"])
    return Choice(name, rejected)
