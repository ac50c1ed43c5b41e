"""What a user would otherwise run: the same float network in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Forward = Callable[[torch.Tensor], torch.Tensor]


def torch_float32(model: nn.Module) -> Forward:
    """float32, channels_last: PyTorch's fastest eager form on a CPU without bfloat16 units."""
    model = model.to(memory_format=torch.channels_last)
    return lambda x: model(x.contiguous(memory_format=torch.channels_last))


def torch_bfloat16(model: nn.Module) -> Forward:
    """bfloat16, channels_last."""
    model = model.to(memory_format=torch.channels_last, dtype=torch.bfloat16)
    return lambda x: model(x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)).float()


BASELINES = {"float32": torch_float32, "bfloat16": torch_bfloat16}
