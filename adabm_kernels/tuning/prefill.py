"""Compiles Triton kernels for a card that is not there, into the cache where a later process finds them."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..backends import cards, devices, launches
from ..backends.rates import RATES
from ..nn import ConvertedNetwork
from ..registry import Problem, choose

# Kernels differ by the class of an image's size (tuning.shape_class), by whether strides are multiples of 16, and by nothing else
# of its size. Here is every class that `adabm tune` measures (tune_gpu.SIZES), and of those that it leaves to the heuristic a
# small image and a large one.
SIZES = ((64, 64), (50, 47), (128, 128), (256, 256), (90, 90), (130, 131))


@dataclass
class Forms:
    """Names of the kernels' forms. compiled: forms that the cache lacked and now has. found: forms that it had before."""

    compiled: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)


def capability_of(name: str) -> int:
    """The compute capability that a name stands for: 90 for "sm_90", "sm90" or "9.0". Raises ValueError for any other text, and for
    a compute capability that the kernels do not know."""
    digits = name.lower().removeprefix("sm").removeprefix("_").replace(".", "")
    if not digits.isdecimal() or int(digits) not in RATES:
        known = ", ".join(f"sm_{capability}" for capability in RATES)
        raise ValueError(f"prefill must be one of {known}, got {name!r}")
    return int(digits)


def prefill(
    model: ConvertedNetwork,
    capability: int,
    into: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> Forms:
    """Compiles every kernel that passes of the model need on a card of this compute capability (90 for 9.0), as Triton would when
    they first run there: images of these sizes, floats and pixels, all depths.

    into: the cache, Triton's own where it is None (TRITON_CACHE_DIR, or ~/.triton/cache). It is found again by the same versions
    of this package, of Triton and of what it compiles with, and by the tables of the user who tuned (backends/triton/tuning.py).
    say: is told of each form. The model is left as it is: a copy passes. The process must launch nothing on a card afterwards.
    Raises RuntimeError where Triton cannot be used at all, or runs in its interpreter.
    """
    if reason := devices.why_no_triton():
        raise RuntimeError(f"prefill needs Triton: {reason}")
    if cards.interpreting():
        raise RuntimeError("prefill needs Triton's compiler, and TRITON_INTERPRET=1 is set")
    forms = Forms()
    with pretended(capability, forms, say), _cache_in(into):
        model = copy.deepcopy(model).to("cpu")
        model.set_backend("triton", graph=False)
        for depth in ("auto", "full") if model.easy is not None else ("auto",):
            model.set_depth(depth)
            for size in sizes:
                _pass(model, size)
    return forms


def _pass(model: ConvertedNetwork, size: tuple[int, int]) -> None:
    """Makes every call that images of a size need of a model. Nothing is computed, so that codes and bits hold whatever lies in
    memory."""
    x = torch.zeros(1, 3, *size)
    offset = model.image_offsets(x)
    for given in (None, offset):
        model(x, given)
        model.pixels(x, given)
    if model.easy is not None:
        model.tile_depths(x)


@contextmanager
def _cache_in(folder: Path | None) -> Iterator[None]:
    before = os.environ.get("TRITON_CACHE_DIR")
    if folder is not None:
        os.environ["TRITON_CACHE_DIR"] = os.fspath(folder)
    try:
        yield
    finally:
        if folder is not None:
            os.environ.pop("TRITON_CACHE_DIR")
            if before is not None:
                os.environ["TRITON_CACHE_DIR"] = before


@contextmanager
def pretended(capability: int, forms: Forms, say: Callable[[str], None]) -> Iterator[None]:
    """Inside the block Triton compiles for a card of this compute capability and launches nothing; tensors are in main memory."""
    import triton
    from triton import knobs

    from ..backends.triton import launch

    def listen(*, src: Any, metadata: dict[str, Any], cache_hit: bool, **_: Any) -> None:
        (forms.found if cache_hit else forms.compiled).append(src.name)
        say(f"{'found' if cache_hit else 'compiled'} {src.name}, form {len(forms.found) + len(forms.compiled)}")

    def forget() -> None:
        """Forgets the card so far: calls that were made ready, launches, and the forms that Triton has compiled."""
        launches.changed()
        launch.forget_compiled()
        for kernel in _kernels():
            kernel.device_caches.clear()

    driver = triton.runtime.driver
    before = driver._active, knobs.compilation.listener, launch.capability, cards.interpreting
    driver.set_active(_driver(capability))
    knobs.compilation.listener = listen
    launch.capability = lambda device: capability
    cards.interpreting = lambda: True  # this lets the operators of Triton take tensors in main memory
    forget()
    try:
        choose(Problem("cpu"), "triton")
        yield
    finally:
        driver.set_active(before[0])
        knobs.compilation.listener, launch.capability, cards.interpreting = before[1:]
        forget()


def _kernels() -> list[Any]:
    """Every Triton function in backends/triton. Each of them keeps its compiled forms by device."""
    from triton.runtime.jit import JITFunction

    from ..backends import triton as backend

    prefix = f"{backend.__name__}."
    modules = [module for name, module in sys.modules.items() if name.startswith(prefix)]
    return [value for module in modules for value in vars(module).values() if isinstance(value, JITFunction)]


def _driver(capability: int) -> Any:
    """A driver with which Triton sees a card that has this compute capability and does nothing."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    from ..backends.triton import launch

    class Utils:
        """The functions by which Triton asks a driver about a binary and about the card."""

        def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, ...]:
            return 1, 1, 0, 0, 1024

        def get_device_properties(self, device: int) -> dict[str, int]:
            found = {"max_shared_mem": launch.shared_bytes(capability), "max_num_regs": 65536}
            return found | {"multiprocessor_count": 1, "warpSize": 32}

    class Launcher:
        """Stands for the launcher of a kernel, and launches nothing."""

        def __init__(self, src: Any, metadata: Any):
            pass

        def __call__(self, *arguments: Any) -> None:
            pass

    class Driver(DriverBase):
        def __init__(self) -> None:
            self.utils, self.launcher_cls = Utils(), Launcher

        @classmethod
        def is_active(cls) -> bool:
            return True

        def map_python_to_cpp_type(self, ty: str) -> str:
            return ty

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", capability, 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_benchmarker(self) -> Any:
            raise NotImplementedError("nothing is measured on a pretended card")

    return Driver()
