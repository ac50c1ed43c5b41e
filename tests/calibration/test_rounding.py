"""Weights rounded together: integers of the grid, and less lost than by rounding each to its nearest."""

from __future__ import annotations

import pytest
import torch
from small import noise, one_thread  # noqa: F401
from torch.nn import functional as F

from adabm_kernels.calibrate import calibrate
from adabm_kernels.calibration.ranges import best_channel_ranges
from adabm_kernels.calibration.rounding import fit_weights, round_columns
from adabm_kernels.config import ConvertConfig
from adabm_kernels.networks.float_network import float_network
from adabm_kernels.networks.srvgg import SRVGGSpec
from adabm_kernels.quantize import weight_codes
from adabm_kernels.simulate import SimulatedNetwork


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_inputs_that_go_together_share_what_is_rounded(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    inputs = torch.randn(500, 4, generator=generator, dtype=torch.float64) @ torch.randn(4, 12, generator=generator).double()
    inputs += 0.1 * torch.randn(500, 12, generator=generator)
    aimed = torch.randn(6, 12, generator=generator).double() * 2 ** (bits - 2)
    got = round_columns(aimed, inputs.T @ inputs / 500, bits)
    most = 2 ** (bits - 1)
    assert torch.equal(got, got.round()) and got.min() >= -most and got.max() <= most - 1

    def lost(integers: torch.Tensor) -> float:
        return float(((integers - aimed) @ inputs.T).square().mean())

    assert lost(got) < 0.5 * lost(aimed.round().clamp(-most, most - 1))


def test_blocks_of_columns_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 20, generator=generator).double()
    aimed = torch.randn(6, 20, generator=generator).double() * 4
    want = round_columns(aimed, inputs.T @ inputs, 4)
    monkeypatch.setattr("adabm_kernels.calibration.rounding.BLOCK", 6)
    assert torch.equal(round_columns(aimed, inputs.T @ inputs, 4), want)


def test_inputs_that_do_not_go_together_are_rounded_one_by_one() -> None:
    aimed = torch.randn(6, 12, generator=torch.Generator().manual_seed(0)).double() * 4
    assert torch.equal(round_columns(aimed, torch.eye(12).double(), 4), aimed.round().clamp(-8, 7))


def test_a_layer_keeps_its_mean_and_lies_on_its_grid() -> None:
    config = ConvertConfig(weight_bits=4, equalize="on")
    torch.manual_seed(0)
    model = SimulatedNetwork.from_float(float_network(SRVGGSpec(2, 1, 8)).state_dict(), config)
    conv = model.quantized_convs()[1]
    x = 3 + torch.randn(2, 8, 12, 14).cumsum(3)
    with torch.no_grad():
        conv.weight_range.copy_(best_channel_ranges(conv.weight, 4))
        want = F.conv2d(x, conv.weight, conv.bias)
        nearest = F.conv2d(x, conv.quantized_weight(), conv.bias)
        fit_weights(conv, x, torch.Generator().manual_seed(0))
        got = F.conv2d(x, conv.quantized_weight(), conv.bias)
        assert torch.allclose(conv.quantized_weight(), conv.weight, rtol=1e-5)
        step = conv.weight_range.view(-1, 1, 1, 1) / 7
        assert torch.equal(weight_codes(conv.weight, conv.weight_range, 4, "signed"), (conv.weight / step).round().to(torch.int8))
    assert (got - want).square().mean() < 0.3 * (nearest - want).square().mean()
    assert (got - want).mean((0, 2, 3)).abs().max() < 0.2 * (nearest - want).mean((0, 2, 3)).abs().max()


def test_it_is_a_stage_of_networks_with_factors_alone() -> None:
    torch.manual_seed(0)
    network = float_network(SRVGGSpec(2, 1, 8))
    stages = {
        how: [stage["name"] for stage in calibrate(network, noise(2), ConvertConfig(equalize=how), check=False).report["stages"]]
        for how in ("auto", "off")
    }
    assert stages["auto"] == ["equalize", "ranges", "bit maps", "rounding"] and stages["off"] == ["ranges", "bit maps"]
