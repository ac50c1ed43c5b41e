"""convert_model: a float or calibrated network in, one on integer convolutions out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .calibrate import calibrate
from .config import ConvertConfig
from .networks.convention import Convention
from .networks.detect import check_modules, check_whole, detect, res_scale_of
from .nn import ConvertedNetwork, from_simulated
from .nn.contexts import as_imported
from .simulate import SimulatedNetwork


@as_imported()
def convert_model(
    model: nn.Module | Mapping[str, Any],
    calibration: Iterable[torch.Tensor | str | Path] | None = None,
    config: ConvertConfig | None = None,
    *,
    res_scale: float | None = None,
    rgb_range: float | None = None,
    mean_shift: str | tuple[float, float, float] | None = None,
    channel_order: str = "rgb",
    weights_key: str | None = None,
    check: bool = True,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> ConvertedNetwork:
    """A copy of `model` that computes with integer convolutions and the bit-widths AdaBM chooses at run time.

    model: a float EDSR, RDN, SRResNet, SRVGGNetCompact, RRDBNet, SPAN, IMDN, RFDN, CARN, VDSR, DnCNN, ESPCN or FSRCNN or its state
        dict (recognised by its keys, networks/detect.py), a checkpoint that holds one, a calibrated AdaBM state dict, or a
        SimulatedNetwork. The user's own class is fine; only its
        state dict is read, and layers of torch that compute something else than those of the recognised network are refused by
        name.
    calibration: low-resolution images, float tensors [N, 3, H, W] in 0..255 or paths; needed for a float network, and
        refused for a calibrated one. They are drawn as the rest runs, with torch as it is when it is imported
        (nn.contexts.as_imported): a generator finds float32 as the default dtype, the CPU as the default device, no autocast.
    config: bit-widths and calibration settings; default ConvertConfig(). For a SimulatedNetwork its own is taken.
    res_scale: the network's residual scale, which its state dict does not reveal; default the `res_scale` of a module's blocks,
        else 1.
    rgb_range, mean_shift, channel_order, weights_key, check: see `calibrate`. The converted network takes and gives RGB in 0..255
        whatever the convention of the weights, and so does its `float_model()`.
    device: where torch calibrates, "cpu" or "cuda"; the converted network is on the CPU.
    progress: called while it calibrates, with (work done, work in all, what is being done); the unit is about a second.

    Its `report` says what became of the network, in plain values: "layers", the quantised convolutions with their bits; "skipped",
    the names of those that are not; "floats", by name, what is computed in floats between them, and why; "backend"; "calibration".

    Raises TypeError or ValueError naming the argument, the rule and the value.
    """
    if isinstance(model, ConvertedNetwork):
        raise ValueError("convert_model: model is converted already")
    if isinstance(model, SimulatedNetwork):
        if config is not None and config != model.config:
            raise ValueError("convert_model: config must be left out for a SimulatedNetwork, which has its own")
        if calibration is not None:
            raise ValueError("convert_model: calibration must be left out: the model is calibrated already")
        return _from_simulated(model)
    if isinstance(model, nn.Module):
        state: Mapping[str, Any] = model.state_dict()
        if res_scale is None:
            res_scale = res_scale_of(model)
    elif isinstance(model, Mapping):
        state = model
    else:
        hint = " (torch.load(path, weights_only=True) reads a state dict)" if isinstance(model, (str, Path)) else ""
        raise TypeError(f"convert_model: model must be a torch.nn.Module or a state dict, got {type(model).__name__}{hint}")
    config = ConvertConfig() if config is None else config
    res_scale = 1.0 if res_scale is None else res_scale
    if not isinstance(config, ConvertConfig):
        raise TypeError(f"convert_model: config must be a ConvertConfig, got {type(config).__name__}")
    try:
        convention = Convention(rgb_range, mean_shift, channel_order)
    except (TypeError, ValueError) as error:
        raise type(error)(f"convert_model: {error}") from error
    found = detect(state, res_scale, convention=convention, weights_key=weights_key)
    if isinstance(model, nn.Module):
        check_whole(found)
        if not found.calibrated:
            check_modules(model, found.spec)
    if found.calibrated:
        if calibration is not None:
            raise ValueError("convert_model: calibration must be left out: the state dict is calibrated already")
        return _from_simulated(SimulatedNetwork.from_state(state, config, found=found))
    if calibration is None:
        raise ValueError(
            "convert_model: calibration is needed for a float network: pass low-resolution images, as float tensors "
            "[N, 3, H, W] in 0..255 or as paths (about 100 are enough)"
        )
    if config.tail == "collapsed" and not (config.quantize == "full" and found.spec.linear_upsampler):
        raise ValueError(
            "convert_model: config.tail='collapsed' needs a fully quantised network with a staged tail without activations, got "
            f"quantize={config.quantize!r} for {found.spec}"
        )
    return _from_simulated(calibrate(state, calibration, config, progress, check=check, device=device, found=found))


def _from_simulated(model: SimulatedNetwork) -> ConvertedNetwork:
    quantized = {conv.name: conv for conv in model.quantized_convs()}
    converted = from_simulated(model)
    converted.report = {
        "layers": [
            {
                "name": conv.name,
                "weight_bits": conv.weight_bits,
                "act_bits": conv.act_bits,
                "layer_offset": conv.layer_offset,
            }
            for conv in quantized.values()
        ],
        "skipped": [conv.name for conv in model.spec.convs() if conv.name not in quantized],
        "floats": converted.in_floats(),
        "backend": converted.choice,
        "calibration": model.report,
    }
    return converted
