"""A simulated network as integers."""

from __future__ import annotations

from ..networks.detect import plain_keys
from ..simulate import SimulatedNetwork
from .conv import ConvParameters
from .network import ConvertedNetwork


def from_simulated(model: SimulatedNetwork) -> ConvertedNetwork:
    """The converted network that computes what a calibrated one simulates, on the CPU."""
    state, names = model.state_dict(), plain_keys(model.spec, model.config.quantize)
    converted = ConvertedNetwork.KINDS[model.spec.network](
        model.spec,
        model.config,
        {conv.name: ConvParameters.from_simulated(conv) for conv in model.quantized_convs()},
        {name: state[name].detach().float().clone() for name in names},
        (model.measure_l.item(), model.measure_u.item()) if model.config.adaptive else None,
        {key: value.clone() for key, value in model.float_state().items()},
        model.exit,
        model.fraction,
    )
    return converted.eval()
