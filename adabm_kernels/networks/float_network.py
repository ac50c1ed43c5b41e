"""The float network of a specification."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from ..graph.module import GraphModule
from .spec import NetworkSpec


class FloatNetwork(GraphModule):
    """A float network with random weights: [N, 3, H, W] in 0..255 -> [N, 3, scale*H, scale*W], not clamped.

    Published state dicts load into it unchanged. Call `.eval()` before you use a network with BatchNorms.
    """

    spec: NetworkSpec

    KINDS: ClassVar[dict[str, type[FloatNetwork]]] = {}  # the key is the name of the specification's class

    def __init_subclass__(cls) -> None:
        FloatNetwork.KINDS[cls.__name__] = cls

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec.graph(), spec.published, dtypes=spec.dtypes)
        object.__setattr__(self, "spec", spec)  # bypasses nn.Module, because a part of the network may be called `spec`

    @property
    def res_scale(self) -> float:
        return self.spec.res_scale


def float_network(spec: NetworkSpec) -> nn.Module:
    """The float network of a specification, with random weights, in eval mode."""
    return FloatNetwork.KINDS.get(spec.title, FloatNetwork)(spec).eval()


def float_shapes(spec: NetworkSpec) -> dict[str, tuple[int, ...]]:
    """The shape of every value in the state dict of `float_network(spec)`."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in FloatNetwork(spec).state_dict().items()}
