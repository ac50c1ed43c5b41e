"""Makes a converted network of a simulated one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..networks.detect import plain_keys
from ..networks.spec import ConvSpec
from ..parameters import ConvParameters
from ..quantize import Geometry, weight_codes
from .network import ConvertedNetwork

if TYPE_CHECKING:
    from ..simulate import SimulatedConv2d, SimulatedNetwork


def from_simulated(model: SimulatedNetwork) -> ConvertedNetwork:
    """The converted network, on the CPU, that computes what a calibrated simulation simulates."""
    state, names = model.state_dict(), plain_keys(model.spec, model.config.quantize)
    converted = ConvertedNetwork.KINDS.get(model.spec.network, ConvertedNetwork)(
        model.spec,
        model.config,
        {conv.name: conv_parameters(conv) for conv in model.quantized_convs()},
        {name: _plain(state[model.spec.simulated_name(name)]) for name in names},
        _thresholds(model) if model.config.adaptive else None,
        {key: value.clone() for key, value in model.float_state().items()},
        model.exit,
        model.fraction,
    )
    return converted.eval()


def _plain(value: torch.Tensor) -> torch.Tensor:
    value = value.detach().clone()
    return value.float() if value.is_floating_point() else value


def _thresholds(model: SimulatedNetwork) -> tuple[float, float]:
    """The thresholds of the image measure in ascending order. Where fine-tuning has led them past one another, the order changes
    the decision only for images whose measure equals one of them."""
    lower, upper = sorted((model.measure_l.item(), model.measure_u.item()))
    return lower, upper


@torch.no_grad()
def conv_parameters(conv: SimulatedConv2d) -> ConvParameters:
    """The parameters that checkpoints hold of one calibrated convolution."""
    weight, upper = conv.weight.float(), conv.weight_range.float()
    return ConvParameters(
        name=conv.name,
        codes=weight_codes(weight, upper, conv.weight_bits, conv.weight_grid),
        weight_bits=conv.weight_bits,
        weight_upper=upper.reshape(-1).clone(),
        bias=weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.float().clone(),
        lower=conv.lower_a.item(),
        upper=conv.upper_a.item(),
        act_bits=conv.act_bits,
        layer_offset=conv.layer_offset,
        adaptive=conv.adaptive,
        weight_grid=conv.weight_grid,
        input_shift=None if conv.shift_a is None else conv.shift_a.float().clone(),
        digits=conv.digits,
        geometry=geometry_of(conv.spec),
    )


def geometry_of(spec: ConvSpec) -> Geometry:
    """How the kernel of a convolution goes over its input."""
    return Geometry(spec.stride, spec.dilation, spec.groups, spec.padding)
