"""Networks that the package spandrel knows, where it is installed: those of its descriptors, and state dicts of layouts that it
recognises."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..networks.detect import detect
from ..networks.known import NONE_OF_THEM

HOW_TO_GET = "; the package spandrel, which knows more layouts, is not installed: pip install spandrel"


@dataclass(frozen=True)
class SpandrelNetwork:
    """A network that spandrel recognised. called: its architecture. module: the module in eval mode, which takes and gives pixels
    in 0..1. known: whether its state dict is that of a known network."""

    called: str
    module: nn.Module
    known: bool


def network_of(model: Any) -> Any:
    """The network of a descriptor of spandrel: its state dict where that is one of a known network, and else its module in eval
    mode, which takes pixels in 0..1. Any other object is returned as it is. It does not import spandrel."""
    spandrel = sys.modules.get("spandrel")
    if spandrel is None or not isinstance(model, (spandrel.ImageModelDescriptor, spandrel.MaskedImageModelDescriptor)):
        return model
    module = model.model.eval()
    return module.state_dict() if _is_known(module) else module


def recognised_by_spandrel(state: Mapping[str, Any], error: ValueError) -> SpandrelNetwork:
    """The network of a state dict that `detect` refused with `error`.

    The tensors are read already, by `networks.checkpoints`, which runs no code of a file; spandrel is given them alone. Raises
    ValueError with the words of `error` where spandrel does not know them either, and with a hint where it is not installed.
    """
    try:
        import spandrel
    except ImportError as missing:
        hint = HOW_TO_GET if NONE_OF_THEM in str(error) else ""
        raise ValueError(f"{error}{hint}") from missing
    try:
        plain = spandrel.canonicalize_state_dict(dict(state))
        found = spandrel.ModelLoader("cpu").load_from_state_dict(plain)
    except Exception as refused:  # what it raises for a state dict that only resembles one of its own depends on the architecture
        raise error from refused
    module = found.model.float().eval()
    return SpandrelNetwork(str(found.architecture.name), module, _is_known(module))


def _is_known(module: nn.Module) -> bool:
    try:
        detect(module.state_dict())
    except ValueError:
        return False
    return True


class OfPixels(nn.Module):
    """A network of pixels in 0..1 as one of pixels in 0..255."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, x: torch.Tensor) -> Any:
        return self.network(x / 255.0) * 255.0
