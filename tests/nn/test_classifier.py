"""A classifier of strided, grouped and depthwise convolutions, trained for a moment, is as good in integers as it is simulated."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adabm_kernels import ConvertConfig, convert_model
from adabm_kernels.calibrate import calibrate_graph
from adabm_kernels.calibration.tensors import Tensors, read_tensors
from adabm_kernels.calibration.tracing import traced_spec
from adabm_kernels.simulate import SimulatedGraph

SIDE, CLASSES = 16, 4


def conv_bn(channels: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Tiny(nn.Module):
    """A residual block of grouped convolutions between strided and depthwise ones, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 3, 2)
        self.first, self.second = conv_bn(16, 16, 3, groups=4), conv_bn(16, 16, 1)
        self.depthwise, self.pointwise = conv_bn(16, 16, 3, 2, 16), conv_bn(16, 32, 1)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.second(F.relu(self.first(x))))
        x = F.relu(self.pointwise(F.relu(self.depthwise(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def stripes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy stripes in four directions, float32 [count, 3, SIDE, SIDE] in about 0..1, and which direction each has."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=g)
    angle = labels * torch.pi / CLASSES
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    along = rows * angle.cos().view(-1, 1, 1) + columns * angle.sin().view(-1, 1, 1)
    waves = torch.sin(along * 1.6 + 6 * torch.rand(count, 1, 1, generator=g))
    colours = 0.15 + 0.15 * torch.rand(count, 3, 1, 1, generator=g)
    return 0.5 + colours * waves[:, None] + 0.6 * torch.randn(count, 3, SIDE, SIDE, generator=g), labels


@pytest.fixture(scope="module")
def trained() -> Tiny:
    torch.manual_seed(0)
    network = Tiny().train()
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for step in range(40):
        x, labels = stripes(64, step)
        loss = F.cross_entropy(network(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


def right(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Which images are told right."""
    with torch.no_grad():
        return model(x).argmax(1) == labels


@pytest.mark.parametrize("bits", [4, 6])
def test_a_classifier_is_as_good_in_integers_as_simulated(trained: Tiny, bits: int) -> None:
    calibration = stripes(24, 1000)[0].split(1)
    config = ConvertConfig(weight_bits=bits, act_bits=bits, steps=0)
    converted = convert_model(trained, calibration, config)
    assert converted.report["skipped"] == []
    data = read_tensors(calibration)
    simulated = SimulatedGraph.of_graph(*traced_spec(trained, data), config)
    simulated = calibrate_graph(simulated, Tensors(data, simulated.spec))  # the same once more: calibration is seeded
    x, labels = stripes(400, 2000)
    of_float, of_simulated, of_integers = (right(model, x, labels) for model in (trained, simulated, converted))
    assert of_float.sum() >= 360, "the network must have learnt something to lose"
    # What lies beside a boundary of two classes falls to either side with a rounding.
    assert (of_simulated != of_integers).sum() <= 2
    assert of_integers.sum() >= of_float.sum() - 4


def test_layers_of_every_geometry_can_be_timed(trained: Tiny) -> None:
    converted = convert_model(trained, stripes(2, 1000)[0].split(1), ConvertConfig(adaptive=False, steps=0))
    rows = converted.plan_rows(measure=SIDE)
    assert {row["layer"] for row in rows} == {layer["name"] for layer in converted.report["layers"]}
    assert all(float(row["measured ns"]) > 0 for row in rows)
