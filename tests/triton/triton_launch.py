"""Launches of kernels that were compiled once, under a driver that only writes down what it is given: run by test_triton.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
from problems import ConvProblem, instantiate
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler.compiler import LazyDict

from adabm_kernels.backends.call import DepthRule, Outputs, Packing, Quantization
from adabm_kernels.backends.triton import conv2d, depths, image_bits, launch, quantize
from adabm_kernels.quantize import act_grid

launches: list[tuple] = []


class Utilities:
    """What Triton asks of a card before it launches."""

    def load_binary(self, name: str, *_: Any) -> tuple:
        return None, name, 32, 0, 1024  # module, function, registers, spills, most threads

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10}


class Driver(DriverBase):
    def __init__(self) -> None:
        self.utils = Utilities()
        self.launcher_cls = lambda src, metadata: lambda *arguments: launches.append(arguments)

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_benchmarker(self) -> None:
        return None


@pytest.fixture(autouse=True, scope="module")
def driver():
    triton.runtime.driver.set_active(Driver())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "capability", lambda device: 90)
        yield


def conv_run():
    instance = instantiate(ConvProblem("launched", 4, 5, 8, 8, residual=True, activation="prelu"))
    instance.layer.slope = torch.rand(8)
    conv = replace(instance.conv("reference"), packed=conv2d.pack(instance.layer.weight, Packing()))
    y, y_q = torch.empty(1, 4, 5, 8), torch.empty(1, 4, 5, 8, dtype=torch.uint8)
    return conv2d.ready_conv2d_out(conv, Outputs(y, y_q)), (*conv.tensors.values(), y, y_q), (7, 8, 11, 12)


def quantize_run():
    x, bits, y_q = torch.rand(1, 8, 4, 5), torch.tensor([4], dtype=torch.int32), torch.empty(1, 4, 5, 8, dtype=torch.uint8)
    tensors = x, torch.rand(8), act_grid(0.0, 1.0), bits, None, y_q
    return quantize.ready_quantize_out(Quantization(*tensors[:4]), y_q), tensors, (0, 1, 5)


def copied(tensor: torch.Tensor | None, by: int) -> torch.Tensor | None:
    """The same values at an address that lies `by` bytes behind a multiple of 16."""
    if tensor is None:
        return None
    room = torch.empty(tensor.numel() * tensor.element_size() + 64, dtype=torch.uint8)
    start = -room.data_ptr() % 16 + by
    return room[start : start + tensor.numel() * tensor.element_size()].view(tensor.dtype).view(tensor.shape).copy_(tensor)


def shown(arguments: tuple) -> list:
    """With the addresses of tensors in their place, and without what is made for each launch to describe it."""
    plain = [argument for argument in arguments if not isinstance(argument, LazyDict)]
    return [argument.data_ptr() if isinstance(argument, torch.Tensor) else argument for argument in plain]


@pytest.mark.parametrize("made", [conv_run, quantize_run])
def test_a_kernel_that_is_kept_is_launched_as_triton_launches_it(made, monkeypatch: pytest.MonkeyPatch) -> None:
    run, tensors, aligned = made()
    tensors = tuple(copied(tensor, 0) for tensor in tensors)
    launches.clear()
    asked: list[tuple] = []
    for _ in range(3):
        run(*tensors)
    monkeypatch.setattr(triton.runtime.JITFunction, "run", lambda self, *a, **k: asked.append(a))
    others = tuple(copied(tensor, 0) for tensor in tensors)
    run(*others)
    assert asked == []
    by_triton, *kept, of_others = launches
    assert [shown(arguments) for arguments in kept] == [shown(by_triton)] * 2
    moved = {t.data_ptr(): o.data_ptr() for t, o in zip(tensors, others, strict=True) if t is not None}
    assert shown(of_others) == [moved.get(one, one) if type(one) is int else one for one in shown(by_triton)]
    for index in aligned:  # the kernel was compiled for addresses that are multiples of 16
        at_odds = list(tensors)
        at_odds[index] = copied(tensors[index], 4)
        run(*at_odds)
    assert len(asked) == len(aligned) and len(launches) == 4


def test_kernels_of_the_image_are_kept_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = copied(torch.rand(1, 3, 4, 5), 0), copied(torch.rand(1, 3, 4, 6), 0)
    pixels, map_ = torch.zeros(1, 4, 5, 4, dtype=torch.uint8), torch.zeros(1, 1, 1, dtype=torch.uint8)
    calls = [
        lambda: image_bits.image_measure(small),
        lambda: image_bits.image_measure(large),
        lambda: depths.tile_depths_out(copied(pixels, 0), DepthRule(8, 0, 0, 5, 1), copied(map_, 0)),
        lambda: depths.tile_depths_out(copied(pixels, 0), DepthRule(8, 0, 0, 6, 1), copied(map_, 0)),
    ]
    first, again = [], []
    for seen in (first, again):
        for call in calls:
            launches.clear()
            call()
            seen.append([[one for one in shown(arguments) if not isinstance(one, int) or one < 2**20] for arguments in launches])
        monkeypatch.setattr(triton.runtime.JITFunction, "run", None)
    assert first == again and [len(made) for made in first] == [2, 2, 1, 1]
