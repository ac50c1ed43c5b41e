"""A simulated network as integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..networks.detect import plain_keys
from ..parameters import ConvParameters
from ..quantize import weight_codes
from .network import ConvertedNetwork

if TYPE_CHECKING:
    from ..simulate import SimulatedConv2d, SimulatedNetwork


def from_simulated(model: SimulatedNetwork) -> ConvertedNetwork:
    """The converted network that computes what a calibrated one simulates, on the CPU."""
    state, names = model.state_dict(), plain_keys(model.spec, model.config.quantize)
    converted = ConvertedNetwork.KINDS.get(model.spec.network, ConvertedNetwork)(
        model.spec,
        model.config,
        {conv.name: conv_parameters(conv) for conv in model.quantized_convs()},
        {name: state[name].detach().float().clone() for name in names},
        _thresholds(model) if model.config.adaptive else None,
        {key: value.clone() for key, value in model.float_state().items()},
        model.exit,
        model.fraction,
    )
    return converted.eval()


def _thresholds(model: SimulatedNetwork) -> tuple[float, float]:
    """Of the image measure, in order: where fine-tuning led them past one another, they decide the same of all images but those
    whose measure is one of them."""
    lower, upper = sorted((model.measure_l.item(), model.measure_u.item()))
    return lower, upper


@torch.no_grad()
def conv_parameters(conv: SimulatedConv2d) -> ConvParameters:
    """What checkpoints hold of one calibrated convolution."""
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
    )
