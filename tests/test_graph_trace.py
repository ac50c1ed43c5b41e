"""`trace`: the graph of a module computes what the module computes, and says what it cannot trace."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import traced_modules
from graph_values import evaluate
from small import one_thread  # noqa: F401
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from adabm_kernels.graph import recording
from adabm_kernels.graph.nodes import Add, Conv, Float, Graph
from adabm_kernels.graph.trace import Traced, trace
from adabm_kernels.networks.edsr import EDSR, EDSRSpec
from adabm_kernels.networks.rdn import RDN, RDNSpec
from adabm_kernels.networks.srresnet import SRResNet, SRResNetSpec

MODULES = {
    "resnext": (traced_modules.ResNeXt, 1),
    "unet": (traced_modules.UNet, 4),
    "dncnn": (traced_modules.DnCNN, 4),
    "compact": (traced_modules.Compact, 1),
    "rrdbnet": (traced_modules.RRDBNet, 1),
    "span": (traced_modules.SPAN, 1),
    "detector": (traced_modules.Detector, 1),
    "window_attention": (traced_modules.WindowAttention, 4),
    "oddments": (traced_modules.Oddments, 1),
}


def made(kind: type[nn.Module], *args: Any) -> nn.Module:
    """A module in eval mode whose norms have statistics and weights of their own."""
    torch.manual_seed(0)
    module = kind(*args).eval()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for value in (part.weight, part.running_var):
                value is None or nn.init.uniform_(value, 0.5, 2)
            for value in (part.bias, part.running_mean):
                value is None or nn.init.uniform_(value, -1, 1)
    return module


def assert_same(traced: Traced, module: nn.Module, sizes: tuple[tuple[int, ...], ...] = ((1, 3, 32, 56), (3, 3, 44, 36))) -> None:
    """The outputs of the graph are those of the module in float64, to the last bit."""
    assert traced.state.keys() == traced.graph.parameters().keys()
    module.double()
    with torch.no_grad():
        for size in sizes:
            x = torch.rand(size, dtype=torch.float64)
            got = evaluate(traced.graph, traced.state, x.clone())
            for one, want in zip(got, pytree.tree_leaves(module(x)), strict=True):
                assert torch.equal(one, want)


@pytest.mark.parametrize("name", MODULES)
def test_the_graph_computes_what_the_module_does(name: str) -> None:
    kind, multiple = MODULES[name]
    module = made(kind)
    traced = trace(module)
    assert (traced.recorder, traced.multiple) == ("torch.export", multiple)
    assert_same(traced, module)
