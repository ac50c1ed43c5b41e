"""Any module: traced, calibrated and converted, it computes what its simulation does and hands out what the module does."""

from __future__ import annotations

import copy
import functools
import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import traced_modules
from layers_checked import check_layers
from safetensors import safe_open
from safetensors.torch import save_file
from small import one_thread  # noqa: F401
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import adabm_kernels
from adabm_kernels import native
from adabm_kernels.calibrate import calibrate_graph
from adabm_kernels.calibration.tensors import Tensors, read_tensors
from adabm_kernels.calibration.tracing import traced_spec
from adabm_kernels.checkpoint import HEADER_KEY, load, save
from adabm_kernels.config import ConvertConfig
from adabm_kernels.convert import convert_model
from adabm_kernels.graph.nodes import Float, Graph, Ref
from adabm_kernels.graph.stored import from_plain, to_plain
from adabm_kernels.networks.traced import GraphSpec
from adabm_kernels.nn import ConvertedNetwork
from adabm_kernels.simulate import SimulatedGraph, image_measure

BACKENDS = ["reference"] if native.why_missing("cpu") else ["cpu", "reference"]


class Mobile(nn.Module):
    """Parts of MobileNet and ConvNeXt: depthwise convolutions, ReLU6, linear layers of pixels, names that modules here have too."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.graph = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 2, dilation=2, groups=8), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 1))
        self.norm, self.features, self.spec = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale_, self.last = nn.Parameter(torch.tensor([0.3, 3.0])), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        y = self.keys(x)
        y = F.relu(y + self.graph(y))
        y = y + self.spec(F.gelu(self.features(self.norm(y.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        pooled = torch.stack([y.mean((2, 3)), y.amax((2, 3))], 1) * self.scale_[:, None]
        return [self.last(pooled), y]


@dataclass(frozen=True)
class Kind:
    """A module and what is asked of it. size: of its input. crops: whether parts of the data stand for the whole."""

    module: type[nn.Module]
    size: tuple[int, int, int] = (3, 32, 40)
    recipe: str = "paper"
    crops: bool = False


KINDS = {
    "classifier": Kind(traced_modules.ResNeXt),
    "denoiser": Kind(traced_modules.DnCNN),
    "unet": Kind(traced_modules.UNet, recipe="best"),
    "detector": Kind(traced_modules.Detector, (3, 30, 34)),
    "mobile": Kind(Mobile, (4, 32, 28), recipe="best"),
}
each_kind = pytest.mark.parametrize("name", KINDS)


def data(size: tuple[int, ...], count: int = 3) -> torch.Tensor:
    """A flat image, a smooth one and noise, in the range of a normalised picture."""
    g = torch.Generator().manual_seed(2)
    rows = torch.linspace(-1, 1, size[1]).view(1, -1, 1).expand(size)
    return torch.stack([torch.full(size, 0.3), rows * 1.5, torch.randn(size, generator=g)][:count])


@functools.cache
def module_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    module = KINDS[name].module().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            part.running_var.uniform_(0.5, 2)
            part.running_mean.normal_(0, 0.1)
    return module


@functools.cache
def simulated(name: str) -> SimulatedGraph:
    """A calibrated network in which layers and images of `data` take every offset."""
    kind, given = KINDS[name], read_tensors([data(KINDS[name].size), data(KINDS[name].size).flip(3)])
    spec, state = traced_spec(module_of(name), given)
    config = ConvertConfig(recipe=kind.recipe, act_bits=5, weight_bits=6, patch=24, batch=4)
    sim = calibrate_graph(SimulatedGraph.of_graph(spec, state, config), Tensors(given, spec))
    low, middle, high = image_measure(data(kind.size)).tolist()
    sim.measure_l.data.fill_((low + middle) / 2)
    sim.measure_u.data.fill_((middle + high) / 2)
    for i, conv in enumerate(conv for conv in sim.quantized_convs() if conv.adaptive):
        conv.measure_layer.data.fill_((0.9, -0.4, -3.0, 0.6)[i % 4])
    return sim


def converted(name: str, backend: str = BACKENDS[0]) -> ConvertedNetwork:
    model = convert_model(simulated(name))
    model.set_backend(backend)
    model.set_threads(1)
    return model


def same(a: Any, b: Any) -> bool:
    ones, others = pytree.tree_flatten(a), pytree.tree_flatten(b)
    return ones[1] == others[1] and all(torch.equal(one, other) for one, other in zip(ones[0], others[0], strict=True))


@each_kind
def test_every_layer_agrees_with_the_simulation(name: str) -> None:
    check_layers(converted(name), simulated(name), data(KINDS[name].size))


@each_kind
def test_it_gives_what_the_module_gives(name: str) -> None:
    model, x = converted(name), data(KINDS[name].size)
    with torch.no_grad():
        want, sim = module_of(name)(x), copy.deepcopy(simulated(name)).double()(x.double())
    given = model(x)
    assert pytree.tree_structure(given) == pytree.tree_structure(want)
    for got, near, exact in zip(*map(pytree.tree_leaves, (given, sim, want)), strict=True):
        assert got.dtype == torch.float32 and got.shape == exact.shape
        assert (got - near).norm() <= 0.02 * near.norm()  # codes that lie on a boundary may differ
        assert (got - exact).norm() <= 0.5 * exact.norm()
    assert torch.equal(model.mean_bits(x), simulated(name).mean_bits(x)) and model.image_offsets(x).tolist() == [-1, 0, 1]


@each_kind
def test_kernels_equal_the_reference_and_images_their_batch(name: str) -> None:
    x, slow = data(KINDS[name].size), converted(name, "reference")
    want = slow(x)
    for backend in BACKENDS:
        assert same(converted(name, backend)(x), want)
    if name in ("classifier", "unet"):  # whose floats in between sum nothing over a batch
        alone = slow(x[1:2])
        assert torch.allclose(alone, want[1:2], rtol=1e-5, atol=1e-5)


@each_kind
def test_a_file_holds_the_graph(name: str, tmp_path: Path) -> None:
    model, x = converted(name), data(KINDS[name].size)
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    again.set_threads(1)
    want = model(x)
    assert same(again(x), want) and again.spec == model.spec
    for twin in (copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        assert same(twin(x), want)
    with torch.no_grad():
        ours, theirs = again.float_model()(x), module_of(name)(x)
    assert pytree.tree_structure(ours) == pytree.tree_structure(theirs)
    for one, other in zip(*map(pytree.tree_leaves, (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other)
