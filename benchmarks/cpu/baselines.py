"""The network that a user would otherwise run: the same float network in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

Forward = Callable[[torch.Tensor], torch.Tensor]


def torch_float32(model: nn.Module) -> Forward:
    """Runs float32 in channels_last, PyTorch's fastest eager form on a CPU without bfloat16 units."""
    model = model.to(memory_format=torch.channels_last)
    return lambda x: model(x.contiguous(memory_format=torch.channels_last))


def torch_bfloat16(model: nn.Module) -> Forward:
    """Runs bfloat16 in channels_last."""
    model = model.to(memory_format=torch.channels_last, dtype=torch.bfloat16)
    return lambda x: model(x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)).float()


def require(baseline: str) -> None:
    """Skips a baseline that this processor only emulates. Without bfloat16 instructions, PyTorch takes twenty times as long in
    bfloat16 as in float32."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "bf16"
    if baseline == "bfloat16" and "bf16" not in flags:
        pytest.skip("this processor has no bfloat16 arithmetic")


BASELINES = {"float32": torch_float32, "bfloat16": torch_bfloat16}
