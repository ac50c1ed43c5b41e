"""A network that the package does not know: one class, and all that reads networks reads it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from small import one_thread  # noqa: F401

from adabm_kernels.calibrate import calibrate
from adabm_kernels.config import ConvertConfig
from adabm_kernels.convert import convert_model
from adabm_kernels.graph.builder import Builder
from adabm_kernels.graph.nodes import Activation, Add, Graph, Resize
from adabm_kernels.networks import detect as detection
from adabm_kernels.networks.convention import fold
from adabm_kernels.networks.float_network import float_network
from adabm_kernels.networks.layouts import State, count
from adabm_kernels.networks.spec import NetworkSpec, stages
from adabm_kernels.simulate import SimulatedNetwork


@dataclass(frozen=True)
class BesideSpec(NetworkSpec):
    """Residual blocks with no convolution after them, an upsampler with activations, to which the enlarged picture is added."""

    network = "beside"
    title = called = "Beside"
    known_by = "'stem.weight' with 'blocks.0.conv1.weight'"
    anchor = "stem.weight"

    scale: int
    blocks: int
    channels: int
    inner: str = "relu"

    def build(self) -> Graph:
        b, c = Builder(), self.channels

        def leaky(name: str, x: str) -> str:
            return b.add(Activation(name, (x,), "leaky_relu", (("negative_slope", 0.1),)))

        y = leaky("stem.act", b.conv("stem", "x", (3, c), role="end"))
        for i in range(self.blocks):
            inner = b.add(Activation(f"blocks.{i}.act", (b.conv(f"blocks.{i}.conv1", y, (c, c), body=True),), self.inner))
            y = b.sum(f"blocks.{i}", b.conv(f"blocks.{i}.conv2", inner, (c, c), body=True), y)
        for i, factor in enumerate(stages(self.scale)):
            y = b.shuffle(f"up.{i}.shuffle", b.conv(f"up.{i}", y, (c, c * factor**2), role="end"), factor)
            y = leaky(f"up.{i}.act", y)
        picture = b.add(Resize("picture", ("x",), self.scale, "bilinear", False))
        return b.graph(b.add(Add("sum", (b.conv("last", y, (c, 3), role="end"), picture))))

    @classmethod
    def fits(cls, state: State) -> bool:
        return count(state, r"blocks\.(\d+)\.conv1\.") > 0 and "stem.weight" in state

    @classmethod
    def read(cls, state: State, res_scale: float) -> BesideSpec:
        scale = 4 if "up.1.weight" in state else 2
        return cls(scale, count(state, r"blocks\.(\d+)\.conv1\."), state["stem.weight"].shape[0])


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "NETWORKS", (*detection.NETWORKS, BesideSpec))


@pytest.mark.parametrize("quantize", ["full", "body"])
def test_it_is_recognised_calibrated_and_converted(quantize: str) -> None:
    torch.manual_seed(0)
    spec, x = BesideSpec(4, 2, 8), torch.rand(1, 3, 16, 18) * 255
    network = float_network(spec)
    assert spec.skips_blocks and spec.residual_stream and spec.tail_names == ("up.0", "up.1", "last")
    config = ConvertConfig(quantize=quantize, recipe="paper")
    sim = calibrate(network, [x, x.flip(3)], config, check=False)
    assert sim.spec == spec
    again = SimulatedNetwork.from_state(sim.state_dict(), config)
    with torch.no_grad():
        want, got = network(x), sim(x)
        with sim.float_mode():
            assert torch.equal(sim(x), want)
        assert torch.equal(again(x), got) and not torch.equal(got, want) and got.shape == (1, 3, 64, 72)
        integers = convert_model(sim)(x)
        assert (integers - sim.double()(x.double())).abs().mean() < 1e-3


def test_biases_take_up_a_range_behind_homogeneous_activations_alone() -> None:
    relu, silu = BesideSpec(2, 1, 4), BesideSpec(2, 1, 4, "silu")
    assert relu.takes_any_range and not silu.takes_any_range
    state, x = float_network(relu).state_dict(), torch.rand(1, 3, 8, 8)
    network = float_network(relu)
    network.load_state_dict(fold(state, relu, 1.0, None, "rgb"))
    with torch.no_grad():
        want = float_network(relu)
        want.load_state_dict(state)
        torch.testing.assert_close(network(x * 255), want(x) * 255)
    with pytest.raises(ValueError, match="rgb_range must be 255 for a network of this kind, Beside: .* got 1"):
        fold(state, silu, 1.0, None, "rgb")
